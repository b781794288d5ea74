"""Packs rankings (a prompt and its completions) into rows of batches.

The completions of a prompt share a row with it or have one row each, and each
row holds one ranking or several. `choose_layout` picks the combination with the
fewest FLOPs, padding included. `ranking_batches` assigns the rankings of an
epoch to batches, and those of a batch to rows, such that all are about equally
long. Which rankings a batch holds does not depend on the layout.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from instructgpt_jax.data import batch_source, packing
from instructgpt_jax.data.batch_source import (
  BatchSource,
  BatchSpec,
  ShuffledIndices,
)
from instructgpt_jax.data.encoding import EncodedRanking
from instructgpt_jax.types import AttentionSpan, RankingBatch

_SPAN_MULTIPLE = 32  # attention spans are rounded up to a multiple of this
_LONGEST_SHARED = 2048  # tokens; longer rows hold a single ranking each
_MAX_PADDING = 0.1  # share of padding tokens above which a layout is avoided
_LENGTH_STEPS = (8, 32)  # candidate lengths per power of two, tried in turn
_COMPARED_RANKINGS = 8192  # rankings that layouts are compared on
_MAX_LENGTH_PADDING = 1 / 12  # padding that bucket lengths may add
# Batches of a small model that take as long as one compilation.
_BATCHES_PER_COMPILATION = 128


class Layout(NamedTuple):
  """How the rankings of a batch are laid out in rows.

  B rankings are G groups of B / G rankings. A group has R rows, and each row
  holds the prompts of all rankings of its group.
  """

  rows: int  # R of each group: 1, or K with one completion per ranking each
  groups: int  # G


def row_length(ranking: EncodedRanking, rows: int = 1) -> int:
  """Returns the tokens of the longest of a ranking's rows.

  Args:
    ranking: the ranking.
    rows: R, number of rows that its completions are divided over.
  """
  return max(_row_lengths(ranking, rows))


def choose_layout(
  rankings: Sequence[EncodedRanking],
  spec: BatchSpec,
  *,
  d_model: int,
  num_scores: Callable[[int, AttentionSpan], int],
  parts: int = 1,
) -> Layout:
  """Chooses the layout with the fewest FLOPs among those with little padding.

  A token costs 24 D² FLOPs in the weights of a layer, and each attention score
  4 D. Each row length adds the cost of one compilation. Long runs are judged by
  their first batches.

  Args:
    rankings: encoded rankings.
    spec: the batches, of B prompts; `epochs` must be a number.
    d_model: D.
    num_scores: (tokens of a row, attention span) → number of scores that
      attention computes.
    parts: number of parts that a batch is split into by devices and by
      microbatches. The groups are a multiple of it where B is one.
  """
  batch_size = spec.batch_size
  indices = ShuffledIndices(len(rankings), spec.seed, spec.shuffle)
  group_counts = [
    g
    for g in range(batch_size, 0, -1)
    if g == batch_size or not (batch_size % g or g % parts)
  ]
  max_batches = max(_COMPARED_RANKINGS // batch_size, 1)
  batches = _balance_batches(rankings, indices, spec, max_batches)
  total = indices.num_batches(batch_size, spec.epochs)

  def costs(rows: int) -> Iterator[tuple[bool, float, Layout]]:
    """Yields (has much padding, cost, layout) of each layout with R rows."""
    table = _row_length_table(rankings, rows)
    # The attention mask grows with the square of the length.
    longest = max(_LONGEST_SHARED, 2 * int(table.max()))
    for layout in (Layout(rows, g) for g in group_counts):
      groups = _group_rankings(table, batches, layout.groups)
      lengths = _choose_lengths(table, groups)
      single = layout.groups == batch_size
      if not single and lengths.max() > longest:
        return
      span = attention_span(rankings, rows, single)
      cost = sum(
        (_BATCHES_PER_COMPILATION + count * total / len(lengths))
        * (6 * d_model * length + num_scores(length, span))
        for length, count in collections.Counter(lengths.tolist()).items()
      )
      is_wasteful = _padding_share(table, groups, lengths) > _MAX_PADDING
      yield is_wasteful, rows * layout.groups * cost, layout

  most = max((len(r.ranks) for r in rankings), default=1)
  candidates = itertools.chain.from_iterable(map(costs, sorted({1, most})))
  return min(candidates, key=operator.itemgetter(0, 1))[2]


def attention_span(
  rankings: Sequence[EncodedRanking], rows: int, single: bool
) -> AttentionSpan:
  """Returns how far the tokens of a row attend.

  They attend to their prompt and to their own completion. The span is rounded
  up, so that programs compiled for other rankings are likely to fit.

  Args:
    rankings: encoded rankings.
    rows: R, rows of each ranking.
    single: whether each group holds a single ranking, so that its rows begin
      with its prompt.
  """
  if single:
    first = max((len(r.prompt) for r in rankings), default=0)
    last = max((len(c) for r in rankings for c in r.completions), default=0)
  else:
    first, last = 0, int(_row_length_table(rankings, rows).max())
  return AttentionSpan(
    *(-(-n // _SPAN_MULTIPLE) * _SPAN_MULTIPLE for n in (first, last))
  )


def _row_lengths(ranking: EncodedRanking, rows: int) -> list[int]:
  """Returns the tokens of each of a ranking's rows, [R]."""
  prompt, completions, _ = ranking
  per_row = -(-len(completions) // rows)
  chunks = [completions[r * per_row : (r + 1) * per_row] for r in range(rows)]
  return [
    len(prompt) + sum(map(len, chunk)) if chunk else 0 for chunk in chunks
  ]


def _row_length_table(
  rankings: Sequence[EncodedRanking], rows: int
) -> np.ndarray:
  """Returns the token counts per ranking and row, [N + 1, R].

  A last row of zeros stands for padding, which has index -1.
  """
  return np.array([*(_row_lengths(r, rows) for r in rankings), [0] * rows])


def _balance_batches(
  rankings: Sequence[EncodedRanking],
  indices: ShuffledIndices,
  spec: BatchSpec,
  max_batches: int = sys.maxsize,
) -> np.ndarray:
  """Assigns rankings to batches of about equal numbers of tokens.

  The rankings of an epoch are balanced over its batches. A batch that spans two
  epochs, or that is padded, stays as it is.

  Args:
    rankings: encoded rankings.
    indices: their indices in the order of all epochs.
    spec: the batches, of B prompts.
    max_batches: number of batches after which to stop.

  Returns:
    [n, B] indices of rankings, -1 for padding.
  """
  batch_size, epochs = spec.batch_size, spec.epochs
  if epochs is None:
    raise ValueError("batches of rankings need a number of epochs")
  tokens = _row_length_table(rankings, 1)[:, 0]

  def epochs_of(batch: int) -> tuple[int, int]:
    """Returns the epochs of a batch's first and last position."""
    positions = (batch * batch_size, (batch + 1) * batch_size - 1)
    first, last = (position // indices.count for position in positions)
    return first, last

  count = min(indices.num_batches(batch_size, epochs), max_batches)
  balanced = []
  for _, group in itertools.groupby(range(count), key=epochs_of):
    batches = list(group)
    members = np.concatenate(
      [indices.batch(i, batch_size, epochs) for i in batches]
    )
    positions = _shuffle_balanced_pairs(
      tokens[members], batch_size, indices, batches[0]
    )
    balanced.append(members[positions])
  return np.concatenate(balanced)


def _shuffle_balanced_pairs(
  lengths: np.ndarray, batch_size: int, indices: ShuffledIndices, epoch: int
) -> np.ndarray:
  """Divides sequences into batches with about equal sums of lengths.

  The sequences are divided into pairs with about equal sums, and each batch
  gets random pairs. If B is odd, it also gets one of the n sequences in the
  middle of all lengths.

  Args:
    lengths: [n · B] lengths of the sequences.
    batch_size: B.
    indices: the seed and shuffle setting of the random order.
    epoch: a number that differs between epochs.

  Returns:
    [n, B] positions in `lengths`.
  """
  count = len(lengths) // batch_size
  num_middle = count if batch_size % 2 else 0
  num_pairs = (len(lengths) - num_middle) // 2
  by_length = np.argsort(lengths, kind="stable")
  middle = by_length[num_pairs : num_pairs + num_middle]
  others = np.delete(np.arange(len(lengths)), middle)
  pairs = others[_greedy_partition(lengths[others], num_pairs)]
  columns = []
  for units in (pairs, np.sort(middle)):
    if len(units):
      order = ShuffledIndices(
        len(units), indices.seed, indices.shuffle, stream=1
      )
      columns.append(units[order.epoch(epoch)].reshape(count, -1))
  return np.sort(np.concatenate(columns, axis=1))


def _group_rankings(
  table: np.ndarray, batches: np.ndarray, groups: int
) -> np.ndarray:
  """Divides batches of rankings, [n, B], into equally long groups, [n, G, E].

  Args:
    table: [N + 1, R] tokens of each ranking's rows.
    batches: [n, B] indices of rankings.
    groups: G.
  """
  tokens = table.sum(axis=1)
  return np.array(
    [batch[_greedy_partition(tokens[batch], groups)] for batch in batches]
  )


def _greedy_partition(lengths: np.ndarray, groups: int) -> np.ndarray:
  """Divides sequences into equally large groups with about equal sums.

  The longest sequence goes first, each to the group with the smallest sum.

  Args:
    lengths: [n] lengths.
    groups: G.

  Returns:
    [G, n / G] positions in `lengths`, ascending within and between groups.
  """
  capacity = len(lengths) // groups if groups else 0
  members: list[list[int]] = [[] for _ in range(groups)]
  sums = [(0, g) for g in range(groups)]
  for i in np.argsort(-lengths, kind="stable").tolist():
    total, g = heapq.heappop(sums)
    members[g].append(i)
    if len(members[g]) < capacity:
      heapq.heappush(sums, (total + int(lengths[i]), g))
  return np.array(sorted(map(sorted, members)), int).reshape(groups, capacity)


def _choose_lengths(table: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Returns the row length of each batch, [n], with few distinct values.

  Args:
    table: [N + 1, R] tokens of each ranking's rows.
    groups: [n, G, E] indices of rankings.
  """
  needed = table[groups].sum(axis=2).max(axis=(1, 2))
  lengths = needed
  for steps in _LENGTH_STEPS:
    buckets = packing.choose_bucket_lengths(
      needed,
      max_padding=_MAX_LENGTH_PADDING,
      max_count=1 + len(needed) // _BATCHES_PER_COMPILATION,
      steps=steps,
    )
    lengths = np.array(buckets)[np.searchsorted(buckets, needed)]
    if _padding_share(table, groups, lengths) <= _MAX_PADDING:
      break
  return lengths


def _padding_share(
  table: np.ndarray, groups: np.ndarray, lengths: np.ndarray
) -> float:
  """Returns the share of padding among all tokens of batches.

  Args:
    table: [N + 1, R] tokens of each ranking's rows.
    groups: [n, G, E] indices of rankings.
    lengths: [n] row length of each batch.
  """
  rows = groups.shape[1] * table.shape[1]
  return 1 - table[groups].sum() / (rows * lengths.sum())


def ranking_batches(
  rankings: Sequence[EncodedRanking],
  spec: BatchSpec,
  *,
  layout: Layout,
  pad_id: int,
) -> grain.DatasetIterator:
  """Returns an iterator over batches of prompts with their K completions.

  Which prompts a batch holds depends on the seed, on the epoch and on their
  lengths, but not on the layout. A run that resumes with another layout, on
  other devices, therefore gets the same batches. All batches are about equally
  long, with few distinct row lengths, because a program is compiled for each.

  Args:
    rankings: encoded rankings.
    spec: the batches, of B prompts; `epochs` must be a number.
    layout: R rows of each of G groups; see `choose_layout`.
    pad_id: token id of padding.

  Returns:
    Iterator over RankingBatch, [G / shard_count, R, T]. Elements that pad the
    last batch have no valid completion.

  Raises:
    ValueError: the groups do not divide the batch, or the shards the groups.
  """
  rows, groups = layout
  batch_size = spec.batch_size
  if batch_size % groups or groups % spec.shard_count:
    raise ValueError(
      f"{groups} groups neither make up batch size {batch_size} nor split over"
      f" {spec.shard_count} hosts"
    )
  k = max((len(r.ranks) for r in rankings), default=0)
  indices = ShuffledIndices(len(rankings), spec.seed, spec.shuffle)
  table = _row_length_table(rankings, rows)
  batches = _balance_batches(rankings, indices, spec)
  grouped = _group_rankings(table, batches, groups)
  lengths = _choose_lengths(table, grouped).tolist()
  span = attention_span(rankings, rows, single=groups == batch_size)

  def make(index: int, batch: np.ndarray, shard: slice) -> RankingBatch:
    del batch  # It is balanced against the other batches of its epoch.
    per_group = batch_size // groups
    ids = grouped[index, shard.start // per_group : shard.stop // per_group]
    return _make_batch(rankings, ids, rows, lengths[index], k, pad_id, span)

  return batch_source.make_iterator(BatchSource(indices, spec, make))


def _make_batch(
  rankings: Sequence[EncodedRanking],
  ids: np.ndarray,
  rows: int,
  length: int,
  k: int,
  pad_id: int,
  span: AttentionSpan,
) -> RankingBatch:
  """Writes rankings into the rows of a batch.

  Args:
    rankings: encoded rankings.
    ids: [G, E] indices of the rankings of each group, -1 for padding.
    rows: R, rows of each group.
    length: T, tokens of a row.
    k: K, the most completions of a ranking.
    pad_id: token id of padding.
    span: how far the tokens attend.
  """
  shape = (len(ids), rows, length)
  tokens = np.full(shape, pad_id, np.int32)
  segments, positions = np.zeros((2, *shape), np.int32)
  ranks, ends = np.zeros((2, *ids.shape, k), np.int32)
  valid = np.zeros((*ids.shape, k), bool)
  row_ends = np.zeros((len(ids), rows), np.int64)
  for (g, e), i in np.ndenumerate(ids):
    if i < 0:
      continue
    prompt, completions, completion_ranks = rankings[i]
    ranks[g, e, : len(completion_ranks)] = completion_ranks
    valid[g, e, : len(completion_ranks)] = True
    per_row = -(-len(completions) // rows)
    for j, completion in enumerate(completions):
      r = j // per_row
      # (token ids, segment, position of the first token)
      pieces = [(completion, e * k + j + 1, len(prompt))]
      if not j % per_row:
        pieces.insert(0, (prompt, -e - 1, 0))
      for piece, segment, position in pieces:
        start = row_ends[g, r]
        end = row_ends[g, r] = start + len(piece)
        tokens[g, r, start:end] = piece
        segments[g, r, start:end] = segment
        positions[g, r, start:end] = np.arange(position, position + end - start)
      ends[g, e, j] = r * length + row_ends[g, r] - 1
  return RankingBatch(
    tokens=tokens,
    segments=segments,
    positions=positions,
    ends=ends,
    ranks=ranks,
    valid=valid,
    ids=ids.astype(np.int32),
    span=span,
  )
