"""The language-model step: pretraining, SFT and policy initialisation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax.losses import chunked, language
from instructgpt_jax.losses.masked import safe_divide
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel, postprocess_logits
from instructgpt_jax.steps import accumulation
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
  """Computes Σ weight · −log p / normalizer over a batch [B, T].

  Args:
    model: the language model.
    params: its parameters.
    batch: rows; `weights` says what carries loss.
    normalizer: Σ weights of the whole batch.
    dropout_key: turns residual dropout on.

  Returns:
    The loss, and `accuracy` likewise divided.
  """
  hidden, targets, weights = _flat(
    model, params, batch, dropout_key=dropout_key
  )
  total, sums = chunked.chunked_logits_loss(
    _cross_entropy,
    hidden,
    unembedding_matrix(model, params),
    {"targets": targets, "weights": weights},
    weights > 0,
    adjust(model),
  )
  return (
    safe_divide(total, normalizer),
    {"accuracy": safe_divide(sums["correct"], normalizer)},
  )


def _cross_entropy(
  logits: Array, rows: dict[str, Array], used: Array
) -> tuple[Array, dict[str, Array]]:
  weights = jnp.where(used, rows["weights"], 0)
  loss, _, sums = language.weighted_cross_entropy(
    logits, rows["targets"], weights
  )
  return loss, sums


def unembedding_matrix(model: LanguageModel, params: PyTree) -> Array:
  """Returns the unembedding [V, D], for `losses.chunked`."""
  return model.apply({"params": params}, method="unembedding_matrix")


def adjust(model: LanguageModel) -> chunked.Adjust:
  """Returns the function from matmuls with the unembedding to logits."""
  return functools.partial(postprocess_logits, model.config)


def _flat(
  model: LanguageModel,
  params: PyTree,
  batch: LanguageBatch,
  *,
  dropout_key: Array | None = None,
) -> tuple[Array, Array, Array]:
  """Computes hidden states [B · T, D], their targets and weights."""
  hidden = model.apply(
    {"params": params},
    batch.tokens,
    batch.segments,
    batch.positions,
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
    method="hidden",
  )
  # A row's last position predicts nothing.
  targets, weights = (
    jnp.pad(x[:, 1:], ((0, 0), (0, 1))).reshape(-1)
    for x in (batch.tokens, batch.weights)
  )
  return hidden.reshape(-1, hidden.shape[-1]), targets, weights


def gradients(
  model: LanguageModel,
  params: PyTree,
  batch: LanguageBatch,
  frozen: PyTree = None,
  *,
  microbatch: int,
  dropout_key: Array | None = None,
) -> tuple[Array, PyTree, Metrics]:
  """Computes the loss (mean over the weights), gradients and metrics.

  Args:
    model: the language model.
    params: its parameters, or those that are trained.
    batch: rows.
    frozen: the other ones.
    microbatch: rows at a time.
    dropout_key: turns residual dropout on.
  """
  normalizer = batch.weights[:, 1:].sum()

  def loss_fn(params, part, index):
    key = None
    if dropout_key is not None:
      key = jax.random.fold_in(dropout_key, index)
    params = lora.merge_trees(frozen, params)
    return loss_and_metrics(model, params, part, normalizer, dropout_key=key)

  return accumulation.accumulate(loss_fn, params, batch, microbatch)


def train_step(
  state: TrainState,
  batch: LanguageBatch,
  frozen: PyTree = None,
  *,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  seed: int,
  microbatch: int = 0,
) -> tuple[TrainState, Metrics]:
  """Updates the model on a batch [B, T]; dropout depends on seed and step.

  Args:
    state: what is trained.
    batch: rows.
    frozen: parameters that the model has beside the state's.
    model: the language model.
    optimizer: of the state.
    seed: of dropout.
    microbatch: rows at a time; 0 is all.
  """
  key = None
  if model.config.dropout:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
  loss, grads, metrics = gradients(
    model,
    state.params,
    batch,
    frozen,
    microbatch=microbatch,
    dropout_key=key,
  )
  metrics = {
    "loss": loss,
    **metrics,
    "tokens": (batch.segments > 0).sum(),
    "grad_norm": optax.tree.norm(grads),
  }
  return state_lib.apply_gradients(state, grads, optimizer), metrics


def token_logp(
  params: PyTree, batch: LanguageBatch, *, model: LanguageModel
) -> Array:
  """Computes the log-probability of each token given those before it.

  Returns:
    [B, T] float32; 0 where the weight is 0.
  """
  hidden, targets, weights = _flat(model, params, batch)
  logp = chunked.token_logp(
    hidden,
    unembedding_matrix(model, params),
    targets,
    weights > 0,
    adjust=adjust(model),
  )
  # The last position predicts nothing, and nothing predicts the first.
  return jnp.roll(logp.reshape(batch.tokens.shape), 1, axis=1)
