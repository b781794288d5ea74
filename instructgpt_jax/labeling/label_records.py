"""A submitted label as the measures of quality see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

NEUTRAL = 5  # the confidence of a comparison that prefers neither answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRecord:
  """One submitted label.

  Attributes:
    item_id: the labeled item.
    labeler: name of the labeler.
    held_out: whether the labeler is held out of training.
    task: "ranking", "comparison" or "demonstration".
    kind: kind of the prompt; may be empty.
    ranks: rank of each completion in stored order, 1 for best; empty for other
      tasks, and where the labeler could not judge.
    overall: overall quality of each completion, 1 to 7; may be empty.
    gold_ranks: the ranks of a gold item; empty for other items.
    sources: source of each completion; may be empty.
    characters: length of what has to be read; 0 where labelers write, and
      where they could not judge, which can show at a glance.
    seconds: active time.
    submitted_at: time of submission, in UTC seconds.
  """

  item_id: int
  labeler: str
  held_out: bool = False
  task: str = "ranking"
  kind: str = ""
  ranks: tuple[int, ...] = ()
  overall: tuple[int, ...] = ()
  gold_ranks: tuple[int, ...] = ()
  sources: tuple[str, ...] = ()
  characters: int = 0
  seconds: float = 0.0
  submitted_at: float = 0.0


def ranks_of_confidence(confidence: int) -> tuple[int, int]:
  """Returns the ranks that a comparison's confidence from 1 to 9 gives.

  Below 5 the first answer is better, above 5 the second; 5 is a tie.
  """
  return (
    1 + (confidence > NEUTRAL),
    1 + (confidence < NEUTRAL),
  )


def ranks_of_content(
  task: str, content: Mapping[str, Any] | None
) -> tuple[int, ...]:
  """Returns the ranks of a label's content; () where it has none."""
  if not content or content.get("cannot_judge"):
    return ()
  if task == "comparison" and content.get("confidence") is not None:
    return ranks_of_confidence(content["confidence"])
  return tuple(content.get("ranks") or ())


def make_record(
  *,
  item_id: int,
  task: str,
  kind: str,
  payload: Mapping[str, Any],
  gold: Mapping[str, Any] | None,
  labeler: str,
  held_out: bool,
  content: Mapping[str, Any],
  seconds: float,
  submitted_at: float,
) -> LabelRecord:
  """Makes a record from the columns of an item, a label and a user."""
  reads = task in ("ranking", "comparison")
  ranks = ranks_of_content(task, content)
  return LabelRecord(
    item_id=item_id,
    labeler=labeler,
    held_out=held_out,
    task=task,
    kind=kind or "",
    ranks=ranks,
    overall=tuple(content.get("overall") or ()) if ranks else (),
    gold_ranks=ranks_of_content(task, gold),
    sources=tuple(payload.get("sources") or ()),
    characters=_characters(payload) if reads and ranks else 0,
    seconds=seconds,
    submitted_at=submitted_at,
  )


def _characters(payload: Mapping[str, Any]) -> int:
  turns: Sequence[Mapping[str, str]] = payload.get("turns") or ()
  completions: Sequence[str] = payload.get("completions") or ()
  return sum(len(t["content"]) for t in turns) + sum(map(len, completions))
