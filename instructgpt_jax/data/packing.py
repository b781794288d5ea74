"""Packs and pads token ids into rows. Pure numpy."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from instructgpt_jax.errors import UserError

Rows = dict[str, np.ndarray]
"""tokens, segments, positions [R, T] int32 and weights [R, T] float32."""


def _int32(ids) -> np.ndarray:
  return np.asarray(ids, np.int32)


def _empty_rows(count: int, length: int, pad_id: int) -> Rows:
  return dict(
    tokens=np.full((count, length), pad_id, np.int32),
    segments=np.zeros((count, length), np.int32),
    positions=np.zeros((count, length), np.int32),
    weights=np.zeros((count, length), np.float32),
  )


def best_fit_decreasing(lengths: Sequence[int], room: int) -> list[list[int]]:
  """Which examples share a row: best fit of the longest first.

  Args:
    lengths: tokens of each example, at most `room`; those of 0 are left out.
    room: tokens of a row.

  Returns:
    The examples of each row in their order, in the order of each row's first.
  """
  found: list[list[int]] = []
  free: list[list[int]] = [[] for _ in range(room + 1)]  # by room left
  rooms: list[int] = []  # sorted room values that have rows
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    n = lengths[i]
    if not n:
      continue
    at = bisect.bisect_left(rooms, n)
    if at == len(rooms):
      found.append([i])
      b, left = len(found) - 1, room - n
    else:
      left = rooms[at]
      b = free[left].pop()
      if not free[left]:
        rooms.pop(at)
      found[b].append(i)
      left -= n
    if left:
      if not free[left]:
        bisect.insort(rooms, left)
      free[left].append(b)
  return sorted(sorted(members) for members in found)


def pack_examples(
  examples: Sequence[tuple[np.ndarray, np.ndarray]],
  length: int,
  *,
  pad_id: int,
) -> Rows:
  """Packs examples into rows, as `best_fit_decreasing` shares them out.

  No example is split, and none sees another: each is a segment with positions
  of its own.

  Args:
    examples: (ids [n], weights [n]) with n <= length.
    length: T, tokens of a row.
    pad_id: fills rows up.
  """
  lengths = [len(ids) for ids, _ in examples]
  if lengths and max(lengths) > length:
    raise UserError(
      f"an example of {max(lengths)} tokens does not fit a row of {length}",
      field="data.max_response_tokens",
      fix="lower data.max_prompt_tokens and data.max_response_tokens until"
      " their sum fits, or raise model.context",
    )
  if not examples:
    return _empty_rows(0, length, pad_id)
  tokens, weights = (
    np.concatenate(part) for part in zip(*examples, strict=True)
  )
  return _packed(tokens, weights, lengths, length, pad_id)


def _packed(
  tokens: np.ndarray,
  weights: np.ndarray,
  lengths: Sequence[int],
  room: int,
  pad_id: int,
) -> Rows:
  """Rows of examples that stand one behind the other, of so many tokens."""
  chosen = best_fit_decreasing(lengths, room)
  # Of each example's first token, among those of all rows.
  places = np.zeros(len(lengths), np.int64)
  segments = np.zeros(len(lengths), np.int32)
  for r, members in enumerate(chosen):
    place = r * room
    for s, i in enumerate(members, 1):
      places[i], segments[i] = place, s
      place += lengths[i]
  counts = np.asarray(lengths)
  inside = np.arange(len(tokens)) - np.repeat(
    np.cumsum(counts) - counts, counts
  )
  at = np.repeat(places, counts) + inside
  rows = _empty_rows(len(chosen), room, pad_id)
  for name, values in (
    ("tokens", tokens),
    ("segments", np.repeat(segments, counts)),
    ("positions", inside),
    ("weights", weights),
  ):
    rows[name].reshape(-1)[at] = values
  return rows


def pad_examples(
  examples: Sequence[tuple[np.ndarray, np.ndarray]],
  length: int,
  *,
  pad_id: int,
) -> Rows:
  """One example a row, right-padded: the layout without packing."""
  rows = _empty_rows(len(examples), length, pad_id)
  for r, (ids, weights) in enumerate(examples):
    if len(ids) > length:
      pack_examples([(ids, weights)], length, pad_id=pad_id)
    rows["tokens"][r, : len(ids)] = ids
    rows["segments"][r, : len(ids)] = 1
    rows["positions"][r, : len(ids)] = np.arange(len(ids))
    rows["weights"][r, : len(ids)] = weights
  return rows


def pack_documents(
  documents: Sequence[Sequence[int] | np.ndarray],
  length: int,
  *,
  eos_id: int,
  pad_id: int,
) -> Rows:
  """Documents with end-of-text after each, packed whole into rows.

  A document that fits a row is never cut, so that nothing has to be predicted
  from a context that stands in another row (arXiv:2404.10830); a longer one is
  cut into pieces of a row, each of which starts anew. Every piece is a segment
  of its own. Weights are 1 but on a segment's first token.

  Args:
    documents: token ids of each document.
    length: T, tokens of a row.
    eos_id: stands after each document.
    pad_id: fills rows up.
  """
  end = _int32([eos_id])
  ended = [part for d in documents if len(d) for part in (_int32(d), end)]
  if not ended:
    return _empty_rows(0, length, pad_id)
  tokens = np.concatenate(ended)
  lengths: list[int] = []
  for document in ended[::2]:
    whole, rest = divmod(len(document) + 1, length)
    lengths += [length] * whole + [rest] * (rest > 0)
  weights = np.ones(len(tokens), np.float32)
  weights[np.cumsum(lengths) - lengths] = 0.0
  return _packed(tokens, weights, lengths, length, pad_id)


def left_pad(
  sequences: Sequence[np.ndarray], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens [B, width] int32, mask [B, width] bool), padded on the left."""
  tokens = np.full((len(sequences), width), pad_id, np.int32)
  mask = np.zeros((len(sequences), width), bool)
  for r, ids in enumerate(sequences):
    if len(ids) > width:
      raise ValueError(f"{len(ids)} tokens do not fit a width of {width}")
    if len(ids):
      tokens[r, width - len(ids) :] = ids
      mask[r, width - len(ids) :] = True
  return tokens, mask


def smallest_bucket(length: int, buckets: Sequence[int]) -> int:
  """The smallest of the allowed lengths that holds `length`."""
  for size in sorted(buckets):
    if length <= size:
      return size
  raise ValueError(f"length {length} is above every bucket {tuple(buckets)}")


def bucket_lengths(longest: int, *, count: int = 4) -> tuple[int, ...]:
  """At most `count` lengths, evenly down from `longest` rounded up to 8."""
  top = max(8, -(-longest // 8) * 8)
  sizes = {max(8, -(-top * i // (8 * count)) * 8) for i in range(1, count + 1)}
  return tuple(sorted(sizes))


def choose_bucket_lengths(
  needed: ArrayLike, *, spare: float, most: int, steps: int
) -> tuple[int, ...]:
  """Lengths for rows of which each takes the smallest that holds it.

  One after another, each where it saves most, until what they leave empty is a
  small share: programs are compiled for each length.

  Args:
    needed: [n] int, tokens of each row or of the longest row of each batch.
    spare: share of the needed tokens that may be left empty.
    most: how many lengths there may be.
    steps: lengths from one power of two to the next; the fewer, the likelier
      that other rows take the same ones.

  Returns:
    Multiples of 8, ascending.
  """
  tokens = np.maximum(needed, 8)
  step = np.maximum(2 ** np.floor(np.log2(tokens)).astype(int) // steps, 8)
  sizes, counts = np.unique(-(-tokens // step) * step, return_counts=True)
  enough = (1 + spare) * np.sum(needed)
  lengths = [int(sizes[-1])]

  def taken(lengths: list[int]) -> int:
    held = np.sort(lengths)
    return (counts * held[np.searchsorted(held, sizes)]).sum()

  while taken(lengths) > enough and len(lengths) < most:
    found = min(sizes.tolist(), key=lambda n: taken([*lengths, n]))
    if found in lengths:
      break
    lengths.append(found)
  return tuple(sorted(lengths))
