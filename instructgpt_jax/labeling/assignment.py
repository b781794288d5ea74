"""Decides which item a labeler gets, and keeps its place for a while.

An item has `overlap` places for training labelers and as many for held-out
ones. A submitted label occupies one, and an open assignment occupies one until
its lock expires. A labeler whose lock has expired
takes a place again by working on, unless all are taken.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import users
from instructgpt_jax.labeling.store import Store, is_id

# Tasks of each role, in the order in which they are offered.
TASKS_OF_ROLE = {
  "owner": ("ranking", "demonstration", "comparison"),
  "reviewer": ("ranking", "demonstration", "comparison"),
  "labeler": ("ranking", "demonstration", "comparison"),
  "candidate": ("screening",),
}
# Keys of a payload that no page may show.
HIDDEN_KEYS = ("sources", "origin")
MAX_REASON = 2000
# Longer locks were made before the clock was put back.
MAX_LOCK_SECONDS = 7 * 86400.0

_ITEMS, _ASSIGNMENTS, _DRAFTS, _LABELS = (
  schema.items,
  schema.assignments,
  schema.drafts,
  schema.labels,
)


@dataclasses.dataclass(frozen=True)
class Rules:
  """The project's settings of assignment.

  Attributes:
    lock_seconds: time without a saved draft after which a place is free; at
      most `MAX_LOCK_SECONDS`.
    gold_share: share of a labeler's items that are gold items, while there
      are any that the labeler has not had.
    seed: seed of display orders and of the positions of gold items.
  """

  lock_seconds: float = 1800.0
  gold_share: float = 0.0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Draft:
  """Content of a form; see `labels.save_draft`.

  Attributes:
    content: whatever the form has; {} before anything was saved.
    revision: number of saves so far; 0 before the first.
    saved_at: time of the last save, or None.
    has_place: whether a label can be submitted. False if the lock has expired
      and others have taken all places.
  """

  content: dict[str, Any]
  revision: int
  saved_at: float | None
  has_place: bool = True


@dataclasses.dataclass(frozen=True)
class Work:
  """An item in the hands of a labeler: all that a page may show.

  Attributes:
    assignment_id: number of the assignment.
    item_id: number of the item.
    task: one of `schema.TASKS`.
    kind: kind of prompt.
    payload: content of the item, without `HIDDEN_KEYS`.
    display_order: display_order[i] is the stored index of the completion that
      is shown at place i.
    state: "open", "submitted" or "skipped".
    closed: whether the item is closed, and the label cannot change.
    locked_until: time at which the place is free again.
    active_seconds: time that the labeler has worked on it so far.
    draft: content of the form, also of a submitted label that is edited.
    label: content of the submitted label, or None.
    reason: reason of a skipped one, or None.
  """

  assignment_id: int
  item_id: int
  task: str
  kind: str
  payload: dict[str, Any]
  display_order: list[int]
  state: str
  closed: bool
  locked_until: float
  active_seconds: float
  draft: Draft
  label: dict[str, Any] | None
  reason: str | None


def next_item(
  store: Store,
  user_id: int,
  rules: Rules,
  now: float,
  *,
  task: str | None = None,
) -> Work | None:
  """Returns the item that a labeler works on next, and locks a place of it.

  An open assignment of the labeler is resumed if it has a place. Otherwise it
  is an item with the fewest labels and locks among those that the labeler has
  not had, or a gold item.

  Args:
    store: open store.
    user_id: labeler.
    rules: settings of assignment.
    now: time.
    task: offer this task only; None offers all tasks of the labeler's role.

  Returns:
    The item, or None if there is nothing to do.

  Raises:
    UserError: the labeler is not active ("not_allowed"), or the role does not
      have the task ("not_your_task").
  """
  with store.begin() as connection:
    user = users.check_role(connection, user_id, *schema.ROLES)
    tasks = TASKS_OF_ROLE[user.role]
    if task is not None:
      if task not in tasks:
        raise UserError(
          f"the role {user.role} does not have the task {task}",
          fix=f"choose one of {', '.join(tasks)}",
          code="not_your_task",
        )
      tasks = (task,)
    assignment_id = _resumable(connection, user_id, tasks, now)
    if assignment_id is None:
      item_id = _choose(connection, user_id, tasks, rules, now)
      if item_id is None:
        return None
      assignment_id = _assign(connection, item_id, user_id, rules, now)
    extend_lock(connection, assignment_id, rules, now)
    return read_work(connection, user_id, assignment_id, now)


def get_work(
  store: Store, user_id: int, assignment_id: int, now: float
) -> Work:
  """Returns an assignment of a labeler in any state, and changes nothing.

  Raises:
    UserError: the labeler has no such assignment ("not_found").
  """
  with store.read() as connection:
    return read_work(connection, user_id, assignment_id, now)


def list_work(
  store: Store,
  user_id: int,
  now: float,
  *,
  before: int | None = None,
  limit: int = 50,
) -> list[Work]:
  """Returns a page of a labeler's assignments, newest first.

  Args:
    store: open store.
    user_id: labeler.
    now: time.
    before: assignments with smaller numbers only; None begins at the newest.
    limit: number of assignments.
  """
  query = _work_query().where(_ASSIGNMENTS.c.user_id == user_id)
  if before is not None and is_id(before):
    query = query.where(_ASSIGNMENTS.c.id < before)
  query = query.order_by(_ASSIGNMENTS.c.id.desc()).limit(limit)
  with store.read() as connection:
    rows = connection.execute(query).all()
    return [_work(connection, row, now) for row in rows]


def skip(
  store: Store, user_id: int, assignment_id: int, reason: str, now: float
) -> None:
  """Frees the place of an open assignment; it is not offered again.

  Skipping it once more replaces the reason.

  Raises:
    UserError: the labeler has no such assignment ("not_found"), it was
      submitted ("already_submitted"), or there is no reason or one that is
      too long ("bad_reason").
  """
  reason = _checked_reason(reason)
  with store.begin() as connection:
    if own_row(connection, user_id, assignment_id).state == "submitted":
      raise UserError(
        "a label was submitted",
        fix="take the label back first",
        code="already_submitted",
      )
    connection.execute(
      sa.update(_ASSIGNMENTS)
      .where(_ASSIGNMENTS.c.id == assignment_id)
      .values(state="skipped", reason=reason, locked_until=now)
    )


def undo_skip(
  store: Store, user_id: int, assignment_id: int, rules: Rules, now: float
) -> Work:
  """Takes a place of a skipped item again.

  Raises:
    UserError: the labeler has no such assignment ("not_found"), it is not
      skipped ("not_skipped"), all places are taken ("place_taken"), or the
      item is closed ("item_closed").
  """
  with store.begin() as connection:
    row = own_row(connection, user_id, assignment_id)
    if row.state != "skipped":
      raise UserError(
        "this item was not skipped", fix="reload the page", code="not_skipped"
      )
    check_not_closed(row)
    if not has_place(connection, row, now):
      raise place_taken()
    connection.execute(
      sa.update(_ASSIGNMENTS)
      .where(_ASSIGNMENTS.c.id == assignment_id)
      .values(state="open", reason=None)
    )
    extend_lock(connection, assignment_id, rules, now)
    return read_work(connection, user_id, assignment_id, now)


# For `labels`, within a transaction.


def own_row(
  connection: sa.Connection, user_id: int, assignment_id: int
) -> sa.Row:
  """Returns a labeler's assignment with the columns of its item and draft.

  Raises:
    UserError: the labeler has no such assignment ("not_found"). The text does
      not say whether another labeler has it.
  """
  row = None
  if is_id(assignment_id):
    row = connection.execute(
      _work_query().where(
        _ASSIGNMENTS.c.id == assignment_id, _ASSIGNMENTS.c.user_id == user_id
      )
    ).first()
  if row is None:
    raise UserError(
      "there is no such assignment",
      fix="choose one from the list of your work",
      code="not_found",
    )
  return row


def read_work(
  connection: sa.Connection, user_id: int, assignment_id: int, now: float
) -> Work:
  """Returns a labeler's assignment; see `get_work`."""
  return _work(connection, own_row(connection, user_id, assignment_id), now)


def has_place(connection: sa.Connection, row: sa.Row, now: float) -> bool:
  """Whether the labeler of an assignment has, or can take, a place."""
  if row.state == "submitted" or row.overlap is None:
    return True
  others = connection.execute(
    sa.select(sa.func.count())
    .select_from(_ASSIGNMENTS)
    .where(
      _ASSIGNMENTS.c.item_id == row.item_id,
      _ASSIGNMENTS.c.id != row.id,
      _takes_place(now),
      _is_in_group_of(row.user_id),
    )
  ).scalar_one()
  return others < row.overlap


def extend_lock(
  connection: sa.Connection, assignment_id: int, rules: Rules, now: float
) -> None:
  """Locks the place of an open assignment from now on."""
  seconds = min(rules.lock_seconds, MAX_LOCK_SECONDS)
  connection.execute(
    sa.update(_ASSIGNMENTS)
    .where(_ASSIGNMENTS.c.id == assignment_id)
    .values(locked_until=now + seconds)
  )


def check_not_closed(row: sa.Row) -> None:
  """Raises a UserError if the item of an assignment is closed."""
  if row.closed_at is not None:
    raise UserError(
      "this item is closed; labels cannot change",
      fix="ask a reviewer to open the item again",
      code="item_closed",
    )


def place_taken() -> UserError:
  """Returns the error of an item whose places are all taken."""
  return UserError(
    "others have labeled this item in the meantime",
    fix="continue with the next item; what you wrote is kept",
    code="place_taken",
  )


def _takes_place(now: float) -> sa.ColumnElement[bool]:
  """Returns the condition that an assignment occupies a place."""
  locked_until = _ASSIGNMENTS.c.locked_until
  return sa.or_(
    _ASSIGNMENTS.c.state == "submitted",
    sa.and_(
      _ASSIGNMENTS.c.state == "open",
      locked_until > now,
      locked_until <= now + 2 * MAX_LOCK_SECONDS,
    ),
  )


def _is_in_group_of(user_id: int) -> sa.ColumnElement[bool]:
  """Returns the condition that an assignment is of a labeler's own group.

  Held-out labelers have places of their own: they must not take those of
  labels that a model is trained on.
  """
  one, other = (schema.users.alias(name) for name in ("one", "other"))
  return (
    sa.select(one.c.id)
    .where(
      one.c.id == _ASSIGNMENTS.c.user_id,
      other.c.id == user_id,
      one.c.held_out == other.c.held_out,
    )
    .exists()
  )


def _resumable(
  connection: sa.Connection, user_id: int, tasks: Sequence[str], now: float
) -> int | None:
  """Returns an open assignment that has or can take a place, or None."""
  rows = connection.execute(
    _work_query()
    .where(
      _ASSIGNMENTS.c.user_id == user_id,
      _ASSIGNMENTS.c.state == "open",
      _ITEMS.c.closed_at.is_(None),
      _ITEMS.c.task.in_(tasks),
    )
    # A live lock first, then the one on which there is work.
    .order_by(
      _takes_place(now).desc(),
      _DRAFTS.c.saved_at.desc().nulls_last(),
      _ASSIGNMENTS.c.id,
    )
  ).all()
  for row in rows:
    if has_place(connection, row, now):
      return row.id
  return None


def _choose(
  connection: sa.Connection,
  user_id: int,
  tasks: Sequence[str],
  rules: Rules,
  now: float,
) -> int | None:
  """Returns an item that the labeler has not had, or None."""
  items = _available_items(user_id, tasks, now)
  offered = sa.case(
    {name: place for place, name in enumerate(tasks)}, value=items.c.task
  )
  regular = connection.execute(
    sa.select(items.c.id)
    .where(~items.c.is_gold)
    .order_by(offered, items.c.taken, items.c.id)
    .limit(1)
  ).scalar()
  if regular is None or rules.gold_share <= 0:
    return regular
  count = connection.execute(
    sa.select(sa.func.count())
    .select_from(_ASSIGNMENTS)
    .where(_ASSIGNMENTS.c.user_id == user_id)
  ).scalar_one()
  generator = random.Random(f"{rules.seed} gold {user_id} {count}")
  if generator.random() >= rules.gold_share:
    return regular
  gold = connection.execute(
    sa.select(items.c.id).where(items.c.is_gold).order_by(items.c.id)
  )
  gold = list(gold.scalars())
  return generator.choice(gold) if gold else regular


def _available_items(
  user_id: int, tasks: Sequence[str], now: float
) -> sa.Subquery:
  """Returns the items with a free place that a labeler has not had."""
  had = (
    sa.select(_ASSIGNMENTS.c.id)
    .where(
      _ASSIGNMENTS.c.item_id == _ITEMS.c.id, _ASSIGNMENTS.c.user_id == user_id
    )
    .exists()
  )
  count = (
    sa.select(sa.func.count())
    .select_from(_ASSIGNMENTS)
    .where(
      _ASSIGNMENTS.c.item_id == _ITEMS.c.id,
      _takes_place(now),
      _is_in_group_of(user_id),
    )
    .scalar_subquery()
  )
  items = (
    sa.select(
      _ITEMS.c.id,
      _ITEMS.c.task,
      _ITEMS.c.overlap,
      # Gold answers of screening items are not mixed in; all are screened.
      sa.and_(_ITEMS.c.gold.is_not(None), _ITEMS.c.task != "screening").label(
        "is_gold"
      ),
      sa.case((_ITEMS.c.overlap.is_(None), 0), else_=count).label("taken"),
    )
    .where(_ITEMS.c.closed_at.is_(None), _ITEMS.c.task.in_(tasks), ~had)
    .subquery()
  )
  return (
    sa.select(items)
    .where(sa.or_(items.c.overlap.is_(None), items.c.taken < items.c.overlap))
    .subquery()
  )


def _assign(
  connection: sa.Connection,
  item_id: int,
  user_id: int,
  rules: Rules,
  now: float,
) -> int:
  payload = connection.execute(
    sa.select(_ITEMS.c.payload).where(_ITEMS.c.id == item_id)
  ).scalar_one()
  order = list(range(len(payload.get("completions") or ())))
  random.Random(f"{rules.seed} order {item_id} {user_id}").shuffle(order)
  return connection.execute(
    sa.insert(_ASSIGNMENTS)
    .values(
      item_id=item_id,
      user_id=user_id,
      state="open",
      display_order=order,
      locked_until=now,
      active_seconds=0.0,
      active_at=now,
      created_at=now,
    )
    .returning(_ASSIGNMENTS.c.id)
  ).scalar_one()


def _work_query() -> sa.Select:
  return (
    sa.select(
      _ASSIGNMENTS,
      _ITEMS.c.task,
      _ITEMS.c.kind,
      _ITEMS.c.payload,
      _ITEMS.c.overlap,
      _ITEMS.c.closed_at,
      _DRAFTS.c.content.label("draft_content"),
      _DRAFTS.c.revision.label("draft_revision"),
      _DRAFTS.c.saved_at.label("draft_saved_at"),
      _LABELS.c.content.label("label_content"),
    )
    .join(_ITEMS, _ITEMS.c.id == _ASSIGNMENTS.c.item_id)
    .outerjoin(_DRAFTS, _DRAFTS.c.assignment_id == _ASSIGNMENTS.c.id)
    .outerjoin(_LABELS, _LABELS.c.assignment_id == _ASSIGNMENTS.c.id)
  )


def draft_of(row: sa.Row, place: bool) -> Draft:
  """Returns the draft of an assignment; empty if nothing was saved."""
  return Draft(
    {} if row.draft_content is None else row.draft_content,
    row.draft_revision or 0,
    row.draft_saved_at,
    place,
  )


def _work(connection: sa.Connection, row: sa.Row, now: float) -> Work:
  return Work(
    assignment_id=row.id,
    item_id=row.item_id,
    task=row.task,
    kind=row.kind,
    payload={k: v for k, v in row.payload.items() if k not in HIDDEN_KEYS},
    display_order=row.display_order,
    state=row.state,
    closed=row.closed_at is not None,
    locked_until=row.locked_until,
    active_seconds=row.active_seconds,
    draft=draft_of(row, has_place(connection, row, now)),
    label=row.label_content,
    reason=row.reason,
  )


def _checked_reason(reason: str) -> str:
  text = reason.encode("utf-8", "replace").decode("utf-8")
  text = text.replace("\0", "\ufffd").strip()
  if text and len(text) <= MAX_REASON:
    return text
  problem = "is too long" if text else "is missing"
  raise UserError(
    f"the reason {problem}",
    field="reason",
    fix=f"write a reason of at most {MAX_REASON} characters",
    code="bad_reason",
  )
