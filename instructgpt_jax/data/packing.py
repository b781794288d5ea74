"""Packs and pads sequences of token ids into rows of a batch. Pure NumPy."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from instructgpt_jax.errors import UserError

Rows = dict[str, np.ndarray]
"""tokens, segments, positions [R, T] int32 and weights [R, T] float32."""

_MULTIPLE = 8  # row lengths are rounded up to a multiple of this


def _int32(ids) -> np.ndarray:
  return np.asarray(ids, np.int32)


def _empty_rows(count: int, length: int, pad_id: int) -> Rows:
  return dict(
    tokens=np.full((count, length), pad_id, np.int32),
    segments=np.zeros((count, length), np.int32),
    positions=np.zeros((count, length), np.int32),
    weights=np.zeros((count, length), np.float32),
  )


def best_fit_decreasing(
  lengths: Sequence[int], capacity: int
) -> list[list[int]]:
  """Assigns sequences to rows by best fit, the longest sequence first.

  Args:
    lengths: tokens of each sequence, at most `capacity`; sequences of 0 tokens
      are left out.
    capacity: tokens of a row.

  Returns:
    Indices of the sequences of each row, ascending. Rows are in the order of
    their first sequence.
  """
  rows: list[list[int]] = []
  # Rows by the number of their free tokens, and the numbers that have rows.
  rows_with_free: list[list[int]] = [[] for _ in range(capacity + 1)]
  free_counts: list[int] = []
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[i]
    if not length:
      continue
    position = bisect.bisect_left(free_counts, length)
    if position == len(free_counts):
      rows.append([i])
      row, free = len(rows) - 1, capacity - length
    else:
      free = free_counts[position]
      row = rows_with_free[free].pop()
      if not rows_with_free[free]:
        free_counts.pop(position)
      rows[row].append(i)
      free -= length
    if free:
      if not rows_with_free[free]:
        bisect.insort(free_counts, free)
      rows_with_free[free].append(row)
  return sorted(sorted(members) for members in rows)


def pack_examples(
  examples: Sequence[tuple[np.ndarray, np.ndarray]],
  length: int,
  *,
  pad_id: int,
) -> Rows:
  """Packs examples into rows by `best_fit_decreasing`.

  No example is split. Each is a segment with its own positions, so that no
  example attends to another.

  Args:
    examples: (ids [n], weights [n]) with n <= length.
    length: T, tokens of a row.
    pad_id: token id of padding.

  Returns:
    Rows of [R, T].

  Raises:
    UserError: an example is longer than a row.
  """
  lengths = [len(ids) for ids, _ in examples]
  if lengths and max(lengths) > length:
    raise UserError(
      f"an example of {max(lengths)} tokens does not fit a row of {length}",
      field="data.max_response_tokens",
      fix="lower data.max_prompt_tokens and data.max_response_tokens until"
      " their sum fits, or raise model.max_seq_len",
      code="example_too_long",
    )
  if not examples:
    return _empty_rows(0, length, pad_id)
  tokens, weights = (
    np.concatenate(part) for part in zip(*examples, strict=True)
  )
  return _pack(tokens, weights, lengths, length, pad_id)


def _pack(
  tokens: np.ndarray,
  weights: np.ndarray,
  lengths: Sequence[int],
  capacity: int,
  pad_id: int,
) -> Rows:
  """Packs sequences that are concatenated in `tokens` and `weights`."""
  assignment = best_fit_decreasing(lengths, capacity)
  # Position of each sequence's first token among the tokens of all rows.
  starts = np.zeros(len(lengths), np.int64)
  segments = np.zeros(len(lengths), np.int32)
  for row, members in enumerate(assignment):
    start = row * capacity
    for segment, i in enumerate(members, 1):
      starts[i], segments[i] = start, segment
      start += lengths[i]
  counts = np.asarray(lengths)
  positions = np.arange(len(tokens)) - np.repeat(
    np.cumsum(counts) - counts, counts
  )
  targets = np.repeat(starts, counts) + positions
  rows = _empty_rows(len(assignment), capacity, pad_id)
  for name, values in (
    ("tokens", tokens),
    ("segments", np.repeat(segments, counts)),
    ("positions", positions),
    ("weights", weights),
  ):
    rows[name].reshape(-1)[targets] = values
  return rows


def pad_examples(
  examples: Sequence[tuple[np.ndarray, np.ndarray]],
  length: int,
  *,
  pad_id: int,
) -> Rows:
  """Pads each example on the right to a row of its own.

  Args and errors are those of `pack_examples`.
  """
  rows = _empty_rows(len(examples), length, pad_id)
  for r, (ids, weights) in enumerate(examples):
    if len(ids) > length:
      pack_examples([(ids, weights)], length, pad_id=pad_id)  # Raises.
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
  """Packs documents, each with end-of-text after it, into rows.

  A document that fits a row is never split, so that its tokens are always
  predicted from their full context (arXiv:2404.10830). A longer one is split
  into pieces of at most a row. Every piece is a segment of its own. Weights are
  1, except on the first token of a segment.

  Args:
    documents: token ids of each document.
    length: T, tokens of a row.
    eos_id: token id appended to each document.
    pad_id: token id of padding.

  Returns:
    Rows of [R, T].
  """
  end = _int32([eos_id])
  chunks = [chunk for d in documents if len(d) for chunk in (_int32(d), end)]
  if not chunks:
    return _empty_rows(0, length, pad_id)
  tokens = np.concatenate(chunks)
  lengths: list[int] = []
  for document in chunks[::2]:
    full_rows, rest = divmod(len(document) + 1, length)
    lengths += [length] * full_rows + [rest] * (rest > 0)
  weights = np.ones(len(tokens), np.float32)
  weights[np.cumsum(lengths) - lengths] = 0.0
  return _pack(tokens, weights, lengths, length, pad_id)


def left_pad(
  sequences: Sequence[np.ndarray], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads sequences on the left.

  Args:
    sequences: B sequences of token ids, each at most `width` long.
    width: T, tokens of a row.
    pad_id: token id of padding.

  Returns:
    tokens [B, T] int32, and mask [B, T] bool, which is False on padding.

  Raises:
    ValueError: a sequence is longer than a row.
  """
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
  """Returns the smallest bucket length that is at least `length`."""
  for size in sorted(buckets):
    if length <= size:
      return size
  raise ValueError(f"length {length} is above every bucket {tuple(buckets)}")


def bucket_lengths(longest: int, *, count: int = 4) -> tuple[int, ...]:
  """Returns at most `count` evenly spaced lengths up to `longest`.

  All lengths, also the last, are rounded up to a multiple of 8.
  """
  top = max(_MULTIPLE, -(-longest // _MULTIPLE) * _MULTIPLE)
  sizes = {
    max(_MULTIPLE, -(-top * i // (_MULTIPLE * count)) * _MULTIPLE)
    for i in range(1, count + 1)
  }
  return tuple(sorted(sizes))


def choose_bucket_lengths(
  needed: ArrayLike, *, max_padding: float, max_count: int, steps: int
) -> tuple[int, ...]:
  """Chooses few row lengths with little padding.

  A row is padded to the smallest length that holds it, and each length costs
  one compilation. Lengths are added greedily, each where it saves the most
  padding, until the padding is at most `max_padding` of the needed tokens.

  Args:
    needed: [n] int, tokens of each row or of the longest row of each batch.
    max_padding: padding tokens that are allowed, as a share of the needed ones.
    max_count: largest number of lengths.
    steps: number of candidate lengths between two powers of two. Fewer steps
      make it likelier that other data gets the same lengths.

  Returns:
    Multiples of 8, ascending.
  """
  tokens = np.maximum(needed, _MULTIPLE)
  powers = 2 ** np.floor(np.log2(tokens)).astype(int)
  step = np.maximum(powers // steps, _MULTIPLE)
  candidates, counts = np.unique(-(-tokens // step) * step, return_counts=True)
  allowed = (1 + max_padding) * np.sum(needed)
  lengths = [int(candidates[-1])]

  def total_tokens(lengths: list[int]) -> int:
    """Returns the tokens of all rows, padding included."""
    ascending = np.sort(lengths)
    padded = ascending[np.searchsorted(ascending, candidates)]
    return (counts * padded).sum()

  while total_tokens(lengths) > allowed and len(lengths) < max_count:
    best = min(
      candidates.tolist(), key=lambda length: total_tokens([*lengths, length])
    )
    if best in lengths:
      break
    lengths.append(best)
  return tuple(sorted(lengths))
