"""Divides rankings into batches and groups of about equal length.

All batches of a run then need about the same row length, and all groups of a
batch fill their rows about equally. `ranking_packing.py` writes the groups into
rows, and defines the shape letters.
"""

from __future__ import annotations

import heapq
import itertools
import sys

import numpy as np

from instructgpt_jax.data.batch_source import BatchSpec, ShuffledIndices


def balance_batches(
  num_tokens: np.ndarray,
  indices: ShuffledIndices,
  spec: BatchSpec,
  max_batches: int = sys.maxsize,
) -> np.ndarray:
  """Assigns rankings to batches of about equal numbers of tokens.

  The rankings of an epoch are balanced over the epoch's batches. A batch that
  spans two epochs, or that is padded, keeps its rankings.

  Args:
    num_tokens: [N + 1] tokens of each ranking; the last, 0, is that of padding.
    indices: the rankings' indices in the order of all epochs.
    spec: the batches, of B rankings.
    max_batches: number of batches after which to stop; rankings beyond them are
      not balanced with these.

  Returns:
    [n, B] indices of rankings, -1 for padding.
  """
  batch_size, epochs = spec.batch_size, spec.epochs
  if epochs is None:
    raise ValueError("batches of rankings need a number of epochs")

  def epochs_of(batch: int) -> tuple[int, int]:
    """Returns the epochs of a batch's first and last position."""
    positions = (batch * batch_size, (batch + 1) * batch_size - 1)
    first, last = (position // indices.count for position in positions)
    return first, last

  count = min(indices.num_batches(batch_size, epochs), max_batches)
  balanced = []
  # Batches within one epoch are balanced together. A batch that spans two
  # epochs, or that ends in padding, has a pair of epochs of its own.
  for _, group in itertools.groupby(range(count), key=epochs_of):
    batches = list(group)
    start, stop = batches[0] * batch_size, (batches[-1] + 1) * batch_size
    members = np.full(stop - start, -1, np.int64)
    used = indices.take(start, min(stop, indices.count * epochs))
    members[: len(used)] = used
    positions = _shuffle_balanced_pairs(
      num_tokens[members], batch_size, indices, batches[0]
    )
    balanced.append(members[positions])
  return np.concatenate(balanced)


def _shuffle_balanced_pairs(
  lengths: np.ndarray,
  batch_size: int,
  indices: ShuffledIndices,
  permutation_index: int,
) -> np.ndarray:
  """Divides sequences into batches with about equal sums of lengths.

  The sequences are divided into pairs with about equal sums, and each batch
  gets random pairs. If B is odd, it also gets one of the n sequences in the
  middle of all lengths.

  Args:
    lengths: [n · B] lengths of the sequences.
    batch_size: B.
    indices: the seed and shuffle setting of the random order.
    permutation_index: index of the first batch, distinct for each set of
      batches that is balanced together.

  Returns:
    [n, B] positions in `lengths`.
  """
  count = len(lengths) // batch_size
  num_middle = count if batch_size % 2 else 0
  num_pairs = (len(lengths) - num_middle) // 2
  by_length = np.argsort(lengths, kind="stable")
  middle = by_length[num_pairs : num_pairs + num_middle]
  others = np.delete(np.arange(len(lengths)), middle)
  pairs = others[greedy_partition(lengths[others], num_pairs)]
  columns = []  # of the result: B // 2 pairs, and a middle sequence if B is odd
  for units in (pairs, np.sort(middle)):
    if len(units):
      # Stream 0 is the order of the rankings; stream 1 that of these units.
      order = ShuffledIndices(
        len(units), indices.seed, indices.shuffle, stream=1
      )
      columns.append(units[order.epoch(permutation_index)].reshape(count, -1))
  return np.sort(np.concatenate(columns, axis=1))


def group_rankings(
  num_tokens: np.ndarray, batches: np.ndarray, num_groups: int
) -> np.ndarray:
  """Divides batches of rankings, [n, B], into equally long groups, [n, G, E].

  Args:
    num_tokens: [N + 1] tokens of each ranking in all of its rows.
    batches: [n, B] indices of rankings, -1 for padding.
    num_groups: G.
  """
  return np.array(
    [
      batch[greedy_partition(num_tokens[batch], num_groups)]
      for batch in batches
    ]
  )


def greedy_partition(lengths: np.ndarray, num_groups: int) -> np.ndarray:
  """Divides sequences into equally large groups with about equal sums.

  The longest sequence goes first, each to the group with the smallest sum.

  Args:
    lengths: [M] lengths.
    num_groups: G, a divisor of M.

  Returns:
    [G, M / G] positions in `lengths`, ascending within a group. Groups are
    ordered by their first member.
  """
  capacity = len(lengths) // num_groups if num_groups else 0
  if capacity == 1:
    return np.arange(num_groups)[:, None]
  if capacity == 2 and (pairs := _greedy_pairs(lengths)) is not None:
    return pairs
  members: list[list[int]] = [[] for _ in range(num_groups)]
  # A heap of groups with room.
  sums = [(0, group) for group in range(num_groups)]
  for i in np.argsort(-lengths, kind="stable").tolist():
    total, group = heapq.heappop(sums)
    members[group].append(i)
    if len(members[group]) < capacity:
      heapq.heappush(sums, (total + int(lengths[i]), group))
  return np.array(sorted(map(sorted, members)), int).reshape(
    num_groups, capacity
  )


def _greedy_pairs(lengths: np.ndarray) -> np.ndarray | None:
  """Returns what `greedy_partition` returns for pairs, without its loop.

  The longer half has one sequence in each group. Then the groups get a second
  one, those with the smallest sums first. Without a length in the longer half,
  which only padding is, the result is None.
  """
  by_length = np.argsort(-lengths, kind="stable")
  longer, shorter = np.split(by_length, 2)
  if not lengths[longer].all():
    return None
  smallest_first = np.argsort(lengths[longer], kind="stable")
  pairs = np.stack([longer[smallest_first], shorter], axis=1)
  pairs.sort(axis=1)
  return pairs[np.argsort(pairs[:, 0])]
