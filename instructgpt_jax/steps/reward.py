"""The reward model's step: K completions of a prompt are one element."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax.losses import reward
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import (
  LanguageModel,
  ScalarModel,
  positions_of,
)
from instructgpt_jax.steps import accumulation
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.state import Metrics, TrainState
from instructgpt_jax.types import Array, LanguageBatch, PyTree, RankingBatch


def score_rows(
  model: ScalarModel,
  params: PyTree,
  tokens: Array,
  segments: Array,
  *,
  dropout_key: Array | None = None,
) -> Array:
  """Computes the scalar at each row's last real token.

  Args:
    model: the reward model.
    params: its parameters.
    tokens: [B, T] int32, padded on either side.
    segments: [B, T] int32, 0 is padding.
    dropout_key: turns residual dropout on.

  Returns:
    [B] float32.
  """
  real = segments > 0
  values = model.apply(
    {"params": params},
    tokens,
    segments,
    positions_of(real),
    deterministic=dropout_key is None,
    query_positions=last_columns(real),
    rngs=None if dropout_key is None else {"dropout": dropout_key},
  )
  return values[:, 0]


def last_states(
  model: LanguageModel, params: PyTree, tokens: Array, segments: Array
) -> Array:
  """Computes a language model's state at each row's last real token.

  Args:
    model: the language model.
    params: its parameters.
    tokens: [B, T] int32, padded on either side.
    segments: [B, T] int32, 0 is padding.

  Returns:
    [B, D], what the head of a reward model would read.
  """
  real = segments > 0
  hidden = model.apply(
    {"params": params},
    tokens,
    segments,
    positions_of(real),
    query_positions=last_columns(real),
    method="hidden",
  )
  return hidden[:, 0, : model.config.d_model]


def last_columns(real: Array) -> Array:
  """Returns the last True of each row of [B, T], as [B, 1] int32."""
  back = jnp.argmax(real[:, ::-1], axis=1, keepdims=True)
  return real.shape[1] - 1 - back


def token_scores(
  params: PyTree, batch: LanguageBatch, *, model: ScalarModel
) -> Array:
  """Computes the scalar at every token of a batch, [B, T] float32."""
  return model.apply(
    {"params": params}, batch.tokens, batch.segments, batch.positions
  )


def score_rankings(
  model: ScalarModel,
  params: PyTree,
  batch: RankingBatch,
  *,
  dropout_key: Array | None = None,
) -> Array:
  """Computes the scores [G, E, K] of completions by one pass.

  The completions of a row share one copy of the prompt.
  """
  groups, rows, length = batch.tokens.shape
  tokens, segments, positions = (
    x.reshape(-1, length)
    for x in (batch.tokens, batch.segments, batch.positions)
  )
  # All ends in each of a group's rows; one row's values are its own.
  ends = batch.ends.reshape(groups, 1, -1)
  columns = jnp.broadcast_to(ends % length, (groups, rows, ends.shape[2]))
  values = model.apply(
    {"params": params},
    tokens,
    segments,
    positions,
    deterministic=dropout_key is None,
    span=batch.span,
    query_positions=columns.reshape(groups * rows, -1),
    rngs=None if dropout_key is None else {"dropout": dropout_key},
  )
  values = values.reshape(columns.shape)
  scores = jnp.take_along_axis(values, ends // length, axis=1)
  return scores.reshape(batch.ends.shape)


def count_pairs(
  model: ScalarModel, params: PyTree, batch: RankingBatch
) -> tuple[Array, Array, Array]:
  """Counts pairs in the labeler's order and all pairs, and sums their losses.

  Returns:
    Three arrays [G, E], one value for each prompt.
  """
  scores = score_rankings(model, params, batch)
  correct, pairs = reward.pair_accuracy(scores, batch.ranks, batch.valid)
  return (
    correct,
    pairs,
    reward.pair_losses(scores, batch.ranks, batch.valid),
  )


def grades_of(
  batch: RankingBatch, margin: Literal["rank", "grade"] | None, coef: float
) -> Array | None:
  """Returns the completions' grades in logits, [G, E, K].

  Args:
    batch: rankings; with margin "grade" they have grades.
    margin: what grades a completion: its rank, or the labeler's grade. None
      returns None.
    coef: logits of one step of rank or grade.
  """
  if margin is None:
    return None
  if margin == "rank":
    return -coef * batch.ranks
  if batch.grades is None:
    raise ValueError("rankings without grades have no margins")
  return coef * batch.grades


def train_step(
  state: TrainState,
  batch: RankingBatch,
  frozen: PyTree = None,
  *,
  model: ScalarModel,
  optimizer: optax.GradientTransformation,
  seed: int,
  microbatch: int = 0,
  label_smoothing: float = 0.0,
  margin: Literal["rank", "grade"] | None = None,
  margin_coef: float = 1.0,
) -> tuple[TrainState, Metrics]:
  """Updates the model on B = G · E prompts with their K completions.

  Args:
    state: what is trained.
    batch: rankings.
    frozen: parameters that the model has beside the state's.
    model: the reward model.
    optimizer: of the state.
    seed: of dropout.
    microbatch: prompts at a time, a multiple of E; 0 is all.
    label_smoothing: see `ranking_loss`.
    margin: see `grades_of`.
    margin_coef: likewise.

  Returns:
    The next state, and metrics: the loss's, the gradient's norm, and the share
    of the tokens that are `padding`.
  """
  together = batch.ids.shape[1]
  if microbatch < batch.ids.size and microbatch % together:
    raise ValueError(
      f"microbatch {microbatch} parts the {together} prompts of a group"
    )
  normalizer = reward.count_prompts(batch.ranks, batch.valid)
  key = None
  if model.config.dropout:
    key = jax.random.fold_in(jax.random.key(seed), state.step)

  def loss_fn(params, part, index):
    part_key = None if key is None else jax.random.fold_in(key, index)
    params = lora.merge_trees(frozen, params)
    scores = score_rankings(model, params, part, dropout_key=part_key)
    return reward.ranking_loss(
      scores,
      part.ranks,
      part.valid,
      normalizer=normalizer,
      label_smoothing=label_smoothing,
      grades=grades_of(part, margin, margin_coef),
    )

  loss, grads, metrics = accumulation.accumulate(
    loss_fn, state.params, batch, microbatch // together
  )
  metrics = {
    "loss": loss,
    **metrics,
    "grad_norm": optax.tree.norm(grads),
    "padding": jnp.mean(batch.segments == 0),
  }
  return state_lib.apply_gradients(state, grads, optimizer), metrics


def shift_bias(params: PyTree, amount: Array) -> PyTree:
  """Subtracts `amount` from every score of a reward model (3.5)."""
  head = params["head"]
  return {**params, "head": {**head, "bias": head["bias"] - amount}}
