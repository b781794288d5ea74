"""Which labeler gets which item, and how long a place is kept."""

import collections
import concurrent.futures
import multiprocessing

import pytest
import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, labels, schema, store
from instructgpt_jax.labeling.people import users
from tests.labeling.made import NOW, add_items, add_user, add_users

RULES = assignment.Rules(lock_seconds=100.0, seed=3)


def _code(function, *arguments, **options):
  with pytest.raises(UserError) as error:
    function(*arguments, **options)
  return error.value.code


def _next(opened, user, now=NOW, **options):
  return assignment.next_item(opened, user.id, RULES, now, **options)


def _submit(opened, user, work, now=NOW):
  return labels.submit(
    opened,
    labels.Save(
      user.id, work.assignment_id, {"by": user.name}, work.draft.revision
    ),
    RULES,
    now,
  )


def _labels_by_item(opened):
  with opened.read() as connection:
    rows = connection.execute(
      sa.select(schema.labels.c.item_id, schema.labels.c.user_id)
    ).all()
  assert len(rows) == len(set(rows))
  return collections.Counter(item for item, _ in rows)


def test_a_labeler_gets_what_a_page_may_show(new_store):
  user = add_user(new_store)
  [item] = add_items(new_store, gold={"ranks": [1, 2, 3]})
  add_items(new_store)
  work = _next(new_store, user)
  assert work.item_id == item + 1
  assert set(work.payload) == {"turns", "completions"}
  assert sorted(work.display_order) == [0, 1, 2]
  assert (work.task, work.kind, work.state) == (
    "ranking",
    "generation",
    "open",
  )
  assert (work.draft.content, work.draft.revision, work.label) == ({}, 0, None)
  assert work.locked_until == NOW + 100 and not work.closed
  assert "stage" not in repr(work)


def test_held_out_labelers_have_places_of_their_own(new_store):
  [item] = add_items(new_store, overlap=1)
  users = [
    add_user(new_store, f"{held_out} {i}", held_out=held_out)
    for held_out in (True, False)
    for i in range(2)
  ]
  works = [_next(new_store, user) for user in users]
  assert [work and work.item_id for work in works] == [item, None, item, None]
  for user, work in zip(users, works, strict=True):
    if work:
      _submit(new_store, user, work)
  assert _labels_by_item(new_store) == {item: 2}
  assert not any(_next(new_store, user) for user in users)
  # An expired lock is lost to a labeler of the same group only.
  [item] = add_items(new_store, overlap=1)
  late = _next(new_store, users[2])
  assert _next(new_store, users[0], NOW + 1000).item_id == item
  _submit(new_store, users[2], late, NOW + 1000)
  assert _labels_by_item(new_store)[item] == 1


def test_an_open_item_is_resumed(new_store):
  user = add_user(new_store)
  add_items(new_store, 3)
  first = _next(new_store, user)
  labels.save_draft(
    new_store,
    labels.Save(user.id, first.assignment_id, {"a": 1}, 0),
    RULES,
    NOW,
  )
  for now in (NOW + 50, NOW + 1000):  # the lock is live, and has expired
    again = _next(new_store, user, now)
    assert again.assignment_id == first.assignment_id
    assert again.display_order == first.display_order
    assert again.draft.content == {"a": 1}
    assert again.locked_until == now + 100


def test_items_with_the_fewest_labels_come_first(new_store):
  users = add_users(new_store, 3)
  items = add_items(new_store, 2, overlap=3)
  works = [_next(new_store, user) for user in users]
  assert [w.item_id for w in works] == [items[0], items[1], items[0]]
  for user, work in zip(users, works, strict=True):
    _submit(new_store, user, work)
  assert _next(new_store, users[0]).item_id == items[1]


def test_each_item_gets_its_overlap_and_no_labeler_one_twice(new_store):
  users = add_users(new_store, 4)
  add_items(new_store, 7, overlap=3)
  done = 0
  while True:
    works = [(user, _next(new_store, user)) for user in users]
    works = [(user, work) for user, work in works if work is not None]
    if not works:
      break
    for user, work in works:
      _submit(new_store, user, work)
      done += 1
  assert done == 21
  assert set(_labels_by_item(new_store).values()) == {3}


def _race(opened, user_id):
  """Labels until there is nothing to do; returns the numbers of items."""
  items = []
  while True:
    work = assignment.next_item(opened, user_id, RULES, NOW)
    if work is None:
      return items
    labels.submit(
      opened,
      labels.Save(user_id, work.assignment_id, {"by": user_id}, 0),
      RULES,
      NOW,
    )
    items.append(work.item_id)


def test_threads_race_for_the_last_places(new_store):
  users = add_users(new_store, 8)
  add_items(new_store, 10, overlap=3)
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    items = list(threads.map(lambda u: _race(new_store, u.id), users))
  assert sum(map(len, items)) == 30
  assert all(len(numbers) == len(set(numbers)) for numbers in items)
  assert set(_labels_by_item(new_store).values()) == {3}


def _race_in_process(path, user_id, barrier):
  opened = store.open_store(path)
  barrier.wait()
  items = _race(opened, user_id)
  opened.close()
  return items


def test_processes_race_for_the_last_places(new_store, tmp_path):
  users = add_users(new_store, 3)
  add_items(new_store, 6, overlap=2)
  context = multiprocessing.get_context("spawn")
  with context.Manager() as manager:
    barrier = manager.Barrier(len(users))
    with concurrent.futures.ProcessPoolExecutor(
      len(users), mp_context=context
    ) as processes:
      path = str(tmp_path / "labels.db")
      futures = [
        processes.submit(_race_in_process, path, user.id, barrier)
        for user in users
      ]
      items = [future.result() for future in futures]
  assert sum(map(len, items)) == 12
  assert set(_labels_by_item(new_store).values()) == {2}


def test_one_labeler_in_two_windows_gets_one_item(new_store):
  user = add_user(new_store)
  add_items(new_store, 5)
  with concurrent.futures.ThreadPoolExecutor(6) as threads:
    works = list(threads.map(lambda _: _next(new_store, user), range(12)))
  assert len({work.assignment_id for work in works}) == 1


def test_a_place_is_free_when_its_lock_expires(new_store):
  ann, bea = add_users(new_store, 2)
  add_items(new_store)
  first = _next(new_store, ann)
  assert _next(new_store, bea, NOW + 99) is None
  second = _next(new_store, bea, NOW + 100)
  assert second.item_id == first.item_id
  # Ann's text is kept, and submitting it is refused.
  draft = labels.save_draft(
    new_store,
    labels.Save(ann.id, first.assignment_id, {"a": 1}, 0),
    RULES,
    NOW + 101,
  )
  assert not draft.has_place and draft.revision == 1
  with pytest.raises(UserError) as error:
    labels.submit(
      new_store,
      labels.Save(ann.id, first.assignment_id, {"a": 2}, 1),
      RULES,
      NOW + 102,
    )
  assert error.value.code == "place_taken"
  work = assignment.get_work(new_store, ann.id, first.assignment_id, NOW + 103)
  assert work.draft.content == {"a": 2} and not work.draft.has_place
  assert _next(new_store, ann, NOW + 103) is None
  # Bea's lock expires in turn: Ann finds her text.
  again = _next(new_store, ann, NOW + 201)
  assert again.draft.content == {"a": 2} and again.draft.has_place
  assert _code(_submit, new_store, bea, second, NOW + 202) == "place_taken"
  _submit(new_store, ann, again, NOW + 203)
  assert _next(new_store, bea, NOW + 1000) is None
  assert _labels_by_item(new_store) == {first.item_id: 1}


def test_a_saved_draft_keeps_the_place(new_store):
  ann, bea = add_users(new_store, 2)
  add_items(new_store)
  work = _next(new_store, ann)
  for i in range(5):
    now = NOW + 90 * (i + 1)
    draft = labels.save_draft(
      new_store,
      labels.Save(ann.id, work.assignment_id, {"a": i}, i),
      RULES,
      now,
    )
    assert draft.has_place
    assert _next(new_store, bea, now + 99) is None


def test_an_expired_lock_that_nobody_took_can_be_submitted(new_store):
  user = add_user(new_store)
  add_items(new_store)
  work = _next(new_store, user)
  _submit(new_store, user, work, NOW + 10_000)
  assert _labels_by_item(new_store) == {work.item_id: 1}


def test_locks_survive_a_clock_that_is_put_back(new_store):
  ann, bea = add_users(new_store, 2)
  add_items(new_store)
  work = _next(new_store, ann)
  assert _next(new_store, bea, NOW - 3600) is None
  labels.save_draft(
    new_store, labels.Save(ann.id, work.assignment_id, {}, 0), RULES, NOW - 3600
  )
  # One of another year does not occupy the place for a year.
  later = NOW - 365 * 86400.0
  assert _next(new_store, bea, later) is not None


def test_skipping_frees_the_place_and_needs_a_reason(new_store):
  ann, bea = add_users(new_store, 2)
  add_items(new_store)
  work = _next(new_store, ann)
  for reason in ("", "  \n", "x" * 2001):
    assert (
      _code(assignment.skip, new_store, ann.id, work.assignment_id, reason, NOW)
      == "bad_reason"
    )
  assignment.skip(
    new_store, ann.id, work.assignment_id, " not \0 English\ud800 ", NOW
  )
  work = assignment.get_work(new_store, ann.id, work.assignment_id, NOW)
  assert (work.state, work.reason) == ("skipped", "not \ufffd English?")
  assert _next(new_store, ann, NOW + 1000) is None
  assert (
    _code(
      labels.save_draft,
      new_store,
      labels.Save(ann.id, work.assignment_id, {}, 0),
      RULES,
      NOW,
    )
    == "skipped"
  )
  assert _code(_submit, new_store, ann, work) == "skipped"
  assert _next(new_store, bea) is not None
  undo = assignment.undo_skip
  assert (
    _code(undo, new_store, ann.id, work.assignment_id, RULES, NOW)
    == "place_taken"
  )
  work = undo(new_store, ann.id, work.assignment_id, RULES, NOW + 100)
  assert (work.state, work.reason) == ("open", None)
  assert (
    _code(undo, new_store, ann.id, work.assignment_id, RULES, NOW)
    == "not_skipped"
  )
  _submit(new_store, ann, work, NOW + 101)
  assert (
    _code(assignment.skip, new_store, ann.id, work.assignment_id, "late", NOW)
    == "already_submitted"
  )


def test_work_of_others_does_not_exist(new_store):
  ann, bea = add_users(new_store, 2)
  add_items(new_store)
  number = _next(new_store, ann).assignment_id
  for other in (number, number + 1, 0, -1, 2**63, 2**100):
    for function in (
      lambda other=other: assignment.get_work(new_store, bea.id, other, NOW),
      lambda other=other: assignment.skip(new_store, bea.id, other, "r", NOW),
      lambda other=other: assignment.undo_skip(
        new_store, bea.id, other, RULES, NOW
      ),
      lambda other=other: labels.save_draft(
        new_store, labels.Save(bea.id, other, {}, 0), RULES, NOW
      ),
      lambda other=other: labels.submit(
        new_store, labels.Save(bea.id, other, {}, 0), RULES, NOW
      ),
      lambda other=other: labels.withdraw(new_store, bea.id, other, RULES, NOW),
    ):
      assert _code(function) == "not_found"
  assert assignment.list_work(new_store, bea.id, NOW) == []


def test_own_work_is_listed_in_pages(new_store):
  user = add_user(new_store)
  add_items(new_store, 5)
  for _ in range(5):
    _submit(new_store, user, _next(new_store, user))
  pages, before = [], None
  while page := assignment.list_work(
    new_store, user.id, NOW, before=before, limit=2
  ):
    pages.append([work.assignment_id for work in page])
    before = pages[-1][-1]
    assert all(work.label == {"by": user.name} for work in page)
  assert pages == [[5, 4], [3, 2], [1]]


def test_roles_have_their_tasks(new_store):
  for task in schema.TASKS:
    add_items(new_store, task=task, overlap=None)
  labeler = add_user(new_store, "Lea")
  candidate = add_user(new_store, "Carl", "candidate")
  assert _next(new_store, candidate).task == "screening"
  assert _code(_next, new_store, candidate, task="ranking") == "not_your_task"
  assert _code(_next, new_store, labeler, task="screening") == "not_your_task"
  assert _code(_next, new_store, labeler, task="x") == "not_your_task"
  tasks = []
  while work := _next(new_store, labeler):
    tasks.append(work.task)
    _submit(new_store, labeler, work)
  assert tasks == ["ranking", "demonstration", "comparison"]
  # One task at a time, also while an item of another is open.
  owner = add_user(new_store, "Olga", "owner")
  assert _next(new_store, owner, task="comparison").task == "comparison"
  assert _next(new_store, owner, task="ranking").task == "ranking"
  assert _next(new_store, owner, task="comparison").task == "comparison"


def test_items_without_overlap_are_for_all(new_store):
  add_items(new_store, 3, task="screening", overlap=None, gold={"x": 1})
  for user in add_users(new_store, 3, "candidate"):
    items = []
    while work := _next(new_store, user):
      items.append(work.item_id)
      _submit(new_store, user, work)
    assert items == [1, 2, 3]


def test_display_orders_are_random_and_stable(new_store):
  users = add_users(new_store, 60)
  add_items(new_store, 1, completions=3, overlap=None)
  orders = [tuple(_next(new_store, user).display_order) for user in users]
  counts = collections.Counter(orders)
  assert len(counts) == 6 and max(counts.values()) < 25
  again = [tuple(_next(new_store, user).display_order) for user in users]
  assert orders == again


def test_gold_items_are_mixed_in(new_store):
  user = add_user(new_store)
  add_items(new_store, 100)
  gold = set(add_items(new_store, 15, overlap=None, gold={"ranks": [1, 2, 3]}))
  rules = assignment.Rules(gold_share=0.2, seed=1)
  items = []
  while work := assignment.next_item(new_store, user.id, rules, NOW):
    items.append(work.item_id)
    _submit(new_store, user, work)
  assert len(items) == len(set(items))
  assert len(set(items) - gold) == 100  # gold items replace no work
  # 15 of about 25 draws; all of them are used before the end.
  assert 12 <= len(set(items) & gold) <= 15
  first = [item in gold for item in items[:50]]
  assert 3 <= sum(first) <= 15
  # A labeler without work gets no gold item either.
  assert assignment.next_item(new_store, user.id, rules, NOW) is None


def test_without_a_share_no_gold_item_is_offered(new_store):
  user = add_user(new_store)
  add_items(new_store, 2, overlap=None, gold={"ranks": [1, 2, 3]})
  assert _next(new_store, user) is None


def test_closed_items_are_not_offered(new_store):
  ann, bea = add_users(new_store, 2)
  [item] = add_items(new_store, overlap=2)
  work = _next(new_store, ann)
  labels.close_item(new_store, item, NOW)
  assert _next(new_store, bea) is None
  assert _next(new_store, ann) is None
  assert assignment.get_work(new_store, ann.id, work.assignment_id, NOW).closed
  labels.reopen_item(new_store, item)
  assert _next(new_store, bea) is not None
  assert _next(new_store, ann).assignment_id == work.assignment_id


def test_a_smaller_overlap_is_kept(new_store):
  users = add_users(new_store, 3)
  [item] = add_items(new_store, overlap=3)
  works = [_next(new_store, user) for user in users]
  _submit(new_store, users[0], works[0])
  with new_store.begin() as connection:
    connection.execute(sa.update(schema.items).values(overlap=1))
  assert _code(_submit, new_store, users[1], works[1]) == "place_taken"
  assert _next(new_store, users[2]) is None
  assert _labels_by_item(new_store) == {item: 1}


def test_a_user_who_is_not_active_gets_nothing(new_store):
  user = add_user(new_store)
  add_items(new_store)
  users.update_user(new_store, user.id, NOW, active=False)
  assert _code(_next, new_store, user) == "not_allowed"
