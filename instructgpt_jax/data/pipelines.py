"""Batches of packed rows, and of prompts; of rankings see `ranking_rows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grain
import numpy as np

from instructgpt_jax.data import stream, transforms
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

  order = stream.Order(len(rows["tokens"]), seed, shuffle)
  return stream.iterator(
    stream.Batches(order, batch_size, epochs, shard_index, shard_count, make)
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
  other = stream.Order(len(pretraining_rows["tokens"]), seed, shuffle, stream=1)
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

  order = stream.Order(len(rows["tokens"]), seed, shuffle)
  return stream.iterator(
    stream.Batches(order, batch_size - extra, epochs, 0, 1, make)
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

  order = stream.Order(len(prompts), seed, shuffle)
  return stream.iterator(
    stream.Batches(order, batch_size, epochs, shard_index, shard_count, make)
  )
