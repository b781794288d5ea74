"""Open-Assistant's conversation trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats.at import At
from instructgpt_jax.data.formats.format import Format
from instructgpt_jax.data.formats.texts import clean
from instructgpt_jax.data.formats.turns import Turns
from instructgpt_jax.data.records import (
  Demonstration,
  Prompt,
  Ranking,
  Record,
  Turn,
)


def _replies(node: Mapping[str, Any], at: At) -> list[dict[str, Any]]:
  """Returns the assistant's replies to a node that have a text."""
  children = node.get("replies")
  if not isinstance(children, list):
    children = at.get(node, "replies", list)
  replies = [
    r
    for r in children
    if isinstance(r, dict)
    and not r.get("deleted")
    and r.get("role") == "assistant"
    and clean(at.get(r, "text"))
  ]
  for reply in replies:
    if reply.get("rank") is not None and at.get(reply, "rank", int) < 0:
      at.fail(f"{reply['rank']} is no rank", "rank", "0 is best", "bad_rank")
  return replies


def _best(replies: list[dict[str, Any]]) -> dict[str, Any] | None:
  """Returns the reply of the lowest rank, or the only one there is."""
  ranked = [r for r in replies if r.get("rank") is not None]
  if ranked:
    return min(ranked, key=lambda r: r["rank"])
  return replies[0] if len(replies) == 1 else None


def _tree(obj: Any, at: At) -> Iterator[Record]:
  """Yields the records of a tree.

  Sibling replies with a rank are a Ranking, wherever they stand. A
  Demonstration and a Prompt come from each user turn that is reached through
  best replies alone: rank 0, or the only reply there is.
  """
  stack: list[tuple[Any, Turns, bool]] = [
    (at.get(obj, "prompt", dict), (), True)
  ]
  while stack:
    node, before, on_best_path = stack.pop()
    turns = (*before, Turn("user", at.text(node, "text")))
    replies = _replies(node, at)
    ranked = [r for r in replies if r.get("rank") is not None]
    ranks = [r["rank"] for r in ranked]
    if len(set(ranks)) > 1:
      yield Ranking(
        turns=turns,
        completions=tuple(clean(r["text"]) for r in ranked),
        ranks=tuple(rank - min(ranks) + 1 for rank in ranks),
        origin=at.origin,
      )
    best = _best(replies)
    if on_best_path:
      yield Prompt(turns=turns, origin=at.origin)
      if best is not None:
        yield Demonstration(
          turns=turns, completion=clean(best["text"]), origin=at.origin
        )
    for reply in reversed(replies):
      after = (*turns, Turn("assistant", clean(reply["text"])))
      for child in reversed(reply.get("replies") or []):
        if isinstance(child, dict) and not child.get("deleted"):
          stack.append((child, after, on_best_path and reply is best))


def _is_tree(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and isinstance(obj.get("prompt"), dict)
    and ("message_tree_id" in obj or "replies" in obj["prompt"])
  )


TREES = Format(
  "Open-Assistant trees",
  _is_tree,
  _tree,
  {
    "prompt": "the tree: text, role, rank (0 is best), deleted and replies of"
    " each message; its other fields are irrelevant"
  },
  irrelevant=("message_tree_id", "tree_state"),
  result="rankings from siblings with ranks, at any depth; demonstrations and"
  " prompts along best replies only",
)
