"""Drafts, labels and their history, adjudication, and closing of items.

What a function has returned is on the disk. Revision numbers detect a page that
is older than what was saved from another one; it is refused, with the newer
draft, and overwrites nothing. Contents are those that `forms` has validated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, schema
from instructgpt_jax.labeling.assignment import Draft, Rules, Work
from instructgpt_jax.labeling.content import checked_content, is_same
from instructgpt_jax.labeling.people import users
from instructgpt_jax.labeling.store import Store, is_id

_ASSIGNMENTS, _DRAFTS, _LABELS, _HISTORY = (
  schema.assignments,
  schema.drafts,
  schema.labels,
  schema.label_history,
)


class StaleDraft(UserError):
  """A save from a page that is older than the newest draft.

  Attributes:
    draft: the newest draft.
  """

  def __init__(self, draft: Draft):
    super().__init__(
      "this page is older than what was saved from another one",
      fix="reload the page; it then shows the newer version",
      code="stale_draft",
    )
    self.draft = draft


@dataclasses.dataclass(frozen=True)
class Label:
  """A label that counts.

  Attributes:
    id: number of the label.
    assignment_id: number of the assignment.
    item_id: number of the item.
    user_id: labeler.
    content: validated content of the form.
    instructions_version: version of the instructions that the labeler read.
    revision: 1, plus the number of changes.
    seconds: active time on the item.
    submitted_at: time of the first submission.
    revised_at: time of the last change, or None.
    draft_revision: revision of the draft, for the next save.
  """

  id: int
  assignment_id: int
  item_id: int
  user_id: int
  content: dict[str, Any]
  instructions_version: int | None
  revision: int
  seconds: float
  submitted_at: float
  revised_at: float | None
  draft_revision: int


@dataclasses.dataclass(frozen=True)
class Adjudication:
  """A reviewer's final label of an item."""

  item_id: int
  content: dict[str, Any]
  user_id: int
  at: float


class Save(NamedTuple):
  """What a page sends when it saves a draft, or submits a label.

  Attributes:
    user_id: labeler.
    assignment_id: assignment of the labeler.
    content: content of the form. A draft is any JSON object, complete or not; a
      label's has been validated.
    revision: revision of the draft that the page has.
    active_seconds: active time since the last save; at most the time that has
      passed is counted.
  """

  user_id: int
  assignment_id: int
  content: dict[str, Any]
  revision: int
  active_seconds: float = 0.0


def save_draft(store: Store, save: Save, rules: Rules, now: float) -> Draft:
  """Saves what a form has, and extends the lock.

  A draft of a submitted label is an edit that counts once it is submitted. A
  repeated save of the same content succeeds.

  Returns:
    The draft with its new revision. Its `has_place` is False, and the draft is
    saved, if the lock had expired and others have taken all places.

  Raises:
    StaleDraft: a newer draft was saved from another page.
    UserError: the labeler has no such assignment ("not_found"), it was skipped
      ("skipped"), the item is closed ("item_closed"), or the content is no
      JSON object or too large ("bad_content").
  """
  content = checked_content(save.content)
  with store.begin() as connection:
    row = _editable_row(connection, save.user_id, save.assignment_id)
    place = assignment.has_place(connection, row, now)
    draft = assignment.draft_of(row, place)
    if save.revision != draft.revision:
      if is_same(content, draft.content):
        return draft  # saved before, and the answer was lost
      raise StaleDraft(draft)
    _count_seconds(connection, row, save.active_seconds, now)
    if row.state == "open" and place:
      assignment.extend_lock(connection, row.id, rules, now)
    return _write_draft(connection, row, content, now, place)


def submit(
  store: Store,
  save: Save,
  rules: Rules,
  now: float,
  *,
  instructions_version: int | None = None,
) -> Label:
  """Submits a label, or a new revision of one that was submitted.

  A repeated submission of the same content succeeds and changes nothing.

  Args:
    store: open store.
    save: what the page sends.
    rules: settings of assignment.
    now: time.
    instructions_version: version of the instructions that the page shows.

  Raises:
    StaleDraft: a newer draft was saved from another page.
    UserError: as for `save_draft`, or the lock has expired and others have
      taken all places ("place_taken"; the draft is kept).
  """
  content = checked_content(save.content)
  with store.begin() as connection:
    row = _editable_row(connection, save.user_id, save.assignment_id)
    place = assignment.has_place(connection, row, now)
    draft = assignment.draft_of(row, place)
    is_current = save.revision == draft.revision
    if not is_current and not is_same(content, draft.content):
      raise StaleDraft(draft)
    unchanged = row.state == "submitted" and is_same(content, row.label_content)
    if is_current:
      _count_seconds(connection, row, save.active_seconds, now)
      if not (unchanged and is_same(content, draft.content)):
        _write_draft(connection, row, content, now, place)
    if place and not unchanged:
      _check_instructions(connection, instructions_version)
      _write_label(connection, row, content, instructions_version, now)
    if place:
      return _label(connection, save.assignment_id)
  # After the block, so that the draft is kept.
  raise assignment.place_taken()


def withdraw(
  store: Store, user_id: int, assignment_id: int, rules: Rules, now: float
) -> Work:
  """Takes a submitted label back; the form shows what it showed last.

  The label stays in the history. The assignment is open and keeps its place
  until its lock expires.

  Raises:
    UserError: the labeler has no such assignment ("not_found"), it is not
      submitted ("not_submitted"), or the item is closed ("item_closed").
  """
  with store.begin() as connection:
    row = assignment.own_row(connection, user_id, assignment_id)
    if row.state != "submitted":
      raise UserError(
        "no label was submitted", fix="reload the page", code="not_submitted"
      )
    assignment.check_not_closed(row)
    label = _label(connection, assignment_id)
    _write_history(
      connection,
      assignment_id,
      "withdrawn",
      label.content,
      label.instructions_version,
      now,
    )
    connection.execute(sa.delete(_LABELS).where(_LABELS.c.id == label.id))
    connection.execute(
      sa.update(_ASSIGNMENTS)
      .where(_ASSIGNMENTS.c.id == assignment_id)
      .values(state="open")
    )
    assignment.extend_lock(connection, assignment_id, rules, now)
    return assignment.read_work(connection, user_id, assignment_id, now)


def labels_of_item(store: Store, item_id: int) -> list[Label]:
  """Returns the labels of an item in the order of their labelers."""
  if not is_id(item_id):
    return []
  with store.read() as connection:
    rows = connection.execute(
      _label_query()
      .where(_LABELS.c.item_id == item_id)
      .order_by(_LABELS.c.user_id)
    )
    return [Label(**row._mapping) for row in rows]


def close_item(store: Store, item_id: int, now: float) -> None:
  """Ends work on an item: its labels cannot change, drafts are kept.

  Raises:
    UserError: there is no such item ("not_found").
  """
  _set_closed(store, item_id, now)


def close_full_items(store: Store, now: float) -> int:
  """Closes items whose places are all submitted; returns how many.

  Held-out labelers have places of their own, at most one for each of them.
  """
  items, people = schema.items, schema.users

  def count(held_out: bool) -> Any:
    return (
      sa.select(sa.func.count())
      .select_from(_LABELS.join(people, people.c.id == _LABELS.c.user_id))
      .where(_LABELS.c.item_id == items.c.id, people.c.held_out.is_(held_out))
      .scalar_subquery()
    )

  held_out_labelers = (
    sa.select(sa.func.count())
    .where(people.c.held_out, people.c.active, people.c.role == "labeler")
    .scalar_subquery()
  )
  with store.begin() as connection:
    done = connection.execute(
      sa.update(items)
      .where(
        items.c.closed_at.is_(None),
        count(False) >= items.c.overlap,
        sa.or_(
          count(True) >= items.c.overlap, count(True) >= held_out_labelers
        ),
      )
      .values(closed_at=now)
    )
    return done.rowcount


def reopen_item(store: Store, item_id: int) -> None:
  """Allows work on a closed item again.

  Raises:
    UserError: there is no such item ("not_found").
  """
  _set_closed(store, item_id, None)


def adjudicate(
  store: Store,
  user_id: int,
  item_id: int,
  content: dict[str, Any],
  now: float,
  *,
  replaces: float | None = None,
) -> Adjudication:
  """Stores a reviewer's final label of an item.

  Args:
    store: open store.
    user_id: reviewer.
    item_id: the item.
    content: validated content of the form.
    now: time.
    replaces: time of the final label that the page shows; None for none.

  Raises:
    UserError: the user is no reviewer or owner ("not_allowed"), there is no
      such item ("not_found"), the content is no JSON object or too large
      ("bad_content"), or another final label was saved since the page was
      opened ("already_decided").
  """
  content = checked_content(content)
  table = schema.adjudications
  with store.begin() as connection:
    users.check_role(connection, user_id, "owner", "reviewer")
    _check_item(connection, item_id)
    query = sa.select(table.c.at).where(table.c.item_id == item_id)
    if connection.scalar(query) != replaces:
      raise UserError(
        "another final label was saved in the meantime",
        fix="save again to replace it",
        code="already_decided",
      )
    connection.execute(sa.delete(table).where(table.c.item_id == item_id))
    result = Adjudication(item_id, content, user_id, now)
    connection.execute(sa.insert(table).values(**dataclasses.asdict(result)))
    return result


def get_adjudication(store: Store, item_id: int) -> Adjudication | None:
  """Returns the final label of an item, or None."""
  table = schema.adjudications
  if not is_id(item_id):
    return None
  with store.read() as connection:
    row = connection.execute(
      sa.select(table).where(table.c.item_id == item_id)
    ).first()
  return None if row is None else Adjudication(**row._mapping)


# Within a transaction.


def _editable_row(
  connection: sa.Connection, user_id: int, assignment_id: int
) -> sa.Row:
  """Returns a labeler's assignment whose content can change."""
  row = assignment.own_row(connection, user_id, assignment_id)
  assignment.check_not_closed(row)
  if row.state == "skipped":
    raise UserError(
      "this item was skipped",
      fix="undo the skip in the list of your work",
      code="skipped",
    )
  return row


def _write_draft(
  connection: sa.Connection,
  row: sa.Row,
  content: dict[str, Any],
  now: float,
  place: bool,
) -> Draft:
  draft = Draft(content, (row.draft_revision or 0) + 1, now, place)
  values = dict(content=content, revision=draft.revision, saved_at=now)
  if row.draft_revision is None:
    statement = sa.insert(_DRAFTS).values(assignment_id=row.id, **values)
  else:
    statement = (
      sa.update(_DRAFTS)
      .where(_DRAFTS.c.assignment_id == row.id)
      .values(**values)
    )
  connection.execute(statement)
  return draft


def _count_seconds(
  connection: sa.Connection, row: sa.Row, seconds: float, now: float
) -> None:
  """Adds active time; at most the time that has passed since the last."""
  passed = max(0.0, now - row.active_at)
  # Comparisons with NaN are false.
  counted = min(seconds, passed) if seconds > 0 else 0.0
  connection.execute(
    sa.update(_ASSIGNMENTS)
    .where(_ASSIGNMENTS.c.id == row.id)
    .values(active_seconds=row.active_seconds + counted, active_at=now)
  )


def _write_label(
  connection: sa.Connection,
  row: sa.Row,
  content: dict[str, Any],
  version: int | None,
  now: float,
) -> None:
  """Writes a new label or a new revision of it, and its history."""
  is_new = row.state != "submitted"
  revision = _write_history(
    connection,
    row.id,
    "submitted" if is_new else "revised",
    content,
    version,
    now,
  )
  seconds = connection.execute(
    sa.select(_ASSIGNMENTS.c.active_seconds).where(_ASSIGNMENTS.c.id == row.id)
  ).scalar_one()
  values = dict(
    content=content,
    instructions_version=version,
    revision=revision,
    seconds=seconds,
  )
  if is_new:
    connection.execute(
      sa.insert(_LABELS).values(
        assignment_id=row.id,
        item_id=row.item_id,
        user_id=row.user_id,
        submitted_at=now,
        **values,
      )
    )
    connection.execute(
      sa.update(_ASSIGNMENTS)
      .where(_ASSIGNMENTS.c.id == row.id)
      .values(state="submitted")
    )
  else:
    connection.execute(
      sa.update(_LABELS)
      .where(_LABELS.c.assignment_id == row.id)
      .values(revised_at=now, **values)
    )


def _write_history(
  connection: sa.Connection,
  assignment_id: int,
  action: str,
  content: dict[str, Any],
  version: int | None,
  now: float,
) -> int:
  """Adds a line to the history of a label; returns its revision."""
  newest = connection.execute(
    sa.select(sa.func.max(_HISTORY.c.revision)).where(
      _HISTORY.c.assignment_id == assignment_id
    )
  ).scalar()
  revision = (newest or 0) + 1
  connection.execute(
    sa.insert(_HISTORY).values(
      assignment_id=assignment_id,
      revision=revision,
      action=action,
      content=content,
      instructions_version=version,
      at=now,
    )
  )
  return revision


def _check_instructions(connection: sa.Connection, version: int | None) -> None:
  if version is None:
    return
  column = schema.instructions.c.version
  if (
    not is_id(version)
    or not connection.execute(
      sa.select(column).where(column == version)
    ).first()
  ):
    raise UserError(
      f"there are no instructions of version {version}",
      field="instructions_version",
      fix="reload the page",
      code="no_instructions",
    )


def _label_query() -> sa.Select:
  return sa.select(_LABELS, _DRAFTS.c.revision.label("draft_revision")).join(
    _DRAFTS, _DRAFTS.c.assignment_id == _LABELS.c.assignment_id
  )


def _label(connection: sa.Connection, assignment_id: int) -> Label:
  row = connection.execute(
    _label_query().where(_LABELS.c.assignment_id == assignment_id)
  ).one()
  return Label(**row._mapping)


def _check_item(connection: sa.Connection, item_id: int) -> None:
  column = schema.items.c.id
  if (
    not is_id(item_id)
    or not connection.execute(
      sa.select(column).where(column == item_id)
    ).first()
  ):
    raise UserError("there is no such item", code="not_found")


def _set_closed(store: Store, item_id: int, closed_at: float | None) -> None:
  items = schema.items
  with store.begin() as connection:
    _check_item(connection, item_id)
    connection.execute(
      sa.update(items).where(items.c.id == item_id).values(closed_at=closed_at)
    )
