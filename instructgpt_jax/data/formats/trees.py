"""Open-Assistant's conversation trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats.format import Format
from instructgpt_jax.data.formats.json_values import is_null, is_set
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import check_repeated, clean
from instructgpt_jax.data.formats.turns import Turns
from instructgpt_jax.data.records import (
  Demonstration,
  Prompt,
  Ranking,
  Record,
  Turn,
)

_DELETED = "trees whose first message is deleted"


def _replies(
  node: Mapping[str, Any], reader: RecordReader
) -> list[dict[str, Any]]:
  """Returns the assistant's replies to a node that have a text."""
  replies = [
    r
    for r in _children(node, reader)
    if not is_set(r.get("deleted"))
    and r.get("role") == "assistant"
    and clean(reader.get(r, "text"))
  ]
  for reply in replies:
    rank = _rank(reply, reader)
    if rank is not None and rank < 0:
      reader.fail(
        f"{reply['rank']} is no rank", "rank", "0 is best", "bad_rank"
      )
  return replies


def _children(
  node: Mapping[str, Any], reader: RecordReader
) -> list[dict[str, Any]]:
  """Returns the messages below a message; null is none."""
  if is_null(node.get("replies")):
    return []
  return [r for r in reader.get(node, "replies", list) if isinstance(r, dict)]


def _rank(reply: Mapping[str, Any], reader: RecordReader) -> int | None:
  """Returns the rank of a reply, or None."""
  if is_null(reply.get("rank")):
    return None
  return reader.whole(reply, "rank")


def _best(
  replies: list[dict[str, Any]], reader: RecordReader
) -> dict[str, Any] | None:
  """Returns the reply of the lowest rank, or the only one there is."""
  ranked = [r for r in replies if _rank(r, reader) is not None]
  if ranked:
    return min(ranked, key=lambda r: _rank(r, reader) or 0)
  return replies[0] if len(replies) == 1 else None


def _ranking(
  turns: Turns, replies: list[dict[str, Any]], reader: RecordReader
) -> Iterator[Record]:
  """Yields the ranking of the siblings with ranks, where there is one."""
  ranked = [r for r in replies if _rank(r, reader) is not None]
  ranks = [reader.whole(r, "rank") for r in ranked]
  if len(set(ranks)) < 2:
    return
  texts = tuple(clean(r["text"]) for r in ranked)
  try:
    check_repeated(texts, ranks, reader)
  except Skip as skip:
    # The tree has other records.
    reader.notes.add(f"siblings left out: {skip}")
    return
  yield Ranking(
    turns=turns,
    completions=texts,
    ranks=tuple(rank - min(ranks) + 1 for rank in ranks),
    origin=reader.origin,
  )


def _tree(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the records of a tree.

  Sibling replies with a rank are a Ranking, wherever they stand. A
  Demonstration and a Prompt come from each user turn that is reached through
  best replies alone: rank 0, or the only reply there is.
  """
  root = reader.get(obj, "prompt", dict)
  if is_set(root.get("deleted")):
    raise Skip(_DELETED)
  stack: list[tuple[Any, Turns, bool]] = [(root, (), True)]
  while stack:
    node, before, on_best_path = stack.pop()
    turns = (*before, Turn("user", reader.text(node, "text")))
    replies = _replies(node, reader)
    yield from _ranking(turns, replies, reader)
    best = _best(replies, reader)
    if on_best_path:
      yield Prompt(turns=turns, origin=reader.origin)
      if best is not None:
        yield Demonstration(
          turns=turns, completion=clean(best["text"]), origin=reader.origin
        )
    for reply in reversed(replies):
      # A best reply has a demonstration of its own.
      turn = Turn("assistant", clean(reply["text"]), learnable=False)
      after = (*turns, turn)
      for child in reversed(_children(reply, reader)):
        if not is_set(child.get("deleted")):
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
