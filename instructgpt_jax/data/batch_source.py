"""Grain iterators over encoded data, with a position that can be saved.

Element i of each data set is the whole batch i, so a position is one number:
`iterator.get_state()` returns JSON, and `set_state` continues with exactly the
next batch. Epochs follow each other as one sequence of records, and the
permutation of each epoch depends on (seed, epoch) alone. A batch may hold the
end of one epoch and the start of the next. Only the last batch can lack
records; it is padded with rows of weight 0, so no record is dropped.

`batch_size` counts the rows on all processes. Shard i is the i-th consecutive
slice of the global batch, and the global batch is the same for any number of
shards.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

_CACHED_EPOCHS = 4
# A permutation of more records is computed index by index: it needs no memory.
_MAX_PERMUTED = 1 << 22


@dataclasses.dataclass(frozen=True)
class SourceMix:
  """Sources of records, and the share of each in the records that are used.

  The shares are kept evenly: of the first n records of a run, each source has
  its share to within as many records as there are sources.

  Attributes:
    counts: number of records of each source; the records of a source follow
      those of the source before.
    weights: weight of each source, above 0. The shares are proportional to it.
  """

  counts: tuple[int, ...]
  weights: tuple[float, ...]

  @property
  def shares(self) -> np.ndarray:
    """Returns the share of each source, [sources]."""
    weights = np.asarray(self.weights, np.float64)
    return weights / weights.sum()

  @property
  def source_of(self) -> np.ndarray:
    """Returns the source of each record, [records]."""
    return np.repeat(np.arange(len(self.counts)), self.counts)

  def order(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sources of the positions [start, stop) of a run.

    The k-th record of a source with share w has the time (k + 1/2) / w, and
    records are used in the order of their times.

    Returns:
      The source of each position [n], and k, the number of records of that
      source at earlier positions [n].
    """
    sources, uses, first = self._by_time(start, stop)
    skipped = int(first.sum())
    window = slice(start - skipped, stop - skipped)
    return sources[window], uses[window]

  def used(self, stop: int) -> np.ndarray:
    """Returns how many of the first `stop` records are of each source."""
    sources, _, first = self._by_time(stop, stop)
    earlier = sources[: stop - int(first.sum())]
    return first + np.bincount(earlier, minlength=len(first))

  def _by_time(
    self, start: int, stop: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns source and k of records by time, around [start, stop).

    Returns:
      Source [m] and k [m] of consecutive records, and how many records of each
      source precede them [sources].
    """
    # The time of a position differs from it by less than the margin.
    shares, margin = self.shares, len(self.weights)
    first = np.maximum(np.floor(shares * (start - margin)), 0).astype(np.int64)
    last = np.ceil(shares * (stop + margin)).astype(np.int64)
    sources = np.repeat(np.arange(len(shares)), last - first)
    uses = np.concatenate(
      [np.arange(a, b) for a, b in zip(first, last, strict=True)]
    )
    by_time = np.lexsort((sources, (uses + 0.5) / shares[sources]))
    return sources[by_time], uses[by_time], first


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
  """Which records each batch holds, and which of them this process reads.

  Attributes:
    batch_size: records of a global batch.
    seed: seed of the permutations.
    epochs: passes over the records; None repeats them without end.
    shuffle: whether each epoch has its own permutation. False keeps the
      records' order in every epoch.
    shard_index: index of the slice of each batch that this process reads.
    shard_count: number of slices.
    mix: sources of the records and their shares; None uses every record once in
      each epoch. With shares, an epoch has as many records as all sources
      together, and records of a source repeat once all of it have been used.
  """

  batch_size: int
  seed: int = 0
  epochs: int | None = None
  shuffle: bool = True
  shard_index: int = 0
  shard_count: int = 1
  mix: SourceMix | None = None

  def shard(self, size: int) -> slice:
    """Returns this process's slice of `size` rows.

    Raises:
      ValueError: the rows cannot be split evenly.
    """
    if size < 1 or size % self.shard_count:
      raise ValueError(
        f"batch size {size} cannot be split over {self.shard_count} process"
        " shards"
      )
    local = size // self.shard_count
    return slice(self.shard_index * local, (self.shard_index + 1) * local)


class ShuffledIndices:
  """The record indices of all epochs: one permutation after another.

  Attributes:
    count: number of records.
    seed: seed of the permutations.
    shuffle: whether the records are permuted.
    stream: distinguishes the permutations of several sources of one run.
  """

  def __init__(self, count: int, seed: int, shuffle: bool, stream: int = 0):
    if count < 1:
      raise ValueError("a data set needs at least one record")
    self.count, self.seed, self.shuffle = count, seed, shuffle
    self.stream = stream
    self._permutations: dict[int, np.ndarray] = {}

  def epoch(self, epoch: int) -> np.ndarray:
    """Returns the record indices of one epoch, [count]."""
    if not self.shuffle:
      return np.arange(self.count)
    cache = self._permutations
    if epoch not in cache:
      if len(cache) >= _CACHED_EPOCHS:
        cache.pop(min(cache))
      # NumPy guarantees the stream of RandomState, but not of Generator.
      key = [self.seed & 0xFFFFFFFF, self.seed >> 32, self.stream, epoch]
      cache[epoch] = np.random.RandomState(key).permutation(self.count)
    return cache[epoch]

  def _slice(self, epoch: int, first: int, last: int) -> np.ndarray:
    """Returns the record indices at positions [first, last) of one epoch."""
    if not self.shuffle:
      return np.arange(first, last)
    if self.count <= _MAX_PERMUTED:
      return self.epoch(epoch)[first:last]
    key = [self.seed & 0xFFFFFFFF, self.seed >> 32, self.stream, epoch]
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    permuted = grain.MapDataset.range(self.count).shuffle(seed=seed)
    return np.array([permuted[i] for i in range(first, last)], np.int64)

  def take(self, start: int, stop: int) -> np.ndarray:
    """Returns the record indices at positions [start, stop) of all epochs."""
    chunks = []
    while start < stop:
      epoch, first = divmod(start, self.count)
      last = min(self.count, first + stop - start)
      chunks.append(self._slice(epoch, first, last))
      start += last - first
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)

  def use_counts(self, stop: int) -> np.ndarray:
    """Returns how often each record is at positions [0, stop), [count]."""
    epochs, rest = divmod(stop, self.count)
    counts = np.full(self.count, epochs)
    counts[self.epoch(epochs)[:rest]] += 1
    return counts

  def batch(self, index: int, size: int, epochs: int | None) -> np.ndarray:
    """Returns the record indices of a batch, [size], padded with -1."""
    start, stop = index * size, (index + 1) * size
    if epochs is not None:
      stop = min(stop, self.count * epochs)
    indices = np.full(size, -1, np.int64)
    indices[: stop - start] = self.take(start, stop)
    return indices

  def num_batches(self, size: int, epochs: int | None) -> int:
    """Returns the number of batches; `sys.maxsize` for endless epochs."""
    return sys.maxsize if epochs is None else -(-self.count * epochs // size)


class MixedIndices(ShuffledIndices):
  """The record indices of all epochs, from several sources by their shares.

  Each source has permutations of its own, one after another.
  """

  def __init__(self, mix: SourceMix, seed: int, shuffle: bool, stream: int = 0):
    super().__init__(sum(mix.counts), seed, shuffle, stream)
    self._mix = mix
    # Streams 0 and 1 are those of a run's two kinds of records.
    self._sources = [
      ShuffledIndices(count, seed, shuffle, stream + 2 * i)
      for i, count in enumerate(mix.counts)
    ]
    self._starts = np.cumsum([0, *mix.counts[:-1]])

  def use_counts(self, stop: int) -> np.ndarray:
    """Returns how often each record is at positions [0, stop), [count]."""
    return np.concatenate(
      [
        indices.use_counts(int(used))
        for indices, used in zip(
          self._sources, self._mix.used(stop), strict=True
        )
      ]
    )

  def epoch(self, epoch: int) -> np.ndarray:
    """Returns the record indices of one epoch, [count]."""
    return self.take(epoch * self.count, (epoch + 1) * self.count)

  def take(self, start: int, stop: int) -> np.ndarray:
    """Returns the record indices at positions [start, stop) of all epochs."""
    sources, uses = self._mix.order(start, max(start, stop))
    result = np.zeros(len(sources), np.int64)
    for i, indices in enumerate(self._sources):
      positions = np.flatnonzero(sources == i)
      if len(positions):
        first, last = uses[positions[0]], uses[positions[-1]]
        records = indices.take(int(first), int(last) + 1)
        result[positions] = self._starts[i] + records
    return result


def record_indices(
  count: int,
  spec: BatchSpec,
  *,
  mix: SourceMix | None = None,
  stream: int = 0,
) -> ShuffledIndices:
  """Returns the order in which a run uses its records.

  Args:
    count: number of records.
    spec: seed and shuffle setting.
    mix: sources of the records and their shares, if they have any.
    stream: distinguishes the permutations of several kinds of records.
  """
  if mix is None:
    return ShuffledIndices(count, spec.seed, spec.shuffle, stream)
  if sum(mix.counts) != count:
    raise ValueError(f"{count} records, but the sources have {mix.counts}")
  return MixedIndices(mix, spec.seed, spec.shuffle, stream)


class BatchSource:
  """Random access to batches: maps an index to this process's shard.

  Args:
    indices: the record indices of all epochs.
    spec: batch size, epochs and shard.
    make: (index of the batch, its record indices [batch_size] padded with -1,
      this process's slice of them) → the shard.
  """

  def __init__(
    self,
    indices: ShuffledIndices,
    spec: BatchSpec,
    make: Callable[[int, np.ndarray, slice], Any],
  ):
    self._indices, self._spec, self._make = indices, spec, make
    self._shard = spec.shard(spec.batch_size)

  def __len__(self) -> int:
    return self._indices.num_batches(self._spec.batch_size, self._spec.epochs)

  def __getitem__(self, index) -> Any:
    spec = self._spec
    indices = self._indices.batch(int(index), spec.batch_size, spec.epochs)
    return self._make(int(index), indices, self._shard)


def make_iterator(source: BatchSource) -> grain.DatasetIterator:
  """Returns an iterator over batches; its state is the index of the next."""
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(grain.MapDataset.source(source).to_iter_dataset(options))
