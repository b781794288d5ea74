"""The prompts of a run: encoded in memory, or prepared and read by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.batch_source import SourceMix
from instructgpt_jax.data.prepared.records import PreparedRecords
from instructgpt_jax.data.records import Prompt
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.training import fingerprint, mixed_sources

FIELD = "data.prompts"
VALID_PROMPTS = 1024  # prepared ones that held-out evaluations draw from


class TokenIds(Protocol):
  """The token ids of N prompts."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> np.ndarray: ...


class EncodedPrompts(NamedTuple):
  """The training prompts of a run.

  Attributes:
    source: the flag, and the parts of the source if they have weights.
    ids: token ids of each prompt.
    lengths: number of tokens of each, [N].
    mix: shares of the source's parts.
    fingerprint: fingerprint of the source.
  """

  source: mixed_sources.MixedSource
  ids: TokenIds
  lengths: np.ndarray
  mix: SourceMix | None
  fingerprint: fingerprint.Source


class _PreparedIds:
  """The token ids of prepared prompts, read when they are taken."""

  def __init__(self, records: PreparedRecords):
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> np.ndarray:
    return self._records.tokens(index).prompt


def encode_prompts(
  records: Sequence[Prompt], tokenizer: Tokenizer, data: configs.Data
) -> EncodedPrompts:
  """Encodes training prompts; prepared ones are read when they are used.

  Args:
    records: the prompts.
    tokenizer: the run's tokenizer.
    data: the run's data section.
  """
  if isinstance(records, PreparedRecords):
    return EncodedPrompts(
      source=mixed_sources.MixedSource(FIELD, ()),
      ids=_PreparedIds(records),
      lengths=records.token_counts[:, 0],
      mix=None,
      fingerprint=fingerprint.fingerprint_prepared(
        data.prompts, train=len(records)
      ),
    )
  source = mixed_sources.open_source(data, FIELD)
  groups = source.group(records)
  turns = [record.turns for group in groups for record in group]
  ids = encoding.encode_prompts(turns, tokenizer, data)
  return EncodedPrompts(
    source=source,
    ids=ids,
    lengths=np.array([len(row) for row in ids]),
    mix=source.mix([len(group) for group in groups]),
    fingerprint=fingerprint.fingerprint_source(
      data.prompts, ids, train=len(ids)
    ),
  )


def held_out_pool(records: Sequence[Prompt]) -> Sequence[Prompt]:
  """Returns the validation prompts to draw from; of prepared ones the first."""
  if isinstance(records, PreparedRecords):
    return records[:VALID_PROMPTS]
  return records
