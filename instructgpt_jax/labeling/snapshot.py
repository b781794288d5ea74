"""Reads all submitted labels of a store, as they are at one moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from instructgpt_jax.labeling import label_records, schema
from instructgpt_jax.labeling.label_records import LabelRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """An item of the store; see `schema.items`."""

  id: int
  task: str
  payload: Mapping[str, Any]
  kind: str = ""
  gold: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
  """A submitted label, with its labeler; see `schema.labels`."""

  item: Item
  user_id: int
  labeler: str
  held_out: bool = False
  is_candidate: bool = False
  content: Mapping[str, Any]
  instructions_version: int | None = None
  seconds: float = 0.0
  submitted_at: float = 0.0
  revised_at: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adjudication:
  """A reviewer's final label of an item."""

  item: Item
  user_id: int
  content: Mapping[str, Any]
  at: float = 0.0


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """Items, labels and final labels of a store.

  Attributes:
    items: all items, in the order of their ids.
    labels: labels of all people, in the order of items, then of users.
    adjudications: final labels, in the order of items.
  """

  items: tuple[Item, ...]
  labels: tuple[Label, ...]
  adjudications: tuple[Adjudication, ...] = ()


def read_snapshot(connection: sa.Connection) -> Snapshot:
  """Reads a snapshot; `connection` is one of `Store.read`."""
  items = {
    row.id: Item(
      id=row.id,
      task=row.task,
      payload=row.payload,
      kind=row.kind,
      gold=row.gold,
    )
    for row in connection.execute(
      sa.select(schema.items).order_by(schema.items.c.id)
    )
  }
  users = schema.users
  labels = [
    Label(
      item=items[row.item_id],
      user_id=row.user_id,
      labeler=row.name,
      held_out=row.held_out,
      is_candidate=row.role == "candidate",
      content=row.content,
      instructions_version=row.instructions_version,
      seconds=row.seconds,
      submitted_at=row.submitted_at,
      revised_at=row.revised_at,
    )
    for row in connection.execute(
      sa.select(schema.labels, users.c.name, users.c.held_out, users.c.role)
      .join(users, users.c.id == schema.labels.c.user_id)
      .order_by(schema.labels.c.item_id, schema.labels.c.user_id)
    )
  ]
  adjudications = [
    Adjudication(
      item=items[row.item_id],
      user_id=row.user_id,
      content=row.content,
      at=row.at,
    )
    for row in connection.execute(
      sa.select(schema.adjudications).order_by(schema.adjudications.c.item_id)
    )
  ]
  return Snapshot(tuple(items.values()), tuple(labels), tuple(adjudications))


def records_of(snapshot: Snapshot) -> list[LabelRecord]:
  """Returns the labels as the measures of quality see them.

  Those of candidates are left out; `screening` measures them.
  """
  return [
    label_records.make_record(
      item_id=label.item.id,
      task=label.item.task,
      kind=label.item.kind,
      payload=label.item.payload,
      gold=label.item.gold,
      labeler=label.labeler,
      held_out=label.held_out,
      content=label.content,
      seconds=label.seconds,
      submitted_at=label.submitted_at,
    )
    for label in snapshot.labels
    if not label.is_candidate
  ]
