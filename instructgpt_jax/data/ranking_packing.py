"""Packs rankings (a prompt and its completions) into rows of batches.

The completions of a prompt share a row with it or have one row each, and each
row holds one ranking or several. `choose_layout` picks the combination with the
fewest FLOPs, padding included. `ranking_batches` makes the batches: it assigns
the rankings of an epoch to batches, and those of a batch to groups, such that
all are about equally long. Which rankings a batch holds does not depend on the
layout.

A batch is G groups of R rows of T tokens. For example a group of two rankings,
of prompts p and q with completions p1, p2, p3 and q1, q2, q3:

  R = 1:  p p1 p2 p3 q q1 q2 q3
  R = K:  p p1 q q1
          p p2 q q2
          p p3 q q3

Shape letters:

  N  rankings of the data set     n  batches: all, or those that layouts are
  B  rankings of a batch             compared on
  G  groups of a batch            R  rows of a group, 1 or K: the completions of
  E  rankings of a group, B / G      each of its rankings are divided over them
  K  most completions of any      T  tokens of a row, a number for each batch
     ranking
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from instructgpt_jax.data import batch_source, packing, ranking_balance
from instructgpt_jax.data.batch_source import (
  BatchSource,
  BatchSpec,
)
from instructgpt_jax.data.encoding import EncodedRanking
from instructgpt_jax.data.ranking_source import (
  AnyRankings,
  RankingSource,
  num_completions,
  ranking_source,
  row_lengths,
)
from instructgpt_jax.types import AttentionSpan, RankingBatch

# The choice of a layout.
_COMPARED_RANKINGS = 8192  # rankings that layouts are compared on
# Most tokens of a row that holds several rankings, or twice the longest
# ranking's row if that is more: the attention mask grows with the square of the
# length.
_MAX_SHARED_ROW_TOKENS = 2048
# Layouts with a larger share of padding are taken only if all have one.
_MAX_PADDING = 0.1
# Batches of a small model that take as long as one compilation.
_BATCHES_PER_COMPILATION = 128

# The choice of row lengths; see `packing.choose_bucket_lengths`.
_MAX_BUCKET_PADDING = 1 / 12  # of the tokens of the longest rows
_LENGTHS_PER_OCTAVE = (8, 32)  # the second if the first exceeds _MAX_PADDING

_SPAN_MULTIPLE = 32  # attention spans are rounded up to a multiple of this


class Layout(NamedTuple):
  """How the rankings of a batch are laid out in rows; see the module."""

  # R: 1, or K with one completion of each ranking per row.
  rows_per_group: int
  num_groups: int  # G


def choose_layout(
  rankings: AnyRankings,
  spec: BatchSpec,
  *,
  d_model: int,
  num_scores: Callable[[int, AttentionSpan], int],
  num_shards: int = 1,
) -> Layout:
  """Chooses the layout with the fewest FLOPs among those with little padding.

  Long runs are judged by batches of their first `_COMPARED_RANKINGS` rankings.

  Args:
    rankings: encoded rankings.
    spec: the batches, of B prompts; `epochs` must be a number.
    d_model: D.
    num_scores: (tokens of a row, attention span) → number of (query, key) pairs
      of one row whose score attention computes; all heads count as one.
    num_shards: number of pieces that devices and microbatches split a batch
      into. G is a multiple of it, or B.
  """
  batch_size, source = spec.batch_size, ranking_source(rankings)
  indices = batch_source.record_indices(len(source), spec, mix=spec.mix)
  num_batches = indices.num_batches(batch_size, spec.epochs)
  batches = ranking_balance.balance_batches(
    row_lengths(source, 1)[:, 0],
    indices,
    spec,
    max_batches=max(_COMPARED_RANKINGS // batch_size, 1),
  )
  group_counts = [
    num_groups
    for num_groups in range(batch_size, 0, -1)
    if num_groups == batch_size
    or not (batch_size % num_groups or num_groups % num_shards)
  ]

  def candidates(rows: int) -> Iterator[_Candidate]:
    """Yields the layouts with R rows, those with the shortest rows first."""
    table = row_lengths(source, rows)
    max_row_tokens = max(_MAX_SHARED_ROW_TOKENS, 2 * int(table.max()))
    for num_groups in group_counts:
      grouped = ranking_balance.group_rankings(
        table.sum(axis=1), batches, num_groups
      )
      lengths = _choose_lengths(table, grouped)
      one_ranking_per_group = num_groups == batch_size
      if not one_ranking_per_group and lengths.max() > max_row_tokens:
        return  # fewer groups make rows longer still
      span = attention_span(source, rows, one_ranking_per_group)
      row_costs = {
        length: 6 * d_model * length + num_scores(length, span)
        for length in lengths.tolist()
      }
      cost = _cost_of_rows(lengths, row_costs, num_batches)
      yield _Candidate(
        has_much_padding=_padding_share(table, grouped, lengths) > _MAX_PADDING,
        cost=rows * num_groups * cost,
        layout=Layout(rows, num_groups),
      )

  max_completions = int(num_completions(source).max(initial=1))
  best = min(
    (
      candidate
      for rows in sorted({1, max_completions})
      for candidate in candidates(rows)
    ),
    key=lambda candidate: (candidate.has_much_padding, candidate.cost),
  )
  return best.layout


class _Candidate(NamedTuple):
  """A layout, with what it is judged by."""

  has_much_padding: bool
  cost: float  # of all rows; `_cost_of_rows` has the unit
  layout: Layout


def _cost_of_rows(
  lengths: np.ndarray, row_costs: dict[int, int], num_batches: int
) -> float:
  """Returns the cost of one row of each batch, compilations included.

  The unit is 4 D FLOPs in each layer, the cost of one (query, key) pair over
  all heads. A token costs 24 D² FLOPs in the weights of a layer, which are 6 D
  units. Compiling for a row length costs as much as `_BATCHES_PER_COMPILATION`
  batches.

  Args:
    lengths: [n] row lengths of the compared batches.
    row_costs: cost of a row of each of these lengths.
    num_batches: number of all batches, assumed to have these lengths in the
      same proportions.
  """
  return sum(
    (_BATCHES_PER_COMPILATION + count * num_batches / len(lengths))
    * row_costs[length]
    for length, count in collections.Counter(lengths.tolist()).items()
  )


def attention_span(
  rankings: AnyRankings, rows: int, one_ranking_per_group: bool
) -> AttentionSpan:
  """Returns how far the tokens of a row attend.

  They attend to their prompt and to their own completion. The span is rounded
  up, so that programs compiled for other rankings are likely to fit.

  Args:
    rankings: encoded rankings.
    rows: R, rows of each ranking.
    one_ranking_per_group: whether the rows of each group begin with its only
      prompt. Otherwise a prompt may be anywhere in a row, and a token attends
      as far back as a ranking is long.
  """
  source = ranking_source(rankings)
  if one_ranking_per_group:
    counts = source.token_counts
    prefix, local = (
      int(part.max(initial=0)) for part in (counts[:, :1], counts[:, 1:])
    )
  else:
    prefix, local = 0, int(row_lengths(source, rows).max())
  return AttentionSpan(
    prefix=packing.round_up(prefix, _SPAN_MULTIPLE),
    local=packing.round_up(local, _SPAN_MULTIPLE),
  )


def row_length(ranking: EncodedRanking, rows: int = 1) -> int:
  """Returns the tokens of the longest of a ranking's rows.

  Args:
    ranking: the ranking.
    rows: R, number of rows that its completions are divided over.
  """
  return int(row_lengths(ranking_source([ranking]), rows).max())


def _choose_lengths(table: np.ndarray, grouped: np.ndarray) -> np.ndarray:
  """Returns the row length of each batch, [n], with few distinct values.

  Args:
    table: [N + 1, R] tokens of each ranking's rows.
    grouped: [n, G, E] indices of rankings.
  """
  # A row's tokens are those of E rankings; a batch is as long as its longest
  # row: [n, G, E, R] → [n, G, R] → [n].
  needed = table[grouped].sum(axis=2).max(axis=(1, 2))
  lengths = needed
  for lengths_per_octave in _LENGTHS_PER_OCTAVE:
    buckets = packing.choose_bucket_lengths(
      needed,
      max_padding=_MAX_BUCKET_PADDING,
      max_count=1 + len(needed) // _BATCHES_PER_COMPILATION,
      lengths_per_octave=lengths_per_octave,
    )
    lengths = np.array(buckets)[np.searchsorted(buckets, needed)]
    if _padding_share(table, grouped, lengths) <= _MAX_PADDING:
      break
  return lengths


def _padding_share(
  table: np.ndarray, grouped: np.ndarray, lengths: np.ndarray
) -> float:
  """Returns the share of padding among all tokens of batches.

  Args:
    table: [N + 1, R] tokens of each ranking's rows.
    grouped: [n, G, E] indices of rankings.
    lengths: [n] row length of each batch.
  """
  rows = grouped.shape[1] * table.shape[1]
  return 1 - table[grouped].sum() / (rows * lengths.sum())


def ranking_batches(
  rankings: AnyRankings,
  spec: BatchSpec,
  *,
  layout: Layout,
  pad_id: int,
  with_grades: bool = False,
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
    with_grades: whether the batches have grades; then all rankings must.

  Returns:
    Iterator over RankingBatch, [G / shard_count, R, T]; ends, ranks, valid and
    grades are [G / shard_count, E, K]. Rankings that pad the last batch have no
    valid completion.

  Raises:
    ValueError: the groups do not divide the batch, or the shards the groups.
  """
  rows, num_groups = layout
  batch_size = spec.batch_size
  if batch_size % num_groups:
    raise ValueError(
      f"{num_groups} groups do not divide batch size {batch_size}"
    )
  if num_groups % spec.shard_count:
    raise ValueError(
      f"{spec.shard_count} process shards do not divide {num_groups} groups"
    )
  source = ranking_source(rankings)
  max_completions = int(num_completions(source).max(initial=0))
  indices = batch_source.record_indices(len(source), spec, mix=spec.mix)
  batches = ranking_balance.balance_batches(
    row_lengths(source, 1)[:, 0], indices, spec
  )
  table = row_lengths(source, rows)
  grouped = ranking_balance.group_rankings(
    table.sum(axis=1), batches, num_groups
  )
  lengths = _choose_lengths(table, grouped).tolist()
  span = attention_span(
    source, rows, one_ranking_per_group=num_groups == batch_size
  )

  def make(index: int, batch: np.ndarray, shard: slice) -> RankingBatch:
    del batch  # in the order of the epoch; `grouped` has the balanced batches
    # `shard` is a range of the batch's rankings; groups have the same order.
    rankings_per_group = batch_size // num_groups
    ids = grouped[
      index,
      shard.start // rankings_per_group : shard.stop // rankings_per_group,
    ]
    return _make_batch(
      source,
      ids,
      (rows, lengths[index]),
      max_completions=max_completions,
      pad_id=pad_id,
      span=span,
      with_grades=with_grades,
    )

  return batch_source.make_iterator(BatchSource(indices, spec, make))


def _make_batch(
  rankings: RankingSource,
  ids: np.ndarray,
  group_shape: tuple[int, int],
  *,
  max_completions: int,
  pad_id: int,
  span: AttentionSpan,
  with_grades: bool,
) -> RankingBatch:
  """Writes rankings into the rows of a batch.

  Args:
    rankings: encoded rankings.
    ids: [G, E] indices of the rankings of each group, -1 for padding.
    group_shape: (R, T), rows of a group and tokens of a row.
    max_completions: K, the most completions of a ranking.
    pad_id: token id of padding.
    span: how far the tokens attend.
    with_grades: whether the batch has grades.
  """
  shape = (len(ids), *group_shape)
  arrays = dict(
    tokens=np.full(shape, pad_id, np.int32),
    segments=np.zeros(shape, np.int32),
    positions=np.zeros(shape, np.int32),
    ends=np.zeros((*ids.shape, max_completions), np.int32),
    ranks=np.zeros((*ids.shape, max_completions), np.int32),
    valid=np.zeros((*ids.shape, max_completions), bool),
  )
  if with_grades:
    arrays["grades"] = np.zeros(arrays["ranks"].shape, np.float32)
  for g, members in enumerate(ids.tolist()):
    group = {name: array[g] for name, array in arrays.items()}
    row_ends = [0] * group_shape[0]
    for e, i in enumerate(members):
      if i >= 0:
        _write_ranking(rankings[i], e, group, row_ends)
  return RankingBatch(**arrays, ids=ids.astype(np.int32), span=span)


def _write_ranking(
  ranking: EncodedRanking,
  e: int,
  group: dict[str, np.ndarray],
  row_ends: list[int],
) -> None:
  """Writes a ranking into the rows of its group, in place.

  The prompt has segment −1 − e, which makes it a prefix of all segments up to
  the next negative one; see `models.attention.attention_mask`.
  Completion j has segment e · K + j + 1, which no other completion of the group
  has, and its positions continue those of the prompt.

  Args:
    ranking: the ranking.
    e: its index in the group.
    group: views of the group's arrays in the batch: tokens, segments and
      positions [R, T]; ends, ranks, valid and, if it has them, grades [E, K].
    row_ends: [R] number of tokens in each row so far.
  """
  prompt, completions, ranks, grades = ranking
  max_completions = group["ranks"].shape[1]
  rows, length = group["tokens"].shape
  per_row = -(-len(completions) // rows)

  def append(
    row: int, token_ids: np.ndarray, segment: int, position: int
  ) -> None:
    """Appends token ids to a row; the first of them has the position."""
    start, end = row_ends[row], row_ends[row] + len(token_ids)
    group["tokens"][row, start:end] = token_ids
    group["segments"][row, start:end] = segment
    group["positions"][row, start:end] = position + np.arange(len(token_ids))
    row_ends[row] = end

  group["ranks"][e, : len(ranks)] = ranks
  group["valid"][e, : len(ranks)] = True
  if "grades" in group:
    group["grades"][e, : len(ranks)] = grades
  for j, completion in enumerate(completions):
    row = j // per_row
    if j % per_row == 0:
      append(row, prompt, segment=-1 - e, position=0)
    append(
      row, completion, segment=e * max_completions + j + 1, position=len(prompt)
    )
    group["ends"][e, j] = row * length + row_ends[row] - 1
