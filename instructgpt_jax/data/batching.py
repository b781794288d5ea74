"""Batches of packed rows, and of prompts; of rankings see `ranking_rows`."""

from __future__ import annotations

import fractions
import math
import sys
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from instructgpt_jax.data import batch_source, packing
from instructgpt_jax.types import LanguageBatch, PromptBatch


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


class Mixture:
  """Deals pretraining rows to the steps of a run.

  After n rows of demonstrations a run has had n · f / (1 − f) pretraining rows,
  rounded to a whole number. Their share of a run's rows is therefore f within
  one row, although one step may hold a row more than the next.
  """

  def __init__(self, fraction: float, step_rows: int):
    """Fixes the share.

    Args:
      fraction: f, the share of all rows, at least 0 and less than 1.
      step_rows: rows of demonstrations in a step.
    """
    share = fractions.Fraction(str(fraction))
    self._ratio = share / (1 - share)
    self.most = math.ceil(self._ratio * step_rows)  # in one step

  def rows_after(self, demonstration_rows: int) -> int:
    """Counts the pretraining rows beside the first rows of demonstrations."""
    half = fractions.Fraction(1, 2)
    return math.floor(self._ratio * demonstration_rows + half)


def language_batches(
  rows: Mapping[str, np.ndarray],
  *,
  batch_size: int,
  padded_size: int = 0,
  seed: int = 0,
  epochs: int | None = None,
  shuffle: bool = True,
  pad_id: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Makes batches of packed rows.

  Args:
    rows: tokens, segments, positions, weights, each [R, T].
    batch_size: rows of a global batch. Position i of the iterator begins at row
      i · batch_size of the order, whatever the batch is padded to.
    padded_size: B, the rows that a batch is padded to with rows of weight 0; 0
      is the least that holds it.
    seed: of the order.
    epochs: passes over the rows; None goes on for ever.
    shuffle: whether each epoch has an order of its own.
    pad_id: the token of padding rows.
    shard_index: which host this is.
    shard_count: number of hosts.

  Returns:
    An iterator of LanguageBatch, [B / shard_count, T].
  """
  return mixed_language_batches(
    rows,
    None,
    0.0,
    batch_size=batch_size,
    padded_size=padded_size,
    seed=seed,
    epochs=epochs,
    shuffle=shuffle,
    pad_id=pad_id,
    shard_index=shard_index,
    shard_count=shard_count,
  )


def mixed_language_batches(
  rows: Mapping[str, np.ndarray],
  pretraining_rows: Mapping[str, np.ndarray] | None,
  fraction: float,
  *,
  batch_size: int,
  padded_size: int = 0,
  seed: int = 0,
  epochs: int | None = None,
  shuffle: bool = True,
  pad_id: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Makes batches of rows, then pretraining rows, then padding.

  `Mixture` says how many pretraining rows a batch has. Epochs count passes over
  `rows`; the pretraining rows are repeated as often as needed. The other
  arguments are those of `language_batches`; `batch_size` counts `rows` alone.
  """
  mixture = Mixture(fraction, batch_size)
  needed = batch_size + mixture.most
  size = padded_size or needed
  if size < needed or size % shard_count:
    raise ValueError(
      f"{needed} rows cannot be padded to {size} rows on {shard_count} hosts"
    )
  order = batch_source.Order(len(rows["tokens"]), seed, shuffle)
  other = None
  if mixture.most and pretraining_rows is not None:
    if rows["tokens"].shape[1] != pretraining_rows["tokens"].shape[1]:
      raise ValueError("rows and pretraining rows differ in length")
    count = len(pretraining_rows["tokens"])
    other = batch_source.Order(count, seed, shuffle, stream=1)
  total = sys.maxsize if epochs is None else order.count * epochs
  local = size // shard_count
  part = slice(shard_index * local, (shard_index + 1) * local)

  def pretraining(index: int) -> np.ndarray:
    if other is None:
      return np.zeros(0, np.int64)
    first, last = (
      mixture.rows_after(min(i * batch_size, total)) for i in (index, index + 1)
    )
    return other.take(first, last)

  def make(index: int, chosen: np.ndarray, all_rows: slice) -> LanguageBatch:
    del all_rows
    start, stop = (max(i - batch_size, 0) for i in (part.start, part.stop))
    parts = [
      _rows(rows, chosen[part], pad_id),
      _rows(pretraining_rows or rows, pretraining(index)[start:stop], pad_id),
    ]
    padding = local - sum(len(p["tokens"]) for p in parts)
    parts.append(_rows(rows, np.full(padding, -1), pad_id))
    return LanguageBatch(
      **{k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    )

  return batch_source.iterator(
    batch_source.Batches(order, batch_size, epochs, 0, 1, make)
  )


def mixed_shares(
  rows: Mapping[str, np.ndarray],
  pretraining_rows: Mapping[str, np.ndarray],
  fraction: float,
  *,
  batch_size: int,
  seed: int,
  steps: int,
) -> np.ndarray:
  """Computes how much of a run has been pretraining data after each step.

  Args:
    rows: as for `mixed_language_batches`.
    pretraining_rows: likewise.
    fraction: likewise.
    batch_size: likewise.
    seed: likewise.
    steps: S, batches of the run.

  Returns:
    [S, 2], the share of the rows and the share of the tokens that carry loss.
  """
  mixture = Mixture(fraction, batch_size)
  ends = np.arange(1, steps + 1) * batch_size
  amounts = []
  for source, last, number in (
    (rows, ends, 0),
    (pretraining_rows, np.array([mixture.rows_after(int(n)) for n in ends]), 1),
  ):
    order = batch_source.Order(len(source["tokens"]), seed, True, stream=number)
    tokens = source["weights"][:, 1:].sum(axis=1, dtype=np.float64)
    summed = np.cumsum([0.0, *tokens[order.take(0, int(last[-1]))]])
    amounts.append(np.stack([last, summed[last]], axis=1))
  return amounts[1] / np.maximum(amounts[0] + amounts[1], 1)


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
  tokens, mask = packing.left_pad(prompts, width, pad_id)

  def make(index, chosen, part):
    del index
    rows = np.where(chosen < 0, chosen[0], chosen)[part]
    return PromptBatch(
      tokens=tokens[rows], mask=mask[rows], ids=chosen[part].astype(np.int32)
    )

  order = batch_source.Order(len(prompts), seed, shuffle)
  return batch_source.iterator(
    batch_source.Batches(
      order, batch_size, epochs, shard_index, shard_count, make
    )
  )
