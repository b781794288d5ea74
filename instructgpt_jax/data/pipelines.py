"""Grain iterators over encoded data, with a position that can be saved.

Element i of each data set is the whole i-th batch, so the position is one
number: `iterator.get_state()` is JSON-able, and `set_state` of it gives exactly
the batches that would have come. Epochs follow each other as one stream, each
in an order of its own that depends on (seed, epoch) alone; a batch may hold the
end of one epoch and the start of the next. Only the very last batch can lack
rows, and is filled with rows of no weight, so no record is ever dropped.

`batch_size` counts the rows of all hosts: host `shard_index` gets its
consecutive part of the same global batch, whatever the number of hosts.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from instructgpt_jax.data import transforms
from instructgpt_jax.types import (
  LanguageBatch,
  PromptBatch,
  RankingBatch,
  Reach,
)

_REACH = 32  # tokens that a reach is rounded up to


class _Order:
  """The stream of record indices: one permutation after another."""

  def __init__(self, count: int, seed: int, shuffle: bool, stream: int = 0):
    if count < 1:
      raise ValueError("a data set needs at least one record")
    self.count, self.seed, self.shuffle = count, seed, shuffle
    self.stream = stream
    self._epochs: dict[int, np.ndarray] = {}

  def epoch(self, e: int) -> np.ndarray:
    if not self.shuffle:
      return np.arange(self.count)
    if e not in self._epochs:
      if len(self._epochs) >= 4:
        self._epochs.pop(min(self._epochs))
      # RandomState's stream is frozen by numpy, a Generator's is not.
      key = [self.seed & 0xFFFFFFFF, self.seed >> 32, self.stream, e]
      self._epochs[e] = np.random.RandomState(key).permutation(self.count)
    return self._epochs[e]

  def take(self, start: int, stop: int) -> np.ndarray:
    """Record indices at places [start, stop) of the stream."""
    parts = []
    while start < stop:
      e, at = divmod(start, self.count)
      end = min(self.count, at + stop - start)
      parts.append(self.epoch(e)[at:end])
      start += end - at
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class _Batches:
  """Random access to batches: index -> the part of it that this host holds."""

  def __init__(
    self,
    order: _Order,
    batch_size: int,
    epochs: int | None,
    shard_index: int,
    shard_count: int,
    make: Callable[[int, np.ndarray, slice], Any],
  ):
    if batch_size < 1 or batch_size % shard_count:
      raise ValueError(
        f"batch size {batch_size} cannot be split over {shard_count} hosts"
      )
    self._order, self._size, self._make = order, batch_size, make
    self._total = None if epochs is None else order.count * epochs
    local = batch_size // shard_count
    self._part = slice(shard_index * local, (shard_index + 1) * local)

  def __len__(self) -> int:
    if self._total is None:
      return sys.maxsize
    return -(-self._total // self._size)

  def __getitem__(self, index) -> Any:
    index = int(index)
    start, stop = index * self._size, (index + 1) * self._size
    if self._total is not None:
      stop = min(stop, self._total)
    chosen = np.full(self._size, -1, np.int64)
    chosen[: stop - start] = self._order.take(start, stop)
    return self._make(index, chosen, self._part)


def _iterator(batches: _Batches) -> grain.DatasetIterator:
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def _rows(
  rows: Mapping[str, np.ndarray], chosen: np.ndarray, pad_id: int
) -> dict[str, np.ndarray]:
  """The chosen rows; index -1 gives a row of padding."""
  result = {k: np.asarray(v)[chosen] for k, v in rows.items()}
  empty = chosen < 0
  if empty.any():
    for name, value in result.items():
      value[empty] = pad_id if name == "tokens" else 0
  return result


def language_batches(
  rows: Mapping[str, np.ndarray],
  *,
  batch_size: int,
  seed: int = 0,
  epochs: int | None = None,
  shuffle: bool = True,
  pad_id: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Batches of packed rows.

  Args:
    rows: tokens, segments, positions, weights, each [R, T].
    batch_size: B, rows of a global batch.
    seed: of the order.
    epochs: passes over the rows; None goes on for ever.
    shuffle: whether each epoch has an order of its own.
    pad_id: the token of rows that fill up the last batch.
    shard_index: which host this is.
    shard_count: number of hosts.

  Returns:
    An iterator of LanguageBatch, [B / shard_count, T].
  """

  def make(index, chosen, part):
    del index
    return LanguageBatch(**_rows(rows, chosen[part], pad_id))

  order = _Order(len(rows["tokens"]), seed, shuffle)
  return _iterator(
    _Batches(order, batch_size, epochs, shard_index, shard_count, make)
  )


def mixed_rows(batch_size: int, fraction: float) -> int:
  """Pretraining rows among the B rows of `mixed_language_batches`."""
  extra = round(fraction * batch_size)
  if fraction > 0 and batch_size > 1:
    extra = min(max(extra, 1), batch_size - 1)
  return extra


def mixed_language_batches(
  rows: Mapping[str, np.ndarray],
  pretraining_rows: Mapping[str, np.ndarray],
  fraction: float,
  *,
  batch_size: int,
  seed: int = 0,
  epochs: int | None = None,
  shuffle: bool = True,
  pad_id: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Batches of which a share are pretraining rows.

  Every global batch ends with round(fraction · B) pretraining rows (at least
  one, and at least one of the others, when 0 < fraction < 1). Epochs count
  passes over `rows`; the pretraining rows go round as often as needed. The
  other arguments are those of `language_batches`.
  """
  extra = mixed_rows(batch_size, fraction)
  if not extra:
    return language_batches(
      rows,
      batch_size=batch_size,
      seed=seed,
      epochs=epochs,
      shuffle=shuffle,
      pad_id=pad_id,
      shard_index=shard_index,
      shard_count=shard_count,
    )
  if rows["tokens"].shape[1] != pretraining_rows["tokens"].shape[1]:
    raise ValueError("rows and pretraining rows differ in length")
  if batch_size % shard_count:
    raise ValueError(
      f"batch size {batch_size} cannot be split over {shard_count} hosts"
    )
  other = _Order(len(pretraining_rows["tokens"]), seed, shuffle, stream=1)
  local = batch_size // shard_count
  part = slice(shard_index * local, (shard_index + 1) * local)

  def make(index, chosen, all_rows):
    del all_rows
    mine = _rows(rows, chosen, pad_id)
    theirs = _rows(
      pretraining_rows, other.take(index * extra, (index + 1) * extra), pad_id
    )
    return LanguageBatch(
      **{k: np.concatenate([mine[k], theirs[k]])[part] for k in mine}
    )

  order = _Order(len(rows["tokens"]), seed, shuffle)
  return _iterator(_Batches(order, batch_size - extra, epochs, 0, 1, make))


def ranking_width(ranking: transforms.EncodedRanking, rows: int = 1) -> int:
  """Tokens of a ranking's longest row: the prompt and the row's completions."""
  prompt, completions, _ = ranking
  share = -(-len(completions) // rows)
  return len(prompt) + max(
    sum(map(len, completions[i : i + share]))
    for i in range(0, len(completions), share)
  )


def ranking_rows(
  rankings: Sequence[transforms.EncodedRanking],
  model_width: int,
  pairs: Callable[[int, Reach], int],
) -> int:
  """Whether a prompt's completions share one row, 1, or have one each, K.

  Whichever takes fewer operations: a token costs 24 D² in a layer's weights,
  and each pair of a query and a key 4 D.

  Args:
    rankings: encoded rankings.
    model_width: D.
    pairs: (tokens of a row, how far they look) → pairs that attention computes.
  """
  most = max((len(r.ranks) for r in rankings), default=1)
  reach = ranking_reach(rankings)

  def cost(rows: int) -> int:
    widths = collections.Counter(ranking_width(r, rows) for r in rankings)
    return sum(
      rows * count * (6 * model_width * width + pairs(width, reach))
      for width, count in widths.items()
    )

  return min((1, most), key=cost)


def ranking_reach(rankings: Sequence[transforms.EncodedRanking]) -> Reach:
  """How far a row's tokens look: at the prompt and at their own completion.

  Rounded up, so that other rankings are likely to find compiled programs.
  """
  first = max((len(r.prompt) for r in rankings), default=0)
  last = max((len(c) for r in rankings for c in r.completions), default=0)
  return Reach(*(-(-n // _REACH) * _REACH for n in (first, last)))


def ranking_batches(
  rankings: Sequence[transforms.EncodedRanking],
  *,
  batch_size: int,
  pad_id: int,
  buckets: Sequence[int],
  seed: int = 0,
  epochs: int | None = 1,
  shuffle: bool = True,
  completions: int = 0,
  rows: int = 1,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Batches in which one prompt with its K completions is one element.

  Args:
    rankings: encoded rankings.
    batch_size: B, prompts of a global batch.
    pad_id: fills rows up to T.
    buckets: allowed lengths T; a batch takes the smallest that holds its
      longest row (`ranking_width`), on all hosts alike.
    seed: of the order.
    epochs: passes over the rankings; None goes on for ever.
    shuffle: whether each epoch has an order of its own.
    completions: K; 0 takes the most that any ranking has.
    rows: R; `ranking_rows` tells which is cheaper.
    shard_index: which host this is.
    shard_count: number of hosts.

  Returns:
    An iterator of RankingBatch, [B / shard_count, R, T]. Elements that fill
    up the last batch have no valid completion.
  """
  widths = np.asarray([ranking_width(r, rows) for r in rankings] or [0])
  transforms.bucket(int(widths.max()), buckets)
  k = max((len(r.ranks) for r in rankings), default=0)
  if completions and completions < k:
    raise ValueError(f"a ranking has {k} completions, more than {completions}")
  k = completions or k
  reach = ranking_reach(rankings)

  def make(index, chosen, part):
    del index
    width = transforms.bucket(int(widths[chosen[chosen >= 0]].max()), buckets)
    mine = chosen[part]
    shape = (len(mine), rows, width)
    tokens = np.full(shape, pad_id, np.int32)
    segments, positions = np.zeros((2, *shape), np.int32)
    ranks, ends = np.zeros((2, len(mine), k), np.int32)
    valid = np.zeros((len(mine), k), bool)
    for b, i in enumerate(mine):
      if i < 0:
        continue
      prompt, replies, order = rankings[i]
      ranks[b, : len(order)] = order
      valid[b, : len(order)] = True
      share = -(-len(replies) // rows)
      begin = len(prompt)
      for r in range(-(-len(replies) // share)):
        tokens[b, r, :begin] = prompt
        segments[b, r, :begin] = -1
        positions[b, r, :begin] = np.arange(begin)
        start = begin
        for j, reply in enumerate(replies[r * share : (r + 1) * share]):
          end = start + len(reply)
          tokens[b, r, start:end] = reply
          segments[b, r, start:end] = j + 1
          positions[b, r, start:end] = begin + np.arange(len(reply))
          ends[b, r * share + j] = r * width + end - 1
          start = end
    return RankingBatch(
      tokens=tokens,
      segments=segments,
      positions=positions,
      ends=ends,
      ranks=ranks,
      valid=valid,
      reach=reach,
    )

  order = _Order(len(rankings), seed, shuffle)
  return _iterator(
    _Batches(order, batch_size, epochs, shard_index, shard_count, make)
  )


def prompt_batches(
  prompts: Sequence[np.ndarray],
  *,
  batch_size: int,
  width: int,
  pad_id: int,
  seed: int = 0,
  epochs: int | None = None,
  shuffle: bool = True,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Batches of left-padded prompts.

  Args:
    prompts: token ids of each prompt, at most `width` long.
    batch_size: B, prompts of a global batch.
    width: P, the fixed width.
    pad_id: stands left of the prompts.
    seed: of the order.
    epochs: passes over the prompts; None goes on for ever.
    shuffle: whether each epoch has an order of its own.
    shard_index: which host this is.
    shard_count: number of hosts.

  Returns:
    An iterator of PromptBatch, [B / shard_count, P]; `ids` is the prompt's
    place in `prompts`. The last batch is filled up with copies of its first
    prompt under the id -1.
  """
  tokens, mask = transforms.left_pad(prompts, width, pad_id)

  def make(index, chosen, part):
    del index
    rows = np.where(chosen < 0, chosen[0], chosen)[part]
    return PromptBatch(
      tokens=tokens[rows], mask=mask[rows], ids=chosen[part].astype(np.int32)
    )

  order = _Order(len(prompts), seed, shuffle)
  return _iterator(
    _Batches(order, batch_size, epochs, shard_index, shard_count, make)
  )
