"""A store on a PostgreSQL server behaves as one in a file."""

import concurrent.futures
import threading

import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import migrations, schema, store
from instructgpt_jax.labeling.people import invitations, users
from instructgpt_jax.labeling.web import queries
from tests.interop.tiny import library
from tests.labeling import (
  servers,
  test_assignment,
  test_labels,
  test_people,
  test_project,
  test_store,
)
from tests.labeling.made import add_items, add_user

library("psycopg")


@pytest.fixture(scope="module")
def server():
  with servers.postgresql() as url:
    yield url


def _empty(url):
  engine = sa.create_engine(url.replace("postgresql", "postgresql+psycopg", 1))
  with engine.begin() as connection:
    connection.exec_driver_sql("DROP SCHEMA public CASCADE")
    connection.exec_driver_sql("CREATE SCHEMA public")
  return engine


@pytest.fixture
def database(server):
  """Returns an engine of the empty database."""
  engine = _empty(server)
  yield engine
  engine.dispose()


@pytest.fixture
def new_store(server, database):
  """Returns an empty store."""
  made = store.open_store(server, create=True)
  yield made
  made.close()


@pytest.fixture
def opened(new_store):
  """Returns the store under the name that tests of projects use."""
  return new_store


page = test_labels.page

# The same tests as for a file.
test_an_invitation = test_people.test_an_invitation_makes_a_user_once
test_one_invitation = (
  test_people.test_two_requests_with_one_invitation_make_one_user
)
test_names = test_people.test_names_that_look_alike_are_one
test_bad_names = test_people.test_a_bad_name_is_refused_and_the_invitation_stays
test_odd_names = test_people.test_odd_names_work
test_odd_log_ins = test_people.test_odd_log_ins_are_wrong_log_ins
test_unknown_invitations = test_people.test_an_unknown_invitation_is_refused
test_sessions = test_people.test_sessions_end
test_resets = test_people.test_a_forgotten_password_is_reset_by_invitation
test_limits = test_people.test_log_ins_are_limited
test_parallel_limits = test_people.test_parallel_guesses_are_limited
test_inactive_users = test_people.test_an_inactive_user_is_out_and_loses_places
test_unknown_users = test_people.test_an_unknown_user_is_refused

test_work = test_assignment.test_a_labeler_gets_what_a_page_may_show
test_resumed = test_assignment.test_an_open_item_is_resumed
test_fewest = test_assignment.test_items_with_the_fewest_labels_come_first
test_races = test_assignment.test_threads_race_for_the_last_places
test_windows = test_assignment.test_one_labeler_in_two_windows_gets_one_item
test_expired = test_assignment.test_a_place_is_free_when_its_lock_expires
test_skipping = test_assignment.test_skipping_frees_the_place_and_needs_a_reason
test_others = test_assignment.test_work_of_others_does_not_exist
test_lists = test_assignment.test_own_work_is_listed_in_pages
test_roles = test_assignment.test_roles_have_their_tasks
test_gold = test_assignment.test_gold_items_are_mixed_in
test_closed = test_assignment.test_closed_items_are_not_offered

test_stale = test_labels.test_an_older_page_is_refused_and_nothing_is_lost
test_old_revisions = test_labels.test_revisions_that_never_were_are_refused
test_parallel_saves = test_labels.test_parallel_saves_of_one_revision_keep_one
test_parallel_labels = test_labels.test_parallel_submissions_make_one_label
test_labels_are_whole = test_labels.test_a_label_has_what_it_needs
test_edits = test_labels.test_a_label_is_edited_until_its_item_is_closed
test_withdrawal = test_labels.test_a_label_is_taken_back
test_large = test_labels.test_large_and_odd_contents_are_kept
test_surrogates = test_labels.test_lone_surrogates_are_replaced
test_full_items = test_labels.test_full_items_are_closed_together
test_full_groups = (
  test_labels.test_an_item_is_full_when_both_groups_have_filled_their_places
)
test_adjudication = test_labels.test_a_reviewer_adjudicates

test_changes = test_project.test_what_a_file_says_about_an_item_can_change
test_instructions = (
  test_project.test_a_restart_does_not_undo_instructions_of_the_page
)

test_undone = test_store.test_an_exception_undoes_a_transaction
test_nested = test_store.test_a_transaction_inside_another_is_refused
test_read_only = test_store.test_nothing_is_written_in_a_reading_transaction
test_snapshots = test_store.test_a_reader_sees_one_snapshot
test_no_lost_update = test_store.test_no_update_of_parallel_writers_is_lost
test_many_threads = (
  test_store.test_readers_and_writers_of_many_threads_do_not_wait_for_ever
)


# What differs.


def _code(function, *arguments, **options):
  with pytest.raises(UserError) as error:
    function(*arguments, **options)
  return error.value.code


def test_the_migrations_make_the_tables_of_the_schema(new_store):
  with new_store.read() as connection:
    context = migration.MigrationContext.configure(
      connection, opts=dict(version_table=schema.VERSION_TABLE)
    )
    assert autogenerate.compare_metadata(context, schema.metadata) == []
    assert migrations.current_version(connection) == migrations.NEWEST


def test_pages_count_labels_of_both_groups(new_store):
  (item,) = add_items(new_store)
  with new_store.read() as connection:
    (row,) = queries.list_items(connection)
    assert queries.skip_reasons(connection, item) == []
  assert (row.id, row.labels, row.held_out) == (item, 0, 0)


def test_an_empty_database_holds_no_store(server, database):
  assert _code(store.open_store, server) == "no_store"


def test_tables_of_another_program_stay_as_they_were(server, database):
  with database.begin() as connection:
    connection.exec_driver_sql("CREATE TABLE users (id int)")
  assert _code(store.open_store, server, create=True) == "not_a_store"
  with database.connect() as connection:
    assert sa.inspect(connection).get_table_names() == ["users"]


def test_a_newer_store_is_refused(server, new_store):
  with new_store.begin() as connection:
    connection.exec_driver_sql(
      f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"
    )
  assert _code(store.open_store, server) == "newer_store"


def test_stores_made_at_the_same_time_are_one(server, database):
  def make(_):
    opened = store.open_store(server, create=True)
    opened.close()

  with concurrent.futures.ThreadPoolExecutor(6) as threads:
    list(threads.map(make, range(6)))


def test_writers_of_two_processes_wait_for_each_other(
  server, new_store, monkeypatch
):
  """Two stores have no lock in memory in common."""
  other = store.open_store(server)
  monkeypatch.setattr(store, "_WAIT_SECONDS", 1.0)
  with new_store.begin() as connection:
    connection.execute(sa.select(schema.users))
    assert _code(add_user, other) == "store_locked"
  add_user(other)
  assert len(users.list_users(new_store)) == 1
  other.close()


def test_a_lost_connection_is_an_error_and_the_next_one_works(
  new_store, database
):
  add_user(new_store)
  end = threading.Event()

  def cut():
    with database.begin() as connection:
      connection.exec_driver_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND application_name IS NOT NULL"
        " AND backend_type = 'client backend'"
      )
    end.set()

  def write():
    with new_store.begin() as connection:
      connection.execute(sa.delete(schema.invitations))
      cut()
      connection.execute(sa.delete(schema.users))

  assert _code(write) == "store_unreachable"
  assert end.is_set()
  assert len(users.list_users(new_store)) == 1
  assert len(invitations.list_invitations(new_store)) == 1


def test_a_server_that_is_not_there_is_an_error_without_the_password():
  with pytest.raises(UserError) as error:
    store.open_store("postgresql://ann:secret@127.0.0.1:1/labels")
  assert error.value.code == "store_unreachable"
  assert "secret" not in str(error.value)
