"""Random work of several labelers with a clock that jumps."""

import collections
import random

import pytest
import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, labels, schema
from instructgpt_jax.labeling.people import users
from tests.labeling.made import NOW, add_items, add_users

RULES = assignment.Rules(lock_seconds=50.0, gold_share=0.3)
CODES = {
  "already_submitted",
  "item_closed",
  "not_allowed",
  "not_skipped",
  "not_submitted",
  "place_taken",
  "skipped",
  "stale_draft",
}


def _rows(connection, table):
  return connection.execute(sa.select(table)).all()


def _check(store, drafts):
  """Checks what must hold after every call."""
  with store.read() as connection:
    items = {row.id: row for row in _rows(connection, schema.items)}
    assignments = _rows(connection, schema.assignments)
    rows = _rows(connection, schema.labels)
    history = _rows(connection, schema.label_history)
    newest = {
      row.assignment_id: row for row in _rows(connection, schema.drafts)
    }
  pairs = [(row.item_id, row.user_id) for row in assignments]
  assert len(pairs) == len(set(pairs))
  submitted = {row.id for row in assignments if row.state == "submitted"}
  assert {row.assignment_id for row in rows} == submitted
  for item, count in collections.Counter(row.item_id for row in rows).items():
    overlap = items[item].overlap
    assert overlap is None or count <= overlap
  revisions = collections.defaultdict(list)
  for row in history:
    revisions[row.assignment_id].append(row)
  for number, changes in revisions.items():
    assert [c.revision for c in changes] == list(range(1, len(changes) + 1))
    assert (changes[-1].action == "withdrawn") == (number not in submitted)
  for row in rows:
    assert row.content == revisions[row.assignment_id][-1].content
    assert row.revision == len(revisions[row.assignment_id])
  # The newest text of every form, also of one that was refused as too late.
  for number, content in drafts.items():
    assert newest[number].content == content


@pytest.mark.parametrize("seed", range(3))
def test_what_must_hold_holds_after_random_calls(new_store, seed):
  generator = random.Random(seed)
  crew = [user.id for user in add_users(new_store, 4)]
  items = [
    *add_items(new_store, 2, overlap=1),
    *add_items(new_store, 2, overlap=2),
    *add_items(new_store, 1, overlap=None, gold={"ranks": [1, 2, 3]}),
  ]
  now, owners, drafts = NOW, {1: crew[0]}, {}
  seen_codes = collections.Counter()

  def content():
    return {"n": generator.randrange(10**9)}

  def step():
    number, user = generator.choice(list(owners.items()))
    act = generator.choice(
      "next next next save save submit submit submit skip undo withdraw"
      " close open active other".split()
    )
    if act in ("next", "active", "other"):
      user = generator.choice(crew)
    mine = (new_store, user, number)
    if act == "next":
      work = assignment.next_item(new_store, user, RULES, now)
      if work is not None:
        owners[work.assignment_id] = user
    elif act in ("save", "submit", "other"):
      work = assignment.get_work(*mine, now)
      revision = work.draft.revision - generator.choice((0, 0, 0, 1))
      text = content()
      function = labels.save_draft if act == "save" else labels.submit
      try:
        function(new_store, labels.Save(*mine[1:], text, revision), RULES, now)
      except UserError as error:
        if error.code != "place_taken":
          raise
        drafts[number] = text
        raise
      drafts[number] = text
    elif act == "skip":
      assignment.skip(*mine, "reason", now)
    elif act == "undo":
      assignment.undo_skip(*mine, RULES, now)
    elif act == "withdraw":
      labels.withdraw(*mine, RULES, now)
    elif act == "close":
      if generator.random() < 0.2:
        labels.close_item(new_store, generator.choice(items), now)
    elif act == "open":
      labels.reopen_item(new_store, generator.choice(items))
    else:
      users.update_user(new_store, user, now, active=generator.random() < 0.8)

  for _ in range(150):
    now += generator.choice((0, 0, 1, 5, 30, 60, 60, -20, -1000))
    try:
      step()
      seen_codes["success"] += 1
    except UserError as error:
      seen_codes[error.code] += 1
    _check(new_store, drafts)
  assert set(seen_codes) <= CODES | {"success", "not_found"}
  assert seen_codes["success"] > 50
