"""Rankings, prompts and demonstrations as bytes: their text and token ids.

A record of a shard, an ArrayRecord file, is one record:

  4 bytes            little-endian, bytes of the header
  header             JSON: turns, replies, ranks, ids of user and labeler,
                     split, and "tokens", the number of token ids of the prompt
                     and of each reply
  token ids          little-endian, of 2 or 4 bytes: prompt, then replies

The table of a split is a NumPy file, [N, 2 + K] int32: for each record the
index of its labeler, the tokens of its prompt, and of its K replies; -1 where
there is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax.data import records as records_lib
from instructgpt_jax.data.prepared import row_records
from instructgpt_jax.data.records import Demonstration, Prompt, Ranking, Turn

Record = Prompt | Demonstration | Ranking
_LENGTH = np.dtype("<u4")


class Tokens(NamedTuple):
  """A record as token ids."""

  prompt: np.ndarray  # [p] int32
  replies: tuple[np.ndarray, ...]  # K of [n] int32
  ranks: tuple[int, ...]  # K; () but for rankings


def encode(
  record: Record,
  prompt: np.ndarray,
  replies: Sequence[np.ndarray],
  token_bytes: int,
) -> bytes:
  """Returns the bytes of a record.

  Args:
    record: the record.
    prompt: token ids of its prompt.
    replies: token ids of each reply.
    token_bytes: bytes of a token id.
  """
  texts = [prompt, *replies]
  header: dict[str, Any] = {
    "turns": [[t.role, t.text, t.learnable] for t in record.turns],
    "replies": records_lib.replies(record),
    "ranks": getattr(record, "ranks", ()),
    "user_id": record.user_id,
    "labeler_id": getattr(record, "labeler_id", ""),
    "split": record.split,
    "tokens": [len(ids) for ids in texts],
  }
  head = json.dumps(header, separators=(",", ":")).encode()
  ids = np.concatenate(texts).astype(row_records.token_dtype(token_bytes))
  return np.array(len(head), _LENGTH).tobytes() + head + ids.tobytes()


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
  """Returns the header and the token ids; ValueError on damage."""
  size = _LENGTH.itemsize
  if len(data) < size:
    raise ValueError("a record is cut short")
  stop = size + int(np.frombuffer(data[:size], _LENGTH)[0])
  return json.loads(data[size:stop]), data[stop:]


def decode_tokens(data: bytes, token_bytes: int) -> Tokens:
  """Returns the token ids of a record; ValueError on damage."""
  header, ids = _split(data)
  tokens = np.frombuffer(ids, row_records.token_dtype(token_bytes))
  counts = header["tokens"]
  if len(tokens) != sum(counts):
    raise ValueError("a record has another size")
  parts = np.split(tokens.astype(np.int32), np.cumsum(counts)[:-1])
  return Tokens(parts[0], tuple(parts[1:]), tuple(header["ranks"]))


def decode_record(data: bytes, source: str) -> Record:
  """Returns a record, without its origin; ValueError on damage.

  Args:
    data: its bytes.
    source: "demonstrations", "comparisons" or "prompts".
  """
  header, _ = _split(data)
  common: dict[str, Any] = {
    "turns": tuple(Turn(*turn) for turn in header["turns"]),
    "user_id": header["user_id"],
    "split": header["split"],
  }
  if source == "prompts":
    return Prompt(**common)
  common["labeler_id"] = header["labeler_id"]
  if source == "demonstrations":
    return Demonstration(**common, completion=header["replies"][0])
  return Ranking(
    **common,
    completions=tuple(header["replies"]),
    ranks=tuple(header["ranks"]),
  )
