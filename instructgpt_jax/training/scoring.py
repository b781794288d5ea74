"""Log-likelihoods and scores of texts, packed to avoid padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from instructgpt_jax.data import batching, packing
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.types import PyTree, Rollout

_token_logp = mesh_lib.jit_per_mesh(
  language_step.token_logp, static_argnames="model"
)
_token_scores = mesh_lib.jit_per_mesh(
  reward_step.token_scores, static_argnames="model"
)
_last_states = mesh_lib.jit_per_mesh(
  reward_step.last_states, static_argnames="model"
)

TOKENS = 4096  # of a batch, about
_LENGTH = 2048  # of a row, a multiple of this or the model's max_seq_len
_WIDTH = 16  # rows whose states are computed have a multiple of this


class Example(NamedTuple):
  """Token ids, and the weight of each."""

  ids: np.ndarray  # [n] int32
  weights: np.ndarray  # [n] float32


def answers(rollout: Rollout) -> list[Example]:
  """The rows of a rollout without padding; weight 1 on the response."""
  tokens, real = np.asarray(rollout.tokens), np.asarray(rollout.segments) > 0
  marks = np.zeros(tokens.shape, np.float32)
  length = rollout.response_mask.shape[1]
  marks[:, -length:] = rollout.response_mask
  return [
    Example(row[mask], mark[mask])
    for row, mask, mark in zip(tokens, real, marks, strict=True)
  ]


def log_likelihood(
  model: LanguageModel, params: PyTree, examples: Sequence[Example], mesh: Mesh
) -> np.ndarray:
  """Computes Σ weight · log p of each example, [R] float64."""
  totals = np.zeros(len(examples))
  for index, weights, logp in _each(
    _token_logp(mesh), model, params, examples, mesh
  ):
    totals[index] = float(weights @ logp.astype(np.float64))
  return totals


def score(
  model: ScalarModel, params: PyTree, examples: Sequence[Example], mesh: Mesh
) -> np.ndarray:
  """Scores each example at its last token, [R] float32."""
  rewards = np.zeros(len(examples), np.float32)
  for index, _, scores in _each(
    _token_scores(mesh), model, params, examples, mesh
  ):
    rewards[index] = scores[-1]
  return rewards


def last_states(
  model: LanguageModel,
  params: PyTree,
  sequences: Sequence[np.ndarray],
  mesh: Mesh,
) -> np.ndarray:
  """Computes the hidden state at each sequence's last token, [R, D] float32."""
  states = np.zeros((len(sequences), model.config.d_model), np.float32)
  by_length = np.argsort([len(ids) for ids in sequences], kind="stable")
  rows = mesh_lib.round_up_to_shards(min(128, len(sequences)), mesh)
  for start in range(0, len(sequences), rows):
    chosen = by_length[start : start + rows]
    longest = len(sequences[chosen[-1]])
    width = min(packing.round_up(longest, _WIDTH), model.config.max_seq_len)
    tokens, segments = np.zeros((2, rows, width), np.int32)
    segments[:, 0] = 1  # rows that complete the last batch have a token, too
    for row, index in enumerate(chosen):
      ids = sequences[index]
      tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    batch = transfer.put_full_batch((tokens, segments), mesh)
    values = transfer.allgather(_last_states(mesh)(model, params, *batch))
    states[chosen] = values[: len(chosen)]
  return states


def _each(
  program: Callable[..., Any],
  model: LanguageModel | ScalarModel,
  params: PyTree,
  examples: Sequence[Example],
  mesh: Mesh,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Yields index, weights and the program's outputs of each example."""
  longest = max((len(example.ids) for example in examples), default=1)
  length = min(model.config.max_seq_len, -(-longest // _LENGTH) * _LENGTH)
  rows = packing.pack_examples(examples, length, pad_id=0)
  members = packing.best_fit_decreasing([len(e.ids) for e in examples], length)
  size = mesh_lib.round_up_to_shards(
    max(1, min(TOKENS // length, len(members))), mesh
  )
  done = 0
  for batch in batching.language_batches(
    rows, batching.BatchSpec(batch_size=size, epochs=1, shuffle=False)
  ):
    outputs = transfer.allgather(
      program(params, transfer.put_full_batch(batch, mesh), model=model)
    )
    for row, chosen in zip(outputs, members[done : done + size], strict=False):
      start = 0
      for index in chosen:
        end = start + len(examples[index].ids)
        yield index, examples[index].weights, row[start:end]
        start = end
    done += size
