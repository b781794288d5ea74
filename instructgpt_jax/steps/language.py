"""The language-model step: pretraining, SFT and policy initialisation."""

from __future__ import annotations

import jax
import optax

from instructgpt_jax.losses import language
from instructgpt_jax.losses.masked import safe_divide
from instructgpt_jax.models.transformer import LanguageModel
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.state import Metrics, TrainState
from instructgpt_jax.types import Array, LanguageBatch, PyTree


def loss_and_metrics(
  model: LanguageModel,
  params: PyTree,
  batch: LanguageBatch,
  normalizer: Array,
  *,
  dropout_key: Array | None = None,
) -> tuple[Array, Metrics]:
  """Σ weight · −log p / normalizer over a batch [B, T].

  Args:
    model: the language model.
    params: its parameters.
    batch: rows; `weights` says what carries loss.
    normalizer: Σ weights of the whole batch.
    dropout_key: turns residual dropout on.

  Returns:
    The loss, and `accuracy` likewise divided.
  """
  hidden = model.apply(
    {"params": params},
    batch.tokens,
    batch.segments,
    batch.positions,
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
    method="hidden",
  )
  logits = model.apply({"params": params}, hidden[:, :-1], method="unembed")
  total, _, sums = language.weighted_cross_entropy(
    logits, batch.tokens[:, 1:], batch.weights[:, 1:]
  )
  return (
    safe_divide(total, normalizer),
    {"accuracy": safe_divide(sums["correct"], normalizer)},
  )


def gradients(
  model: LanguageModel,
  params: PyTree,
  batch: LanguageBatch,
  *,
  microbatch: int,
  dropout_key: Array | None = None,
) -> tuple[Array, PyTree, Metrics]:
  """Loss (mean over the batch's weight), gradients and metrics."""
  normalizer = batch.weights[:, 1:].sum()

  def loss_fn(params, part, index):
    key = None
    if dropout_key is not None:
      key = jax.random.fold_in(dropout_key, index)
    return loss_and_metrics(model, params, part, normalizer, dropout_key=key)

  return state_lib.accumulate(loss_fn, params, batch, microbatch)


def train_step(
  state: TrainState,
  batch: LanguageBatch,
  *,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  seed: int,
  microbatch: int = 0,
) -> tuple[TrainState, Metrics]:
  """One update on a batch [B, T]; dropout draws from (seed, step)."""
  key = None
  if model.config.dropout:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
  loss, grads, metrics = gradients(
    model, state.params, batch, microbatch=microbatch, dropout_key=key
  )
  metrics = {
    "loss": loss,
    **metrics,
    "tokens": (batch.segments > 0).sum(),
    "grad_norm": optax.tree.norm(grads),
  }
  return state_lib.apply_gradients(state, grads, optimizer), metrics


def evaluate_rows(
  params: PyTree, batch: LanguageBatch, *, model: LanguageModel
) -> tuple[Array, Array]:
  """Σ weight · −log p and Σ weight of each row of a batch [B, T].

  Returns:
    [B] float32 and [B] float32.
  """
  logits = model.apply(
    {"params": params}, batch.tokens, batch.segments, batch.positions
  )
  weights = batch.weights[:, 1:]
  logp = language.token_logp(logits[:, :-1], batch.tokens[:, 1:])
  return -(logp * weights).sum(axis=1), weights.sum(axis=1)
