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
  """

  batch_size: int
  seed: int = 0
  epochs: int | None = None
  shuffle: bool = True
  shard_index: int = 0
  shard_count: int = 1

  def shard(self, size: int) -> slice:
    """Returns this process's slice of `size` rows.

    Raises:
      ValueError: the rows cannot be split evenly.
    """
    if size < 1 or size % self.shard_count:
      raise ValueError(
        f"batch size {size} cannot be split over {self.shard_count} hosts"
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

  def take(self, start: int, stop: int) -> np.ndarray:
    """Returns the record indices at positions [start, stop) of all epochs."""
    chunks = []
    while start < stop:
      epoch, first = divmod(start, self.count)
      last = min(self.count, first + stop - start)
      chunks.append(self.epoch(epoch)[first:last])
      start += last - first
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)

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
