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

import sys
from collections.abc import Callable
from typing import Any

import grain
import numpy as np


class Order:
  """The stream of record indices: one permutation after another.

  Args:
    count: records.
    seed: of the permutations.
    shuffle: False gives the records' own order in every epoch.
    stream: tells the orders of several sources apart.
  """

  def __init__(self, count: int, seed: int, shuffle: bool, stream: int = 0):
    if count < 1:
      raise ValueError("a data set needs at least one record")
    self.count, self.seed, self.shuffle = count, seed, shuffle
    self.stream = stream
    self._epochs: dict[int, np.ndarray] = {}

  def epoch(self, e: int) -> np.ndarray:
    """[count] record indices of one epoch."""
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

  def batch(self, index: int, size: int, epochs: int | None) -> np.ndarray:
    """[size] record indices of a batch; -1 beyond the last epoch's end."""
    start, stop = index * size, (index + 1) * size
    if epochs is not None:
      stop = min(stop, self.count * epochs)
    chosen = np.full(size, -1, np.int64)
    chosen[: stop - start] = self.take(start, stop)
    return chosen

  def batches(self, size: int, epochs: int | None) -> int:
    """How many batches there are; epochs without end have as many as fit."""
    return sys.maxsize if epochs is None else -(-self.count * epochs // size)


class Batches:
  """Random access to batches: index → the part of it that this host holds.

  Args:
    order: of the records.
    batch_size: records of a batch, on all hosts.
    epochs: passes over the records; None goes on for ever.
    shard_index: which host this is.
    shard_count: number of hosts.
    make: (the batch's index, its records' indices [batch_size] with -1 for what
      fills it up, this host's part of them) → the batch.
  """

  def __init__(
    self,
    order: Order,
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
    self._order, self._size, self._epochs = order, batch_size, epochs
    self._make = make
    local = batch_size // shard_count
    self._part = slice(shard_index * local, (shard_index + 1) * local)

  def __len__(self) -> int:
    return self._order.batches(self._size, self._epochs)

  def __getitem__(self, index) -> Any:
    chosen = self._order.batch(int(index), self._size, self._epochs)
    return self._make(int(index), chosen, self._part)


def iterator(batches: Batches) -> grain.DatasetIterator:
  """Goes over the batches; its state is its place among them."""
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(grain.MapDataset.source(batches).to_iter_dataset(options))
