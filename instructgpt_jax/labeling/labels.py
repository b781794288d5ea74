"""Drafts, labels and their history, adjudication, and closing of items.

What a function has returned is on the disk. Revision numbers detect a page that
is older than what was saved from another one; it is refused, with the newer
draft, and overwrites nothing. Contents are those that `forms` has validated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling.assignment import Draft, Rules, Work
from instructgpt_jax.labeling.store import Store


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


def save_draft(
  store: Store,
  user_id: int,
  assignment_id: int,
  content: dict[str, Any],
  revision: int,
  rules: Rules,
  now: float,
  *,
  active_seconds: float = 0.0,
) -> Draft:
  """Saves what a form has, and extends the lock.

  A draft of a submitted label is an edit that counts once it is submitted. A
  repeated save of the same content succeeds.

  Args:
    store: open store.
    user_id: labeler.
    assignment_id: assignment of the labeler.
    content: content of the form, complete or not; any JSON object.
    revision: revision of the draft that the page has.
    rules: settings of assignment.
    now: time.
    active_seconds: active time since the last save; at most the time that has
      passed is counted.

  Returns:
    The draft with its new revision. Its `has_place` is False, and the draft is
    saved, if the lock had expired and others have taken all places.

  Raises:
    StaleDraft: a newer draft was saved from another page.
    UserError: the labeler has no such assignment ("not_found"), it was skipped
      ("skipped"), the item is closed ("item_closed"), or the content is no
      JSON object or too large ("bad_content").
  """
  raise NotImplementedError


def submit(
  store: Store,
  user_id: int,
  assignment_id: int,
  content: dict[str, Any],
  revision: int,
  rules: Rules,
  now: float,
  *,
  instructions_version: int | None = None,
  active_seconds: float = 0.0,
) -> Label:
  """Submits a label, or a new revision of one that was submitted.

  A repeated submission of the same content succeeds and changes nothing.

  Args:
    store: open store.
    user_id: labeler.
    assignment_id: assignment of the labeler.
    content: validated content of the form.
    revision: revision of the draft that the page has.
    rules: settings of assignment.
    now: time.
    instructions_version: version of the instructions that the page shows.
    active_seconds: as for `save_draft`.

  Raises:
    StaleDraft: a newer draft was saved from another page.
    UserError: as for `save_draft`, or the lock has expired and others have
      taken all places ("place_taken"; the draft is kept).
  """
  raise NotImplementedError


def withdraw(
  store: Store, user_id: int, assignment_id: int, rules: Rules, now: float
) -> Work:
  """Takes a submitted label back; its content becomes the draft.

  The assignment is open and keeps its place until its lock expires.

  Raises:
    UserError: the labeler has no such assignment ("not_found"), it is not
      submitted ("not_submitted"), or the item is closed ("item_closed").
  """
  raise NotImplementedError


def get_label(store: Store, user_id: int, assignment_id: int) -> Label:
  """Returns a labeler's label.

  Raises:
    UserError: the labeler has no such label ("not_found").
  """
  raise NotImplementedError


def labels_of_item(store: Store, item_id: int) -> list[Label]:
  """Returns the labels of an item in the order of their labelers."""
  raise NotImplementedError


def close_item(store: Store, item_id: int, now: float) -> None:
  """Ends work on an item: its labels cannot change, drafts are kept.

  Raises:
    UserError: there is no such item ("not_found").
  """
  raise NotImplementedError


def close_full_items(store: Store, now: float) -> int:
  """Closes items whose places are all submitted; returns how many."""
  raise NotImplementedError


def reopen_item(store: Store, item_id: int) -> None:
  """Allows work on a closed item again.

  Raises:
    UserError: there is no such item ("not_found").
  """
  raise NotImplementedError


def adjudicate(
  store: Store,
  user_id: int,
  item_id: int,
  content: dict[str, Any],
  now: float,
) -> Adjudication:
  """Stores a reviewer's final label of an item; the newest counts.

  Raises:
    UserError: the user is no reviewer or owner ("not_allowed"), there is no
      such item ("not_found"), or the content is no JSON object or too large
      ("bad_content").
  """
  raise NotImplementedError


def get_adjudication(store: Store, item_id: int) -> Adjudication | None:
  """Returns the final label of an item, or None."""
  raise NotImplementedError
