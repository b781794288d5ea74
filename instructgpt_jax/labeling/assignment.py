"""Decides which item a labeler gets, and keeps its place for a while.

An item has `overlap` places. A submitted label occupies one, and an open
assignment occupies one until its lock expires. A labeler whose lock has expired
takes a place again by working on, unless all are taken.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from instructgpt_jax.labeling.store import Store

# Tasks of each role, in the order in which they are offered.
TASKS_OF_ROLE = {
  "owner": ("ranking", "demonstration", "comparison"),
  "reviewer": ("ranking", "demonstration", "comparison"),
  "labeler": ("ranking", "demonstration", "comparison"),
  "candidate": ("screening",),
}
# Keys of a payload that no page may show.
HIDDEN_KEYS = ("sources",)


@dataclasses.dataclass(frozen=True)
class Rules:
  """The project's settings of assignment.

  Attributes:
    lock_seconds: time without a saved draft after which a place is free.
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
  raise NotImplementedError


def get_work(
  store: Store, user_id: int, assignment_id: int, now: float
) -> Work:
  """Returns an assignment of a labeler in any state, and changes nothing.

  Raises:
    UserError: the labeler has no such assignment ("not_found").
  """
  raise NotImplementedError


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
  raise NotImplementedError


def skip(
  store: Store, user_id: int, assignment_id: int, reason: str, now: float
) -> None:
  """Frees the place of an open assignment; it is not offered again.

  Raises:
    UserError: the labeler has no such assignment ("not_found"), it was
      submitted ("already_submitted"), or there is no reason or one that is
      too long ("bad_reason").
  """
  raise NotImplementedError


def undo_skip(
  store: Store, user_id: int, assignment_id: int, rules: Rules, now: float
) -> Work:
  """Takes a place of a skipped item again.

  Raises:
    UserError: as `skip`, or all places are taken ("place_taken"), or the item
      is closed ("item_closed").
  """
  raise NotImplementedError
