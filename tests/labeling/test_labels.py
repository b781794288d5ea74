"""Drafts, labels, their history, adjudication and closing."""

import concurrent.futures
import math

import pytest
import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, labels, schema
from instructgpt_jax.labeling.people import users
from tests.labeling.made import NOW, add_items, add_user, add_users

RULES = assignment.Rules(lock_seconds=100.0)


class _Page:
  """A labeler's page of one item: knows the revision that it shows."""

  def __init__(self, store, user, work, revision=None):
    self.store, self.user, self.work = store, user, work
    self.revision = work.draft.revision if revision is None else revision

  def _save(self, content, seconds):
    return labels.Save(
      self.user.id, self.work.assignment_id, content, self.revision, seconds
    )

  def save(self, content, now=NOW, seconds=0.0):
    draft = labels.save_draft(
      self.store, self._save(content, seconds), RULES, now
    )
    self.revision = draft.revision
    return draft

  def submit(self, content, now=NOW, seconds=0.0, **options):
    label = labels.submit(
      self.store, self._save(content, seconds), RULES, now, **options
    )
    self.revision = label.draft_revision
    return label

  def withdraw(self, now=NOW):
    return labels.withdraw(
      self.store, self.user.id, self.work.assignment_id, RULES, now
    )

  def reload(self, now=NOW):
    return assignment.get_work(
      self.store, self.user.id, self.work.assignment_id, now
    )

  def copy(self):
    return _Page(self.store, self.user, self.work, self.revision)


@pytest.fixture
def page(new_store):
  """Returns the page of an item that has one place."""
  user = add_user(new_store)
  add_items(new_store)
  return _Page(
    new_store, user, assignment.next_item(new_store, user.id, RULES, NOW)
  )


def _code(function, *arguments, **options):
  with pytest.raises(UserError) as error:
    function(*arguments, **options)
  return error.value.code


def _history(store):
  table = schema.label_history
  with store.read() as connection:
    return [
      tuple(row)
      for row in connection.execute(
        sa.select(table.c.revision, table.c.action, table.c.content).order_by(
          table.c.assignment_id, table.c.revision
        )
      )
    ]


def _add_instructions(store, version):
  with store.begin() as connection:
    connection.execute(
      sa.insert(schema.instructions).values(
        version=version, markdown="# Rank", created_at=NOW
      )
    )


def test_a_draft_is_found_on_another_device(page):
  assert page.save({"notes": "a"}).revision == 1
  assert page.save({"notes": "ab"}, NOW + 1).revision == 2
  draft = page.reload().draft
  assert draft == assignment.Draft({"notes": "ab"}, 2, NOW + 1, True)


def test_an_older_page_is_refused_and_nothing_is_lost(page):
  page.save({"notes": "a"})
  other = page.copy()
  page.save({"notes": "from here"})
  for act in (other.save, other.submit):
    with pytest.raises(labels.StaleDraft) as error:
      act({"notes": "from there"})
    assert error.value.code == "stale_draft"
    assert error.value.draft.content == {"notes": "from here"}
    assert error.value.draft.revision == 2
  assert page.reload().draft.content == {"notes": "from here"}
  assert page.reload().state == "open"
  # With the newer revision the other page continues.
  other.revision = error.value.draft.revision
  assert other.save({"notes": "both"}).revision == 3


@pytest.mark.parametrize("revision", [-1, 1, 2**70])
def test_revisions_that_never_were_are_refused(page, revision):
  page.revision = revision
  with pytest.raises(labels.StaleDraft):
    page.save({"a": 1})
  assert page.reload().draft.revision == 0


def test_a_repeated_save_succeeds(page):
  again = page.copy()
  page.save({"a": 1})
  # The answer was lost, and the page sends the same once more.
  assert again.save({"a": 1}).revision == 1
  assert page.reload().draft.revision == 1
  # 1 is not true.
  stale = _Page(page.store, page.user, page.work, 0)
  with pytest.raises(labels.StaleDraft):
    stale.save({"a": True})


def test_a_repeated_submission_changes_nothing(page):
  page.save({"a": 1})
  again = page.copy()
  first = page.submit({"a": 2}, NOW + 5)
  assert again.submit({"a": 2}, NOW + 9) == first
  assert page.submit({"a": 2}, NOW + 20) == first
  assert _history(page.store) == [(1, "submitted", {"a": 2})]


def test_parallel_saves_of_one_revision_keep_one(page):
  def save(number):
    try:
      return page.copy().save({"number": number})
    except labels.StaleDraft:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    drafts = [d for d in threads.map(save, range(8)) if d is not None]
  assert len(drafts) == 1
  assert page.reload().draft == drafts[0]


def test_parallel_submissions_make_one_label(page):
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    results = list(
      threads.map(lambda _: page.copy().submit({"a": 1}), range(8))
    )
  assert len(set(map(repr, results))) == 1
  assert _history(page.store) == [(1, "submitted", {"a": 1})]


def test_a_label_has_what_it_needs(page):
  _add_instructions(page.store, 3)
  page.save({"a": 1}, NOW + 10, seconds=8.0)
  label = page.submit({"a": 2}, NOW + 20, seconds=5.0, instructions_version=3)
  assert label == labels.Label(
    id=1,
    assignment_id=page.work.assignment_id,
    item_id=page.work.item_id,
    user_id=page.user.id,
    content={"a": 2},
    instructions_version=3,
    revision=1,
    seconds=13.0,
    submitted_at=NOW + 20,
    revised_at=None,
    draft_revision=2,
  )
  assert labels.labels_of_item(page.store, page.work.item_id) == [label]
  for version in (4, 0, 2**80):
    assert (
      _code(page.submit, {"a": 3}, instructions_version=version)
      == "no_instructions"
    )
  assert labels.labels_of_item(page.store, page.work.item_id) == [label]


@pytest.mark.parametrize(
  "sent, counted",
  [
    (5.0, 5.0),
    (50.0, 10.0),  # more than has passed
    (-5.0, 0.0),
    (math.nan, 0.0),
    (math.inf, 10.0),
  ],
)
def test_active_time_is_at_most_the_time_that_passed(page, sent, counted):
  page.save({"a": 1}, NOW + 10, seconds=sent)
  assert page.reload().active_seconds == counted


def test_active_time_does_not_shrink_when_the_clock_is_put_back(page):
  page.save({"a": 1}, NOW + 10, seconds=10.0)
  page.save({"a": 2}, NOW - 1000, seconds=10.0)
  page.save({"a": 3}, NOW - 995, seconds=10.0)
  assert page.reload().active_seconds == 15.0


def test_a_label_is_edited_until_its_item_is_closed(page):
  page.submit({"a": 1}, NOW)
  page.save({"a": 2}, NOW + 1)  # an edit that does not count yet
  assert page.reload().label == {"a": 1}
  assert page.reload().draft.content == {"a": 2}
  label = page.submit({"a": 3}, NOW + 2)
  assert (label.revision, label.revised_at) == (2, NOW + 2)
  assert label.submitted_at == NOW
  assert _history(page.store) == [
    (1, "submitted", {"a": 1}),
    (2, "revised", {"a": 3}),
  ]
  labels.close_item(page.store, page.work.item_id, NOW + 3)
  for act in (
    lambda: page.save({"a": 4}),
    lambda: page.submit({"a": 4}),
    page.withdraw,
  ):
    assert _code(act) == "item_closed"
  assert page.reload().closed and page.reload().label == {"a": 3}
  labels.reopen_item(page.store, page.work.item_id)
  assert page.submit({"a": 4}, NOW + 5).revision == 3


def test_an_edit_is_undone_by_submitting_the_old_content(page):
  first = page.submit({"a": 1})
  page.save({"a": 2})
  assert page.submit({"a": 1}).revision == first.revision
  assert page.reload().draft.content == {"a": 1}
  assert len(_history(page.store)) == 1


def test_a_label_is_taken_back(page):
  page.submit({"a": 1}, NOW)
  work = page.withdraw(NOW + 1)
  assert (work.state, work.label) == ("open", None)
  assert work.draft.content == {"a": 1}
  assert work.locked_until == NOW + 101
  assert labels.labels_of_item(page.store, page.work.item_id) == []
  assert _code(page.withdraw) == "not_submitted"
  label = page.submit({"a": 2}, NOW + 2)
  assert (label.revision, label.submitted_at) == (3, NOW + 2)
  assert [action for _, action, _ in _history(page.store)] == [
    "submitted",
    "withdrawn",
    "submitted",
  ]


def test_a_pending_edit_survives_taking_the_label_back(page):
  page.submit({"a": 1})
  page.save({"a": "edited"})
  assert page.withdraw().draft.content == {"a": "edited"}


def test_the_place_of_a_label_that_was_taken_back_is_free_in_time(page):
  other = add_user(page.store, "Bea")
  page.submit({"a": 1})
  page.withdraw()
  args = (page.store, other.id, RULES)
  assert assignment.next_item(*args, NOW + 99) is None
  assert assignment.next_item(*args, NOW + 100) is not None
  assert _code(page.submit, {"a": 1}, NOW + 101) == "place_taken"


@pytest.mark.parametrize(
  "content",
  [
    None,
    [],
    "text",
    {"a": math.nan},
    {"a": {1, 2}},
    {"a": b"x"},
    {"a": "x" * (1 << 20)},
  ],
)
def test_bad_contents_are_refused(page, content):
  assert _code(page.save, content) == "bad_content"
  assert _code(page.submit, content) == "bad_content"
  owner = add_user(page.store, "Olga", "owner")
  assert (
    _code(
      labels.adjudicate,
      page.store,
      owner.id,
      page.work.item_id,
      content,
      NOW,
    )
    == "bad_content"
  )
  assert page.reload().draft.revision == 0


def test_a_deeply_nested_content_is_refused(page):
  content = {}
  for _ in range(100_000):
    content = {"a": content}
  assert _code(page.save, content) == "bad_content"


def test_large_and_odd_contents_are_kept(page):
  content = {
    "notes": "ü🙂\0\u202e" * 100_000,
    "": None,
    "nested": [{"a": [1, 2.5, True, None, -(2**60)]}],
    "</script>": "<script>alert(1)</script>'\"; DROP TABLE labels; --",
  }
  page.save(content)
  assert page.reload().draft.content == content
  assert page.submit(content).content == content


def test_lone_surrogates_are_replaced(page):
  content = {"a": "x\ud800y\udc00z", "b": "\ud83d\ude42"}
  expected = {"a": "x\ufffdy\ufffdz", "b": "🙂"}
  assert page.save(content).content == expected
  assert page.reload().draft.content == expected


def test_full_items_are_closed_together(new_store):
  crew = add_users(new_store, 2)
  add_items(new_store, 3, overlap=2)
  for user in crew:
    for _ in range(2):
      work = assignment.next_item(new_store, user.id, RULES, NOW)
      _Page(new_store, user, work).submit({"a": 1})
  with new_store.read() as connection:
    items = list(
      connection.execute(sa.select(schema.labels.c.item_id)).scalars()
    )
  full = sum(items.count(item) == 2 for item in set(items))
  assert full == 1 and len(items) == 4
  assert labels.close_full_items(new_store, NOW) == full
  assert labels.close_full_items(new_store, NOW) == 0


def test_an_item_is_full_when_both_groups_have_filled_their_places(new_store):
  add_items(new_store, overlap=1)
  hal = add_user(new_store, "Hal", held_out=True)
  ann = add_user(new_store, "Ann")

  def label(user):
    work = assignment.next_item(new_store, user.id, RULES, NOW)
    _Page(new_store, user, work).submit({"a": 1})

  label(hal)
  assert labels.close_full_items(new_store, NOW) == 0
  label(ann)
  assert labels.close_full_items(new_store, NOW) == 1
  add_items(new_store, overlap=1)
  label(ann)
  assert labels.close_full_items(new_store, NOW) == 0
  # Nobody is left to fill a held-out place.
  users.update_user(new_store, hal.id, NOW, active=False)
  assert labels.close_full_items(new_store, NOW) == 1


def test_a_reviewer_adjudicates(page):
  reviewer = add_user(page.store, "Rita", "reviewer")
  item = page.work.item_id
  assert labels.get_adjudication(page.store, item) is None
  for now, replaces in ((NOW, None), (NOW + 1, NOW)):
    content = {"at": now}
    arguments = (page.store, reviewer.id, item, content, now)
    assert _code(labels.adjudicate, *arguments, replaces=7.0) == (
      "already_decided"
    )
    done = labels.adjudicate(*arguments, replaces=replaces)
    assert labels.get_adjudication(page.store, item) == done
    assert done == labels.Adjudication(item, content, reviewer.id, now)
  adjudicate = labels.adjudicate
  assert (
    _code(adjudicate, page.store, page.user.id, item, {}, NOW) == "not_allowed"
  )
  for other in (item + 1, 0, 2**64):
    assert (
      _code(adjudicate, page.store, reviewer.id, other, {}, NOW) == "not_found"
    )
    assert labels.get_adjudication(page.store, other) is None
    assert labels.labels_of_item(page.store, other) == []
    assert _code(labels.close_item, page.store, other, NOW) == "not_found"
    assert _code(labels.reopen_item, page.store, other) == "not_found"
