"""Packs and pads sequences of token ids into rows of a batch. Pure NumPy.

pack_examples, pack_documents   several sequences to a row
pad_examples                    one sequence to a row, padded on the right
left_pad                        prompts, padded on the left
bucket_lengths, …               few row lengths, since each costs a compilation
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from instructgpt_jax.errors import UserError

Rows = dict[str, np.ndarray]
"""Rows of packed sequences, by name, with the fields of `LanguageBatch`.

  tokens     [R, T] int32, token ids
  segments   [R, T] int32, number of the token's sequence in its row, from 1;
             0 on padding. A token attends to its own segment only.
  positions  [R, T] int32, index of the token in its segment; 0 on padding
  weights    [R, T] float32, weight of predicting the token in the loss; 0 where
             it is not learned (prompts, padding, the first token of a segment)
"""

_LENGTH_MULTIPLE = 8  # row lengths are rounded up to a multiple of this

_Counts = TypeVar("_Counts", int, np.ndarray)


def round_up(n: _Counts, multiple: _Counts) -> _Counts:
  """Rounds counts up to a multiple."""
  return -(-n // multiple) * multiple


def empty_rows(count: int, length: int, pad_id: int) -> Rows:
  """Returns rows of padding alone, each [count, length]."""
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

  Each sequence goes to the row with the fewest free tokens that it fits, or to
  a new row if it fits none.

  Args:
    lengths: tokens of each sequence, at most `capacity`; sequences of 0 tokens
      are left out.
    capacity: tokens of a row.

  Returns:
    Indices of the sequences of each row, ascending. Rows are in the order of
    their first sequence.
  """
  rows: list[list[int]] = []
  # Finds the best row in O(log capacity): rows_with_free[n] lists the rows that
  # have n free tokens, and free_counts lists each n > 0 that has such rows, in
  # ascending order.
  rows_with_free: list[list[int]] = [[] for _ in range(capacity + 1)]
  free_counts: list[int] = []
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[i]
    if not length:
      continue
    best = bisect.bisect_left(free_counts, length)
    if best == len(free_counts):
      row, free = len(rows), capacity
      rows.append([])
    else:
      free = free_counts[best]
      row = rows_with_free[free].pop()
      if not rows_with_free[free]:
        free_counts.pop(best)
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
    examples: (token ids [n], their loss weights [n]) with n <= length.
    length: T, tokens of a row.
    pad_id: token id of padding.

  Returns:
    Rows of [R, T].

  Raises:
    UserError: an example is longer than a row.
  """
  lengths = [len(ids) for ids, _ in examples]
  _check_lengths(lengths, length)
  if not examples:
    return empty_rows(0, length, pad_id)
  tokens, weights = map(np.concatenate, zip(*examples, strict=True))
  return _pack(tokens, weights, lengths, length, pad_id)


def _check_lengths(lengths: Sequence[int], row_length: int) -> None:
  """Raises `UserError` if an example is longer than a row."""
  longest = max(lengths, default=0)
  if longest > row_length:
    raise UserError(
      f"an example of {longest} tokens does not fit a row of {row_length}",
      field="data.max_response_tokens",
      fix="lower data.max_prompt_tokens and data.max_response_tokens until"
      " their sum fits, or raise model.max_seq_len",
      code="example_too_long",
    )


def _pack(
  tokens: np.ndarray,
  weights: np.ndarray,
  lengths: Sequence[int],
  capacity: int,
  pad_id: int,
) -> Rows:
  """Packs concatenated sequences, each as a segment.

  Args:
    tokens: [n] token ids of all sequences, one sequence after another.
    weights: [n] loss weights of these tokens.
    lengths: tokens of each sequence.
    capacity: T, tokens of a row.
    pad_id: token id of padding.

  Returns:
    Rows of [R, T].
  """
  assignment = best_fit_decreasing(lengths, capacity)
  # Of each sequence: where it starts in the flattened rows [R · T], and its
  # segment.
  row_offsets = np.zeros(len(lengths), np.int64)
  segments = np.zeros(len(lengths), np.int32)
  for row, members in enumerate(assignment):
    offset = row * capacity
    for segment, i in enumerate(members, 1):
      row_offsets[i], segments[i] = offset, segment
      offset += lengths[i]
  # Of each token: its position in its sequence, and its flat index in the rows.
  counts = np.asarray(lengths)
  starts = np.cumsum(counts) - counts
  positions = np.arange(len(tokens)) - np.repeat(starts, counts)
  flat_indices = np.repeat(row_offsets, counts) + positions
  rows = empty_rows(len(assignment), capacity, pad_id)
  for name, values in (
    ("tokens", tokens),
    ("segments", np.repeat(segments, counts)),
    ("positions", positions),
    ("weights", weights),
  ):
    rows[name].reshape(-1)[flat_indices] = values
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
  _check_lengths([len(ids) for ids, _ in examples], length)
  rows = empty_rows(len(examples), length, pad_id)
  for row, (ids, weights) in enumerate(examples):
    count = len(ids)
    rows["tokens"][row, :count] = ids
    rows["segments"][row, :count] = 1
    rows["positions"][row, :count] = np.arange(count)
    rows["weights"][row, :count] = weights
  return rows


def pack_documents(
  documents: Sequence[Sequence[int] | np.ndarray],
  length: int,
  *,
  eos_id: int,
  pad_id: int,
) -> Rows:
  """Packs documents, each with end-of-text after it, into rows.

  A document that fits a row, end-of-text included, is never split, so that its
  tokens are always predicted from their full context (arXiv:2404.10830). A
  longer one is split into pieces of at most a row. Every piece is a segment of
  its own. Weights are 1, but 0 on the first token of a segment, which has no
  context.

  Args:
    documents: token ids of each document.
    length: T, tokens of a row.
    eos_id: token id appended to each document.
    pad_id: token id of padding.

  Returns:
    Rows of [R, T].
  """
  eos = np.array([eos_id], np.int32)
  # Token ids of each non-empty document, then end-of-text.
  chunks: list[np.ndarray] = []
  lengths: list[int] = []
  for document in documents:
    if not len(document):
      continue
    chunks += [np.asarray(document, np.int32), eos]
    full_rows, rest = divmod(len(document) + 1, length)
    lengths += [length] * full_rows + [rest] * (rest > 0)
  if not chunks:
    return empty_rows(0, length, pad_id)
  tokens = np.concatenate(chunks)
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
  for row, ids in enumerate(sequences):
    if len(ids) > width:
      raise ValueError(f"{len(ids)} tokens do not fit a width of {width}")
    start = width - len(ids)
    tokens[row, start:] = ids
    mask[row, start:] = True
  return tokens, mask


def smallest_bucket(length: int, buckets: Sequence[int]) -> int:
  """Returns the smallest bucket length that is at least `length`.

  Raises:
    ValueError: all bucket lengths are smaller.
  """
  for size in sorted(buckets):
    if length <= size:
      return size
  raise ValueError(f"length {length} is above every bucket {tuple(buckets)}")


def bucket_lengths(longest: int, *, count: int = 4) -> tuple[int, ...]:
  """Returns at most `count` evenly spaced lengths up to `longest`.

  All lengths, also the last, are rounded up to a multiple of 8.
  """
  top = round_up(max(longest, 1), _LENGTH_MULTIPLE)
  sizes = {
    round_up(top * i, _LENGTH_MULTIPLE * count) // count
    for i in range(1, count + 1)
  }
  return tuple(sorted(sizes))


def choose_bucket_lengths(
  needed: ArrayLike,
  *,
  max_padding: float,
  max_count: int,
  lengths_per_octave: int,
) -> tuple[int, ...]:
  """Chooses few row lengths with little padding.

  A row is padded to the smallest length that holds it, and each length costs
  one compilation. Lengths are added greedily, each where it saves the most
  padding, until the padding is at most `max_padding` of the needed tokens, or
  there are `max_count` lengths, or no length saves padding.

  Args:
    needed: [n] int, tokens of each row or of the longest row of each batch.
    max_padding: padding tokens that are allowed, as a share of the needed ones.
    max_count: largest number of lengths.
    lengths_per_octave: number of candidate lengths between two powers of two.
      Fewer candidates make it likelier that other data gets the same lengths.

  Returns:
    The lengths, ascending; multiples of 8 if `lengths_per_octave` is a power of
    two.
  """
  row_tokens = np.maximum(needed, _LENGTH_MULTIPLE)
  octave_starts = 2 ** np.floor(np.log2(row_tokens)).astype(int)
  spacing = np.maximum(octave_starts // lengths_per_octave, _LENGTH_MULTIPLE)
  # The candidates, and how many of the needed lengths round up to each.
  candidates, counts = np.unique(
    round_up(row_tokens, spacing), return_counts=True
  )
  max_tokens = (1 + max_padding) * np.sum(needed)
  lengths = [int(candidates[-1])]

  def total_tokens(lengths: list[int]) -> int:
    """Returns the tokens of all rows, padding included."""
    ascending = np.sort(lengths)
    padded = ascending[np.searchsorted(ascending, candidates)]
    return (counts * padded).sum()

  while total_tokens(lengths) > max_tokens and len(lengths) < max_count:
    best = min(
      candidates.tolist(), key=lambda length: total_tokens([*lengths, length])
    )
    if best in lengths:
      break
    lengths.append(best)
  return tuple(sorted(lengths))
