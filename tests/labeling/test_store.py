"""Opening, upgrading and writing stores, and what goes wrong with them."""

import concurrent.futures
import os
import pathlib
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading

import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration

from benchmarks import labeling_kills
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import (
  assignment,
  labels,
  migrations,
  schema,
  store,
)
from instructgpt_jax.labeling.people import users
from tests.labeling.made import NOW, add_items, add_user

ROOT = pathlib.Path(__file__).parent.parent.parent


def _error(location, create=False):
  with pytest.raises(UserError) as error:
    store.open_store(location, create=create)
  assert error.value.fix and "\n" not in error.value.problem
  return error.value


def _code(function, *arguments, **options):
  with pytest.raises(UserError) as error:
    function(*arguments, **options)
  return error.value.code


def _pragma(opened, name):
  with opened.read() as connection:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def _names(opened):
  return [user.name for user in users.list_users(opened)]


def _content(directory):
  return {
    path.name: path.read_bytes()
    for path in directory.iterdir()
    if path.is_file()
  }


# Opening.


@pytest.mark.parametrize("name", ["labels.db", "a #?%&=ü\n.db", "file:x"])
def test_a_store_is_made_once_and_opened_again(tmp_path, name):
  path = tmp_path / name
  for _ in range(2):
    opened = store.open_store(path, create=True)
    opened.close()
  opened = store.open_store(path)
  add_user(opened)
  opened.close()
  opened = store.open_store(f"sqlite:///{path}")
  assert _names(opened) == ["Ann"]
  assert _pragma(opened, "journal_mode") == "wal"
  assert _pragma(opened, "synchronous") == 2  # full
  assert _pragma(opened, "foreign_keys") == 1
  opened.close()
  # Everything is in one file, which others cannot read.
  assert [p.name for p in tmp_path.iterdir()] == [name]
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_stores_made_at_the_same_time_are_one(tmp_path):
  def make(_):
    opened = store.open_store(tmp_path / "labels.db", create=True)
    opened.close()

  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    list(threads.map(make, range(8)))
  opened = store.open_store(tmp_path / "labels.db")
  assert _names(opened) == []
  opened.close()


def test_a_missing_store_is_an_error(tmp_path):
  error = _error(tmp_path / "labels.db")
  assert (error.code, error.file) == ("no_store", str(tmp_path / "labels.db"))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [False, True])
def test_a_missing_directory_is_an_error(tmp_path, create):
  error = _error(tmp_path / "no" / "labels.db", create)
  assert (error.code, error.file) == ("no_directory", str(tmp_path / "no"))


def test_an_empty_file_is_no_store_but_can_become_one(tmp_path):
  path = tmp_path / "labels.db"
  path.touch()
  assert _error(path).code == "no_store"
  assert path.read_bytes() == b""
  store.open_store(path, create=True).close()
  store.open_store(path).close()


def _write_sqlite(path, *statements):
  connection = sqlite3.connect(path)
  for statement in statements:
    connection.execute(statement)
  connection.commit()
  connection.close()


def _text(path):
  path.write_text("prompt,completion\n" * 1000)


def _other_program(path):
  _write_sqlite(path, "CREATE TABLE runs (id)", "INSERT INTO runs VALUES (1)")


def _other_with_our_names(path):
  _write_sqlite(path, "CREATE TABLE users (id)", "CREATE TABLE items (id)")


def _other_with_alembic(path):
  _write_sqlite(
    path,
    f"CREATE TABLE {schema.VERSION_TABLE} (version_num)",
    f"INSERT INTO {schema.VERSION_TABLE} VALUES ('0001')",
  )


def _cut_header(path):
  path.write_bytes(b"SQLite format 3\0" + b"\0" * 50)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
  "write",
  [_text, _other_program, _other_with_our_names, _other_with_alembic],
)
def test_another_file_is_refused_and_stays_as_it_was(tmp_path, write, create):
  write(tmp_path / "labels.db")
  before = _content(tmp_path)
  assert _error(tmp_path / "labels.db", create).code == "not_a_store"
  assert _content(tmp_path) == before


def test_a_cut_file_is_refused(tmp_path):
  _cut_header(tmp_path / "labels.db")
  before = _content(tmp_path)
  assert _error(tmp_path / "labels.db", True).code in (
    "not_a_store",
    "damaged_store",
  )
  assert _content(tmp_path) == before


def _pipe(path):
  os.mkfifo(path)


@pytest.mark.parametrize("make", [os.mkdir, _pipe])
def test_what_is_no_file_is_refused(tmp_path, make):
  make(tmp_path / "labels.db")
  assert _error(tmp_path / "labels.db", True).code == "not_a_store"


@pytest.mark.parametrize(
  "path, code",
  [
    ("", "store_not_opened"),
    ("a\0b", "store_not_opened"),
    ("x" * 300, "store_not_opened"),
    ("mysql://host/name", "store_url"),
    ("postgresql://host", "store_url"),
    ("postgresql://host:port/name", "store_url"),
    ("http://[::1/name", "store_url"),
    ("://", "store_url"),
  ],
)
def test_odd_locations_are_refused(tmp_path, monkeypatch, path, code):
  monkeypatch.chdir(tmp_path)
  assert _error(path, True).code == code
  assert list(tmp_path.iterdir()) == []


def test_a_file_below_a_file_is_refused(tmp_path):
  (tmp_path / "file").touch()
  assert _error(tmp_path / "file" / "labels.db", True).code in (
    "no_directory",
    "store_not_opened",
  )


def test_a_missing_driver_is_an_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "psycopg", None)
  assert _error("postgresql://host/name").code == "missing_package"


def test_a_damaged_store_is_an_error(tmp_path):
  path = tmp_path / "labels.db"
  opened = store.open_store(path, create=True)
  add_items(opened, 200)
  opened.close()
  data = bytearray(path.read_bytes())
  size = 4096
  data[size:] = b"\xa5" * (len(data) - size)
  path.write_bytes(data)
  try:
    opened = store.open_store(path)
  except UserError as error:
    assert error.code == "damaged_store"
  else:
    assert _code(users.list_users, opened) == "damaged_store"
    opened.close()


def test_a_locked_store_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(store, "_WAIT_SECONDS", 0.2)
  path = tmp_path / "labels.db"
  opened = store.open_store(path, create=True)
  add_user(opened)
  other = sqlite3.connect(path, isolation_level=None)
  other.execute("BEGIN IMMEDIATE")
  assert _code(add_user, opened, "Bea") == "store_locked"
  assert _names(opened) == ["Ann"]  # readers do not wait
  other.execute("ROLLBACK")
  add_user(opened, "Bea")
  assert _names(opened) == ["Ann", "Bea"]
  opened.close()
  other.execute("PRAGMA locking_mode = EXCLUSIVE")
  other.execute("BEGIN EXCLUSIVE")
  assert _error(path).code == "store_locked"
  other.close()


@pytest.mark.parametrize("replace", [False, True])
def test_a_store_that_was_removed_is_not_written(tmp_path, replace):
  """SQLite would write to the removed file, and lose it at the end."""
  path = tmp_path / "labels.db"
  opened = store.open_store(path, create=True)
  add_user(opened)
  opened.close()
  assert _names(opened) == ["Ann"]  # and opens a connection
  path.rename(tmp_path / "moved.db")
  if replace:
    store.open_store(path, create=True).close()
  assert _code(add_user, opened, "Bea") == "store_replaced"
  opened.close()
  (tmp_path / "moved.db").rename(path)
  opened = store.open_store(path)
  add_user(opened, "Bea")
  assert _names(opened) == ["Ann", "Bea"]
  opened.close()


def test_a_store_does_not_depend_on_the_current_directory(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  opened = store.open_store("labels.db", create=True)
  opened.close()
  monkeypatch.chdir("/")
  add_user(opened)
  assert opened.name == "labels.db" and _names(opened) == ["Ann"]
  opened.close()


def test_a_thread_that_writes_for_too_long_is_an_error(new_store, monkeypatch):
  monkeypatch.setattr(store, "_WAIT_SECONDS", 0.2)
  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    with new_store.begin():
      codes = threads.submit(_code, add_user, new_store).result()
  assert codes == "store_locked"


# Versions.


def test_the_migrations_make_the_tables_of_the_schema(new_store):
  with new_store.read() as connection:
    context = migration.MigrationContext.configure(
      connection, opts=dict(version_table=schema.VERSION_TABLE)
    )
    assert autogenerate.compare_metadata(context, schema.metadata) == []
    assert context.get_current_revision() == migrations.NEWEST


@pytest.mark.parametrize("create", [False, True])
def test_a_newer_store_is_refused(tmp_path, create):
  path = tmp_path / "labels.db"
  opened = store.open_store(path, create=True)
  add_user(opened)
  with opened.begin() as connection:
    connection.exec_driver_sql(
      f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"
    )
  opened.close()
  before = _content(tmp_path)
  error = _error(path, create)
  assert error.code == "newer_store" and "9999" in error.problem
  assert _content(tmp_path) == before


_NEXT = """
  import sqlalchemy as sa
  from alembic import op

  revision = "8888"
  down_revision = "{newest}"

  def upgrade():
    op.add_column("users", sa.Column("email", sa.Text))
    op.execute("UPDATE users SET email = name || '@example.org'")
    {last}
"""


@pytest.fixture
def next_version(tmp_path, monkeypatch):
  """Returns a function that adds a version of the tables."""

  def add(last="pass"):
    directory = tmp_path / "migrations"
    shutil.copytree(migrations._DIRECTORY, directory)
    (directory / "versions" / "v8888.py").write_text(
      textwrap.dedent(_NEXT.format(newest=migrations.NEWEST, last=last))
    )
    monkeypatch.setattr(migrations, "_DIRECTORY", directory)
    monkeypatch.setattr(migrations, "NEWEST", "8888")
    migrations._scripts.cache_clear()

  yield add
  monkeypatch.undo()
  migrations._scripts.cache_clear()


def _older_store(directory):
  path = directory / "labels.db"
  opened = store.open_store(path, create=True)
  add_user(opened)
  opened.close()
  return path


def test_an_older_store_is_upgraded(tmp_path, next_version):
  path = _older_store(tmp_path)
  next_version()
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    for opened in threads.map(lambda _: store.open_store(path), range(4)):
      with opened.read() as connection:
        [row] = connection.exec_driver_sql("SELECT name, email FROM users")
        assert tuple(row) == ("Ann", "Ann@example.org")
        assert migrations.current_version(connection) == "8888"
      opened.close()


def test_a_failed_upgrade_changes_nothing(tmp_path, next_version):
  path = _older_store(tmp_path)
  before = migrations.NEWEST
  next_version(last="raise KeyError('x')")
  with pytest.raises(KeyError):
    store.open_store(path)
  connection = sqlite3.connect(path)
  names = [row[1] for row in connection.execute("PRAGMA table_info(users)")]
  version = connection.execute(
    f"SELECT version_num FROM {schema.VERSION_TABLE}"
  ).fetchall()
  connection.close()
  assert "email" not in names and "name" in names
  assert version == [(before,)]


def test_versions_follow_each_other():
  files = sorted((migrations._DIRECTORY / "versions").glob("v*.py"))
  revisions = [f"{i + 1:04}" for i in range(len(files))]
  assert [path.name[1:5] for path in files] == revisions
  assert migrations.versions() == set(revisions)
  assert migrations.NEWEST == revisions[-1]


# Transactions.


def test_an_exception_undoes_a_transaction(new_store):
  add_user(new_store)
  with pytest.raises(ZeroDivisionError):
    with new_store.begin() as connection:
      connection.execute(sa.delete(schema.invitations))
      connection.execute(sa.delete(schema.users))
      raise ZeroDivisionError
  assert _names(new_store) == ["Ann"]
  add_user(new_store, "Bea")


def test_a_transaction_inside_another_is_refused(new_store):
  with new_store.begin():
    with pytest.raises(RuntimeError):
      with new_store.begin():
        pass
  add_user(new_store)


def test_nothing_is_written_in_a_reading_transaction(new_store):
  with pytest.raises(UserError):
    with new_store.read() as connection:
      connection.execute(sa.delete(schema.users))
  add_user(new_store)


def test_a_reader_sees_one_snapshot(new_store):
  add_user(new_store)
  count = sa.select(sa.func.count()).select_from(schema.users)
  with new_store.read() as connection:
    assert connection.execute(count).scalar() == 1
    add_user(new_store, "Bea")  # does not wait for the reader
    assert connection.execute(count).scalar() == 1
  assert _names(new_store) == ["Ann", "Bea"]


def test_no_update_of_parallel_writers_is_lost(new_store):
  with new_store.begin() as connection:
    connection.execute(
      sa.insert(schema.project).values(id=1, settings={"count": 0})
    )

  def count(_):
    with new_store.begin() as connection:
      settings = connection.execute(
        sa.select(schema.project.c.settings)
      ).scalar_one()
      connection.execute(
        sa.update(schema.project).values(
          settings={"count": settings["count"] + 1}
        )
      )

  with concurrent.futures.ThreadPoolExecutor(12) as threads:
    list(threads.map(count, range(120)))
  with new_store.read() as connection:
    [settings] = connection.execute(sa.select(schema.project.c.settings)).one()
  assert settings == {"count": 120}


def test_readers_and_writers_of_many_threads_do_not_wait_for_ever(new_store):
  """More threads than connections of the pool."""
  barrier = threading.Barrier(80)

  def work(number):
    barrier.wait()
    if number % 2:
      return add_user(new_store, f"user {number}").name
    return users.list_users(new_store)

  with concurrent.futures.ThreadPoolExecutor(80) as threads:
    list(threads.map(work, range(80)))
  assert len(_names(new_store)) == 40


# A full disk.


def _limit_pages(opened, pages):
  def connect(connection, _):
    connection.execute(f"PRAGMA max_page_count = {pages}")

  opened.close()
  sa.event.listen(opened.engine, "connect", connect)
  return lambda: (
    sa.event.remove(opened.engine, "connect", connect),
    opened.close(),
  )


def test_a_full_disk_is_an_error_and_loses_nothing(new_store):
  user = add_user(new_store)
  add_items(new_store)
  rules = assignment.Rules()
  work = assignment.next_item(new_store, user.id, rules, NOW)
  arguments = (new_store, user.id, work.assignment_id)
  small, large = {"notes": "a"}, {"notes": "x" * 500_000}
  labels.save_draft(
    new_store, labels.Save(*arguments[1:], small, 0), rules, NOW
  )
  free = _limit_pages(new_store, _pragma(new_store, "page_count") + 2)
  for _ in range(2):
    assert _code(
      labels.save_draft,
      new_store,
      labels.Save(*arguments[1:], large, 1),
      rules,
      NOW,
    ) == ("disk_full")
    assert _code(
      labels.submit,
      new_store,
      labels.Save(*arguments[1:], large, 1),
      rules,
      NOW,
    ) == ("disk_full")
  work = assignment.get_work(*arguments, NOW)
  assert (work.state, work.draft.content) == ("open", small)
  free()
  labels.save_draft(
    new_store, labels.Save(*arguments[1:], large, 1), rules, NOW
  )
  assert (
    labels.submit(
      new_store, labels.Save(*arguments[1:], large, 2), rules, NOW
    ).content
    == large
  )
  assert _pragma(new_store, "integrity_check") == "ok"


_LIMITED = """
  import resource, sys
  from instructgpt_jax.errors import UserError
  from instructgpt_jax.labeling import assignment, labels, store

  def limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

  path, size = sys.argv[1], int(sys.argv[2])
  rules = assignment.Rules()
  save = labels.Save(1, 1, {"notes": "x" * 300_000}, 1)
  codes = []
  limit(size)
  try:
    opened = store.open_store(path, create=True)
    for _ in range(2):
      try:
        labels.save_draft(opened, save, rules, 0.0)
      except UserError as error:
        codes.append(error.code)
        assert error.fix
    limit(resource.RLIM_INFINITY)
    draft = labels.save_draft(opened, save, rules, 0.0)
    print(*codes, draft.revision)
  except UserError as error:
    print(error.code)
"""


def _run_limited(path, size):
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(_LIMITED), str(path), str(size)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


def test_a_file_that_cannot_grow_is_an_error_and_loses_nothing(tmp_path):
  path = tmp_path / "labels.db"
  opened = store.open_store(path, create=True)
  user = add_user(opened)
  add_items(opened)
  rules = assignment.Rules()
  work = assignment.next_item(opened, user.id, rules, NOW)
  assert (user.id, work.assignment_id) == (1, 1)
  labels.save_draft(opened, labels.Save(1, 1, {"notes": "a"}, 0), rules, NOW)
  opened.close()
  codes = _run_limited(path, path.stat().st_size)
  assert codes == ["disk_error", "disk_error", "2"]
  opened = store.open_store(path)
  draft = assignment.get_work(opened, 1, 1, NOW).draft
  assert len(draft.content["notes"]) == 300_000
  opened.close()


def test_a_store_that_cannot_be_made_is_made_later(tmp_path):
  path = tmp_path / "labels.db"
  for size in (0, 50_000):
    [code] = _run_limited(path, size)
    assert code in ("disk_error", "disk_full"), size
  store.open_store(path, create=True).close()


# Kills.


def test_what_was_acknowledged_survives_kills(tmp_path):
  path = str(tmp_path / "labels.db")
  counts = labeling_kills.run_rounds(path, 10, longest=0.3)
  assert counts.kills == 10 and counts.drafts
