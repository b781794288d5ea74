"""What pages read from the store, beyond what the other modules return."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from instructgpt_jax.labeling import schema

_EXCERPT = 120  # characters


@dataclasses.dataclass(frozen=True)
class ItemRow:
  """A row of the list of items."""

  id: int
  task: str
  kind: str
  text: str
  overlap: int | None
  labels: int  # of training labelers
  held_out: int  # labels of held-out labelers
  is_gold: bool
  closed_at: float | None


@dataclasses.dataclass(frozen=True)
class UserRow:
  """What the list of people shows about one user."""

  labels: int
  skipped: int
  seconds: float
  last_at: float | None


def excerpt(
  payload: Mapping[str, Any], content: Mapping[str, Any] | None = None
) -> str:
  """Returns the beginning of an item's prompt, or of the one written."""
  turns = payload.get("turns") or ()
  text = turns[-1]["content"] if turns else ""
  written = (content or {}).get("prompt")
  if not text and isinstance(written, str):
    text = written
  if not text:
    texts = payload.get("completions") or [payload.get("use_case") or ""]
    text = texts[0]
  text = " ".join(text.split())
  return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def newest_instructions(connection: sa.Connection) -> Any:
  """Returns the row of the newest instructions, or None."""
  table = schema.instructions
  query = sa.select(table).order_by(table.c.version.desc()).limit(1)
  return connection.execute(query).one_or_none()


def current_version(connection: sa.Connection) -> int | None:
  """Returns the version of the newest instructions."""
  version = schema.instructions.c.version
  return connection.scalar(sa.select(sa.func.max(version)))


def read_tasks(connection: sa.Connection) -> set[str]:
  """Returns the tasks that the project has items of."""
  query = sa.select(schema.items.c.task).distinct()
  return set(connection.scalars(query))


def count_labels(connection: sa.Connection, user_id: int) -> int:
  """Returns the number of a user's labels."""
  query = sa.select(sa.func.count()).select_from(schema.labels)
  return connection.scalar(query.where(schema.labels.c.user_id == user_id)) or 0


def list_items(
  connection: sa.Connection,
  *,
  task: str = "",
  state: str = "",
  after: int = 0,
  limit: int = 50,
) -> list[ItemRow]:
  """Returns items in the order of their ids.

  Args:
    connection: a transaction.
    task: this task only; "" for all.
    state: "open" or "closed"; "" for both.
    after: items with larger ids only.
    limit: number of items.
  """
  items, labels, people = schema.items.c, schema.labels.c, schema.users.c

  def count(held_out: bool) -> Any:
    return (
      sa.select(sa.func.count())
      .select_from(
        schema.labels.join(schema.users, people.id == labels.user_id)
      )
      .where(labels.item_id == items.id, people.held_out.is_(held_out))
      .scalar_subquery()
    )

  query = sa.select(
    schema.items,
    count(False).label("labels"),
    count(True).label("held_out"),
  )
  query = query.where(items.id > after).order_by(items.id).limit(limit)
  if task:
    query = query.where(items.task == task)
  if state:
    closed = items.closed_at.is_not(None)
    query = query.where(closed if state == "closed" else sa.not_(closed))
  return [_item_row(row) for row in connection.execute(query)]


def _item_row(row: Any) -> ItemRow:
  return ItemRow(
    id=row.id,
    task=row.task,
    kind=row.kind,
    text=excerpt(row.payload),
    overlap=row.overlap,
    labels=row.labels,
    held_out=row.held_out,
    is_gold=row.gold is not None,
    closed_at=row.closed_at,
  )


def get_item(connection: sa.Connection, item_id: int) -> Any:
  """Returns the row of an item, or None."""
  items = schema.items
  return connection.execute(
    sa.select(items).where(items.c.id == item_id)
  ).one_or_none()


def skip_reasons(
  connection: sa.Connection, item_id: int
) -> list[tuple[str, str]]:
  """Returns (name, reason) of each labeler who has skipped an item."""
  a, people = schema.assignments.c, schema.users.c
  query = (
    sa.select(people.name, a.reason)
    .join(schema.users, people.id == a.user_id)
    .where(a.item_id == item_id, a.state == "skipped")
    .order_by(a.id)
  )
  return [(row.name, row.reason) for row in connection.execute(query)]


def users_work(connection: sa.Connection) -> dict[int, UserRow]:
  """Returns what each user has done, by the user's id."""
  a, rows = schema.assignments.c, {}
  query = sa.select(
    a.user_id,
    sa.func.sum(sa.case((a.state == "submitted", 1), else_=0)),
    sa.func.sum(sa.case((a.state == "skipped", 1), else_=0)),
    sa.func.sum(a.active_seconds),
    sa.func.max(a.active_at),
  ).group_by(a.user_id)
  for user_id, submitted, skipped, seconds, last in connection.execute(query):
    rows[user_id] = UserRow(submitted or 0, skipped or 0, seconds or 0.0, last)
  return rows


def item_progress(connection: sa.Connection) -> list[tuple[str, int, int, int]]:
  """Returns (task, items, closed items, labels) of each task."""
  items, labels = schema.items.c, schema.labels.c
  counts = {
    task: (total, closed or 0)
    for task, total, closed in connection.execute(
      sa.select(
        items.task,
        sa.func.count(),
        sa.func.sum(sa.case((items.closed_at.is_not(None), 1), else_=0)),
      ).group_by(items.task)
    )
  }
  query = (
    sa.select(items.task, sa.func.count())
    .join(schema.labels, labels.item_id == items.id)
    .group_by(items.task)
  )
  submitted = {row[0]: row[1] for row in connection.execute(query)}
  return [
    (task, *counts[task], submitted.get(task, 0))
    for task in schema.TASKS
    if task in counts
  ]
