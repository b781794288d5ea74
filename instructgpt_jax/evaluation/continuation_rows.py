"""Packs continuations of contexts into rows; each context is there once.

A group is a context with the continuations that are scored after it. In a row
the context is a prefix, segment −1, −2, …, and each continuation a segment
whose positions continue the context's:

  c c c c e1 e1 e2 d d d f1 f1 f1

A continuation's last token predicts nothing that is scored, so the row leaves
it out. A query is a position whose output predicts a scored token: the first
token of e1 and that of e2 are both predicted at the last position of c.

Shape letters: B rows of a batch, T tokens of a row, R queries of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from instructgpt_jax.data import packing

Ids = tuple[int, ...]

_ROW = 512  # tokens of a row, unless a context is longer
_CHUNK = 256  # queries of a batch whose logits exist at a time


class Piece(NamedTuple):
  """Tokens that are scored in one window of the model.

  Attributes:
    context: their context, at least one token.
    ids: the tokens, at least one.
  """

  context: Ids
  ids: Ids


class Batch(NamedTuple):
  """Rows of one shape.

  Attributes:
    tokens: [B, T] int32.
    segments: [B, T] int32; see the module.
    positions: [B, T] int32.
    queries: [B, R] int32, positions in the row.
    targets: [B, R] int32, the token that each query predicts.
    chunk: queries of a row whose logits are computed together.
    chunks: number of chunks that hold a query.
    members: (piece, row, first query) of each piece; its queries are adjacent.
  """

  tokens: np.ndarray
  segments: np.ndarray
  positions: np.ndarray
  queries: np.ndarray
  targets: np.ndarray
  chunk: int
  chunks: np.ndarray
  members: list[tuple[int, int, int]]


def windows(
  context: Sequence[int], ids: Sequence[int], size: int
) -> list[Piece]:
  """Cuts a continuation into pieces that the model scores in one window.

  Each token is scored once, after as many tokens as fit: a context that is too
  long is cut from the left, and pieces but the first follow a full window.

  Args:
    context: its context, at least one token.
    ids: the continuation; without tokens there is no piece.
    size: most tokens that the model reads.
  """
  tokens = (*context, *ids)
  pieces = []
  for start in range(len(context), len(tokens), size):
    stop = min(start + size, len(tokens))
    first = max(0, stop - size - 1)
    pieces.append(Piece(tokens[first:start], tokens[start:stop]))
  return pieces


class _Group(NamedTuple):
  """A context and the pieces after it that share a row."""

  context: Ids
  members: list[tuple[int, Ids]]  # index and tokens of each piece

  @property
  def room(self) -> int:
    """Returns the tokens or queries that it takes, whichever are more."""
    queries = sum(len(ids) for _, ids in self.members)
    return max(queries, len(self.context) + queries - len(self.members))


def batches(
  pieces: Sequence[Piece],
  *,
  max_length: int,
  tokens: int,
  max_rows: int | None = None,
  shards: int = 1,
) -> Iterator[Batch]:
  """Yields rows with all pieces, the longest rows first.

  Row lengths are 512 and its doubles, or the model's context where it is
  shorter. All batches of a length have one shape.

  Args:
    pieces: contexts and continuations of at most `max_length` + 1 tokens.
    max_length: longest row.
    tokens: tokens of a batch, about.
    max_rows: most rows of a batch, before `shards` rounds them up.
    shards: B is a multiple of it.
  """
  by_length: dict[int, list[_Group]] = {}
  for group in _groups(pieces, max_length):
    by_length.setdefault(_row_length(group.room, max_length), []).append(group)
  for length, groups in sorted(by_length.items(), reverse=True):
    rows = packing.best_fit_decreasing([g.room for g in groups], length)
    count = min(
      max(1, tokens // length), max_rows or len(rows), _power_of_two(len(rows))
    )
    count = -(-count // shards) * shards
    for start in range(0, len(rows), count):
      chosen = rows[start : start + count]
      yield _write([[groups[i] for i in row] for row in chosen], count, length)


def _groups(pieces: Sequence[Piece], max_length: int) -> Iterator[_Group]:
  """Yields pieces by their context, in groups that fit a row."""
  by_context: dict[Ids, list[tuple[int, Ids]]] = {}
  for index, piece in enumerate(pieces):
    by_context.setdefault(piece.context, []).append((index, piece.ids))
  for context, members in by_context.items():
    group = _Group(context, [])
    for member in members:
      larger = _Group(context, [*group.members, member])
      if group.members and larger.room > min(_ROW, max_length):
        yield group
        larger = _Group(context, [member])
      group = larger
    yield group


def _row_length(room: int, max_length: int) -> int:
  """Returns the tokens of the rows that a group is packed into."""
  length = min(_ROW, max_length)
  while length < room:
    length = min(2 * length, max_length)
  return length


def _power_of_two(count: int) -> int:
  """Returns the smallest power of two that is at least `count`."""
  return 1 << (count - 1).bit_length()


def _write(rows: Sequence[Sequence[_Group]], count: int, length: int) -> Batch:
  """Writes the groups of each row into a batch of `count` rows."""
  chunk = min(length, max(1, _CHUNK // count))
  room = -(-length // chunk) * chunk
  arrays = [np.zeros((count, length), np.int32) for _ in range(3)]
  queries = np.zeros((count, room), np.int32)
  targets = np.zeros((count, room), np.int32)
  members: list[tuple[int, int, int]] = []
  most = 0
  for row, groups in enumerate(rows):
    position = query = segment = 0

    def append(ids: Ids, number: int, offset: int, row: int = row) -> None:
      """Appends tokens to the row; the first of them has the offset."""
      nonlocal position
      part = slice(position, position + len(ids))
      values = (ids, number, offset + np.arange(len(ids)))
      for array, value in zip(arrays, values, strict=True):
        array[row, part] = value
      position += len(ids)

    for number, (context, continuations) in enumerate(groups, 1):
      append(context, -number, 0)
      last = position - 1
      for index, ids in continuations:
        segment += 1
        members.append((index, row, query))
        part = slice(query, query + len(ids))
        queries[row, part] = [last, *range(position, position + len(ids) - 1)]
        targets[row, part] = ids
        append(ids[:-1], segment, len(context))
        query += len(ids)
    most = max(most, query)
  chunks = np.array(-(-most // chunk), np.int32)
  return Batch(*arrays, queries, targets, chunk, chunks, members)
