"""Rankings in rows, of which several may stand in one.

A prompt's completions share a row with it or have one each, and each row holds
one ranking's part or several, one after the other: whichever takes the fewest
operations, which padding is counted among. The rankings of an epoch are dealt
to batches, and those of a batch to rows, such that all are about as long. Which
batch a ranking is in does not depend on how it stands there.
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
from instructgpt_jax.data.encoding import EncodedRanking
from instructgpt_jax.types import AttentionSpan, RankingBatch

_REACH = 32  # tokens that a reach is rounded up to
_LONGEST = 2048  # tokens of rows that may hold several rankings in any case
_PADDING = 0.1  # share of the tokens that may be padding if it can be helped
_STEPS = (8, 32)  # lengths from one power of two to the next, to be tried
_COMPARED = 8192  # rankings that layouts are compared by
_SPARE = 1 / 12  # share of the needed tokens that lengths may leave empty
_COMPILED = 128  # batches that a small model runs while one is compiled


class Layout(NamedTuple):
  """How the rankings of a batch stand in rows."""

  rows: int  # R: 1, of a prompt with all its completions; or K, with one each
  groups: int  # G, of a batch: each has as many rankings, and R rows


def width(ranking: EncodedRanking, rows: int = 1) -> int:
  """Tokens of a ranking's longest row: the prompt and the row's completions."""
  return max(_widths(ranking, rows))


def choose(
  rankings: Sequence[EncodedRanking],
  *,
  batch_size: int,
  model_width: int,
  pairs: Callable[[int, AttentionSpan], int],
  seed: int = 0,
  epochs: int = 1,
  shuffle: bool = True,
  parts: int = 1,
) -> Layout:
  """The layout whose batches take the fewest operations, with little padding.

  A token costs 24 D² in a layer's weights, and each pair of a query and a key
  4 D. Each length costs what it takes to compile. Of a long run the first
  batches tell.

  Args:
    rankings: encoded rankings.
    batch_size: B, prompts of a global batch.
    model_width: D.
    pairs: (tokens of a row, how far they look) → pairs that attention computes.
    seed: of the order.
    epochs: passes over the rankings.
    shuffle: whether each epoch has an order of its own.
    parts: what batches are split into, by devices and by microbatches; the
      groups are a multiple of them where B is.
  """
  order = batch_source.Order(len(rankings), seed, shuffle)
  groups = [
    g
    for g in range(batch_size, 0, -1)
    if g == batch_size or not (batch_size % g or g % parts)
  ]
  compared = max(_COMPARED // batch_size, 1)
  dealt = _deal(rankings, order, batch_size, epochs, compared)
  total = order.batches(batch_size, epochs)

  def costs(rows: int) -> Iterator[tuple[bool, float, Layout]]:
    widths = _table(rankings, rows)
    # The mask of a row grows by squares.
    longest = max(_LONGEST, 2 * int(widths.max()))
    for layout in (Layout(rows, g) for g in groups):
      grouped = _group(widths, dealt, layout.groups)
      lengths = _lengths(widths, grouped)
      alone = layout.groups == batch_size
      if not alone and lengths.max() > longest:
        return
      far = reach(rankings, rows, alone)
      cost = sum(
        (_COMPILED + count * total / len(lengths))
        * (6 * model_width * length + pairs(length, far))
        for length, count in collections.Counter(lengths.tolist()).items()
      )
      wasteful = _padding(widths, grouped, lengths) > _PADDING
      yield wasteful, rows * layout.groups * cost, layout

  most = max((len(r.ranks) for r in rankings), default=1)
  found = itertools.chain.from_iterable(map(costs, sorted({1, most})))
  return min(found, key=operator.itemgetter(0, 1))[2]


def reach(
  rankings: Sequence[EncodedRanking], rows: int, alone: bool
) -> AttentionSpan:
  """How far a row's tokens look: at their prompt and at their own completion.

  Rounded up, so that other rankings are likely to find compiled programs.

  Args:
    rankings: encoded rankings.
    rows: of each.
    alone: whether no other stands in a ranking's rows, which its prompt begins.
  """
  if alone:
    first = max((len(r.prompt) for r in rankings), default=0)
    last = max((len(c) for r in rankings for c in r.completions), default=0)
  else:
    first, last = 0, int(_table(rankings, rows).max())
  return AttentionSpan(*(-(-n // _REACH) * _REACH for n in (first, last)))


def _widths(ranking: EncodedRanking, rows: int) -> list[int]:
  """[R] tokens of each of a ranking's rows."""
  prompt, completions, _ = ranking
  share = -(-len(completions) // rows)
  parts = [completions[r * share : (r + 1) * share] for r in range(rows)]
  return [len(prompt) + sum(map(len, part)) if part else 0 for part in parts]


def _table(rankings: Sequence[EncodedRanking], rows: int) -> np.ndarray:
  """[N + 1, R] tokens of each ranking's rows; the last, of none, has none."""
  return np.array([*(_widths(r, rows) for r in rankings), [0] * rows])


def _deal(
  rankings: Sequence[EncodedRanking],
  order: batch_source.Order,
  batch_size: int,
  epochs: int,
  most: int = sys.maxsize,
) -> np.ndarray:
  """Deals rankings to batches that are all about as long.

  An epoch's rankings are dealt at once. A batch that holds the end of one epoch
  and the start of the next, or that is filled up, stays as it is.

  Args:
    rankings: encoded rankings.
    order: of the rankings.
    batch_size: B.
    epochs: passes over the rankings.
    most: batches.

  Returns:
    [n, B] rankings, -1 for none.
  """
  tokens = _table(rankings, 1)[:, 0]

  def ends(index: int) -> tuple[int, int]:
    """Epochs of a batch's first place and of its last."""
    places = (index * batch_size, (index + 1) * batch_size - 1)
    return tuple(place // order.count for place in places)

  count = min(order.batches(batch_size, epochs), most)
  found = []
  for _, indices in itertools.groupby(range(count), key=ends):
    window = list(indices)
    chosen = np.concatenate(
      [order.batch(i, batch_size, epochs) for i in window]
    )
    places = _mixed(tokens[chosen], batch_size, order, window[0])
    found.append(chosen[places])
  return np.concatenate(found)


def _mixed(
  lengths: np.ndarray, batch_size: int, order: batch_source.Order, epoch: int
) -> np.ndarray:
  """[n · B] lengths → [n, B] places of them, in batches with like sums.

  They are dealt into twos that are about as long, and a batch takes any of
  these; where B is odd, also any one of the n in the middle.

  Args:
    lengths: of rankings.
    batch_size: B.
    order: of the rankings; what is drawn has its seed.
    epoch: any number that is another in each epoch.
  """
  count = len(lengths) // batch_size
  odd = count if batch_size % 2 else 0
  shorter = (len(lengths) - odd) // 2
  middle = np.argsort(lengths, kind="stable")[shorter : shorter + odd]
  others = np.delete(np.arange(len(lengths)), middle)
  found = []
  for parts in (others[_even(lengths[others], shorter)], np.sort(middle)):
    if len(parts):
      drawn = batch_source.Order(
        len(parts), order.seed, order.shuffle, stream=1
      )
      found.append(parts[drawn.epoch(epoch)].reshape(count, -1))
  return np.sort(np.concatenate(found, axis=1))


def _group(widths: np.ndarray, dealt: np.ndarray, groups: int) -> np.ndarray:
  """[n, B] rankings of batches → [n, G, E], in groups about as long."""
  whole = widths.sum(axis=1)
  return np.array([batch[_even(whole[batch], groups)] for batch in dealt])


def _even(lengths: np.ndarray, groups: int) -> np.ndarray:
  """[n] lengths → [G, n / G] places of them, in groups with like sums.

  The longest first, each to the group that has the least so far. What comes
  first stands first.
  """
  room = len(lengths) // groups if groups else 0
  found: list[list[int]] = [[] for _ in range(groups)]
  sums = [(0, g) for g in range(groups)]
  for i in np.argsort(-lengths, kind="stable").tolist():
    total, g = heapq.heappop(sums)
    found[g].append(i)
    if len(found[g]) < room:
      heapq.heappush(sums, (total + int(lengths[i]), g))
  return np.array(sorted(map(sorted, found)), int).reshape(groups, room)


def _lengths(widths: np.ndarray, grouped: np.ndarray) -> np.ndarray:
  """[n] length that the rows of each batch take, of a few."""
  needed = widths[grouped].sum(axis=2).max(axis=(1, 2))
  found = needed
  for steps in _STEPS:
    sizes = packing.choose_bucket_lengths(
      needed, spare=_SPARE, most=1 + len(needed) // _COMPILED, steps=steps
    )
    found = np.array(sizes)[np.searchsorted(sizes, needed)]
    if _padding(widths, grouped, found) <= _PADDING:
      break
  return found


def _padding(
  widths: np.ndarray, grouped: np.ndarray, lengths: np.ndarray
) -> float:
  """The share of the tokens that is padding."""
  rows = grouped.shape[1] * widths.shape[1]
  return 1 - widths[grouped].sum() / (rows * lengths.sum())


def batches(
  rankings: Sequence[EncodedRanking],
  *,
  batch_size: int,
  pad_id: int,
  layout: Layout,
  seed: int = 0,
  epochs: int = 1,
  shuffle: bool = True,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Batches in which prompts with their K completions are an element.

  Which prompts a batch has depends on (seed, epoch) and on their lengths, and
  not on the layout, which is another on other devices: a run goes on there with
  the same batches. All are about as long, and take one of a few lengths, for
  each of which a program is compiled.

  Args:
    rankings: encoded rankings.
    batch_size: B, prompts of a global batch.
    pad_id: fills rows up to T.
    layout: R rows of each of G groups; `choose` tells which is cheapest.
    seed: of the order.
    epochs: passes over the rankings.
    shuffle: whether each epoch has an order of its own.
    shard_index: which host this is.
    shard_count: number of hosts.

  Returns:
    An iterator of RankingBatch, [G / shard_count, R, T]. Elements that fill
    up the last batch have no valid completion.
  """
  rows, groups = layout
  if batch_size % groups or groups % shard_count:
    raise ValueError(
      f"{groups} groups neither make up batch size {batch_size} nor split over"
      f" {shard_count} hosts"
    )
  k = max((len(r.ranks) for r in rankings), default=0)
  order = batch_source.Order(len(rankings), seed, shuffle)
  widths = _table(rankings, rows)
  grouped = _group(widths, _deal(rankings, order, batch_size, epochs), groups)
  lengths = _lengths(widths, grouped).tolist()
  far = reach(rankings, rows, alone=groups == batch_size)

  def make(index, chosen, part):
    del chosen
    share = batch_size // groups
    ids = grouped[index, part.start // share : part.stop // share]
    return _batch(rankings, ids, rows, lengths[index], k, pad_id, far)

  return batch_source.iterator(
    batch_source.Batches(
      order, batch_size, epochs, shard_index, shard_count, make
    )
  )


def _batch(
  rankings: Sequence[EncodedRanking],
  ids: np.ndarray,
  rows: int,
  length: int,
  k: int,
  pad_id: int,
  far: AttentionSpan,
) -> RankingBatch:
  """The rankings of [G, E] places."""
  shape = (len(ids), rows, length)
  tokens = np.full(shape, pad_id, np.int32)
  segments, positions = np.zeros((2, *shape), np.int32)
  ranks, ends = np.zeros((2, *ids.shape, k), np.int32)
  valid = np.zeros((*ids.shape, k), bool)
  filled = np.zeros((len(ids), rows), np.int64)
  for (g, e), i in np.ndenumerate(ids):
    if i < 0:
      continue
    prompt, replies, order = rankings[i]
    ranks[g, e, : len(order)] = order
    valid[g, e, : len(order)] = True
    share = -(-len(replies) // rows)
    for j, reply in enumerate(replies):
      r = j // share
      parts = [(reply, e * k + j + 1, len(prompt))]
      if not j % share:
        parts.insert(0, (prompt, -e - 1, 0))
      for part, segment, position in parts:
        start = filled[g, r]
        end = filled[g, r] = start + len(part)
        tokens[g, r, start:end] = part
        segments[g, r, start:end] = segment
        positions[g, r, start:end] = np.arange(position, position + end - start)
      ends[g, e, j] = r * length + filled[g, r] - 1
  return RankingBatch(
    tokens=tokens,
    segments=segments,
    positions=positions,
    ends=ends,
    ranks=ranks,
    valid=valid,
    ids=ids.astype(np.int32),
    reach=far,
  )
