"""Measures the token lengths of a run's own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.prepared.records import PreparedRecords
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.recipes.limits import Lengths
from instructgpt_jax.training import inputs

_MEASURED = 5000  # records of a source
# Experiment → sources whose lengths decide its limits.
SOURCES = {
  "sft": ("demonstrations",),
  "policy_init": ("demonstrations",),
  "reward": ("comparisons",),
  "ppo": ("prompts",),
  "ppo_ptx": ("prompts",),
  "evaluate": ("prompts",),
  "pipeline": ("demonstrations", "comparisons", "prompts"),
}


def measure_sources(
  experiment: str, data: configs.Data, tokenizer: Tokenizer
) -> tuple[Lengths, ...]:
  """Measures the training records of the sources that a run names.

  Of a large source it measures 5,000 records, evenly spaced.

  Args:
    experiment: key of `SOURCES`.
    data: the run's data section, with its prompt format.
    tokenizer: the model's.
  """
  return tuple(
    _measure(name, data, tokenizer)
    for name in SOURCES[experiment]
    if getattr(data, name)
  )


def _measure(name: str, data: configs.Data, tokenizer: Tokenizer) -> Lengths:
  records = inputs.without_limits(name, data).train
  sample = records[:: -(-len(records) // _MEASURED)]
  prompts = encoding.encode_prompts([r.turns for r in sample], tokenizer, data)
  responses = encoding.encode_untruncated(
    _responses(name, sample), tokenizer, data
  )
  completions = 0
  if name == "comparisons":
    completions = _most_completions(records)
  return Lengths(
    name,
    len(records),
    [*map(len, prompts)],
    [*map(len, responses)],
    completions,
  )


def _most_completions(rankings: Sequence[Any]) -> int:
  if isinstance(rankings, PreparedRecords):
    return rankings.token_counts.shape[1] - 1
  return max(len(record.completions) for record in rankings)


def _responses(name: str, records: Sequence[Any]) -> list[str]:
  if name == "demonstrations":
    return [record.completion for record in records]
  if name == "comparisons":
    return [text for record in records for text in record.completions]
  return []
