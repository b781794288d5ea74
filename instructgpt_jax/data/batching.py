"""Batches of packed rows and of prompts; see `ranking_packing` for rankings."""

from __future__ import annotations

import dataclasses
import fractions
import math
import sys
from collections.abc import Sequence

import grain
import numpy as np

from instructgpt_jax.data import batch_source, packing
from instructgpt_jax.data.batch_source import (
  BatchSource,
  BatchSpec,
  SourceMix,
)
from instructgpt_jax.data.row_source import AnyRows, row_source, take_padded
from instructgpt_jax.types import LanguageBatch, PromptBatch

__all__ = [
  "BatchSpec",
  "Mixture",
  "language_batches",
  "mixed_language_batches",
  "mixed_shares",
  "prompt_batches",
]


class Mixture:
  """Spreads pretraining rows evenly over the steps of a run.

  After n rows of demonstrations, a run has used n · f / (1 − f) pretraining
  rows, rounded to a whole number. Pretraining rows are therefore the fraction f
  of all rows to within one row, and two steps differ by at most one row.

  Attributes:
    most: largest number of pretraining rows in one step.
  """

  def __init__(self, fraction: float, step_rows: int):
    """Computes the ratio of pretraining rows to demonstration rows.

    Args:
      fraction: f, fraction of all rows, at least 0 and less than 1.
      step_rows: rows of demonstrations in a step.
    """
    share = fractions.Fraction(str(fraction))
    self._ratio = share / (1 - share)
    self.most = math.ceil(self._ratio * step_rows)

  def rows_after(self, demonstration_rows: int) -> int:
    """Returns the pretraining rows used after a number of demonstrations."""
    half = fractions.Fraction(1, 2)
    return math.floor(self._ratio * demonstration_rows + half)


def language_batches(
  rows: AnyRows,
  spec: BatchSpec,
  *,
  padded_size: int = 0,
  pad_id: int = 0,
) -> grain.DatasetIterator:
  """Returns an iterator over batches of packed rows.

  Args:
    rows: tokens, segments, positions, weights, each [R, T]; or a source of
      such rows. Each process takes only its own rows.
    spec: the batches. Batch i begins at row i · batch_size of the epochs,
      whatever size it is padded to.
    padded_size: B, number of rows that a batch is padded to with rows of
      weight 0; 0 means no more than it needs.
    pad_id: token id of padding rows.

  Returns:
    Iterator over LanguageBatch, [B / shard_count, T].
  """
  return mixed_language_batches(
    rows, None, 0.0, spec, padded_size=padded_size, pad_id=pad_id
  )


def mixed_language_batches(
  rows: AnyRows,
  pretraining_rows: AnyRows | None,
  fraction: float,
  spec: BatchSpec,
  *,
  padded_size: int = 0,
  pad_id: int = 0,
  pretraining_mix: SourceMix | None = None,
) -> grain.DatasetIterator:
  """Returns an iterator over batches of rows, pretraining rows and padding.

  `Mixture` decides how many pretraining rows a batch has. Epochs count passes
  over `rows`; the pretraining rows repeat as often as needed.

  Args:
    rows: as for `language_batches`.
    pretraining_rows: likewise, of the same length T.
    fraction: fraction of pretraining rows among all rows.
    spec: the batches; `batch_size` counts `rows` alone.
    padded_size: as for `language_batches`; counts both kinds of rows.
    pad_id: token id of padding rows.
    pretraining_mix: sources of the pretraining rows, if they have weights.

  Returns:
    Iterator over LanguageBatch, [B / shard_count, T].

  Raises:
    ValueError: the sizes do not fit, or the two kinds of rows differ in length.
  """
  batch_size = spec.batch_size
  mixture = Mixture(fraction, batch_size)
  needed = batch_size + mixture.most
  size = padded_size or needed
  if size < needed or size % spec.shard_count:
    raise ValueError(
      f"{needed} rows cannot be padded to {size} rows for {spec.shard_count}"
      " process shards"
    )
  source = row_source(rows)
  documents = row_source(rows if pretraining_rows is None else pretraining_rows)
  indices = batch_source.record_indices(source.count, spec, mix=spec.mix)
  pretraining_indices = None
  if mixture.most and pretraining_rows is not None:
    if source.length != documents.length:
      raise ValueError("rows and pretraining rows differ in length")
    pretraining_indices = batch_source.record_indices(
      documents.count, spec, mix=pretraining_mix, stream=1
    )
  epochs = spec.epochs
  total = sys.maxsize if epochs is None else indices.count * epochs
  shard = spec.shard(size)
  local = shard.stop - shard.start

  def take_pretraining(index: int) -> np.ndarray:
    """Returns the pretraining rows of a batch as indices."""
    if pretraining_indices is None:
      return np.zeros(0, np.int64)
    first, last = (
      mixture.rows_after(min(i * batch_size, total)) for i in (index, index + 1)
    )
    return pretraining_indices.take(first, last)

  def make(index: int, batch: np.ndarray, all_rows: slice) -> LanguageBatch:
    del all_rows  # The shard of the padded batch is a slice of more rows.
    start, stop = (max(i - batch_size, 0) for i in (shard.start, shard.stop))
    pretraining = take_pretraining(index)[start:stop]
    blocks = [
      take_padded(source, batch[shard], pad_id),
      take_padded(documents, pretraining, pad_id),
    ]
    padding = local - sum(len(b["tokens"]) for b in blocks)
    blocks.append(take_padded(source, np.full(padding, -1), pad_id))
    return LanguageBatch(
      **{k: np.concatenate([b[k] for b in blocks]) for k in blocks[0]}
    )

  unsharded = dataclasses.replace(spec, shard_index=0, shard_count=1)
  return batch_source.make_iterator(BatchSource(indices, unsharded, make))


def mixed_shares(
  rows: AnyRows,
  pretraining_rows: AnyRows,
  fraction: float,
  spec: BatchSpec,
  *,
  steps: int,
  pretraining_mix: SourceMix | None = None,
) -> np.ndarray:
  """Computes how much of a run has been pretraining data after each step.

  Args:
    rows: as for `mixed_language_batches`.
    pretraining_rows: likewise.
    fraction: likewise.
    spec: likewise.
    steps: S, batches of the run.
    pretraining_mix: as for `mixed_language_batches`.

  Returns:
    [S, 2], the share of the rows and the share of the tokens that carry loss.
  """
  mixture = Mixture(fraction, spec.batch_size)
  ends = np.arange(1, steps + 1) * spec.batch_size
  pretraining_ends = np.array([mixture.rows_after(int(n)) for n in ends])
  amounts = []
  for source, last, mix, stream in (
    (rows, ends, spec.mix, 0),
    (pretraining_rows, pretraining_ends, pretraining_mix, 1),
  ):
    source = row_source(source)
    indices = batch_source.record_indices(
      source.count, spec, mix=mix, stream=stream
    )
    tokens = source.loss_tokens(indices.take(0, int(last[-1])))
    summed = np.cumsum([0.0, *tokens])
    amounts.append(np.stack([last, summed[last]], axis=1))
  return amounts[1] / np.maximum(amounts[0] + amounts[1], 1)


def prompt_batches(
  prompts: Sequence[np.ndarray],
  spec: BatchSpec,
  *,
  width: int,
  pad_id: int,
) -> grain.DatasetIterator:
  """Returns an iterator over batches of left-padded prompts.

  Args:
    prompts: token ids of each prompt, at most `width` long.
    spec: the batches.
    width: P, tokens that each prompt is padded to.
    pad_id: token id of padding.

  Returns:
    Iterator over PromptBatch, [B / shard_count, P]; `ids` is the prompt's index
    in `prompts`. The last batch is padded with copies of its first prompt,
    which have the id -1.
  """

  def make(index: int, batch: np.ndarray, shard: slice) -> PromptBatch:
    del index
    rows = np.where(batch < 0, batch[0], batch)[shard]
    tokens, mask = packing.left_pad(
      [prompts[i] for i in rows.tolist()], width, pad_id
    )
    return PromptBatch(
      tokens=tokens, mask=mask, ids=batch[shard].astype(np.int32)
    )

  indices = batch_source.record_indices(len(prompts), spec, mix=spec.mix)
  return batch_source.make_iterator(BatchSource(indices, spec, make))
