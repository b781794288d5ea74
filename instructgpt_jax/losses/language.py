"""Language-model losses: log-probabilities of tokens, and their sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.losses import masked
from instructgpt_jax.types import Array


def _scaled(logits: ArrayLike, temperature: ArrayLike) -> Array:
  return masked.to_float32(logits) / temperature


def _at(logits: Array, targets: ArrayLike) -> Array:
  index = jnp.asarray(targets)[..., None]
  return jnp.take_along_axis(logits, index, axis=-1)[..., 0]


def token_logp(
  logits: ArrayLike, targets: ArrayLike, *, temperature: ArrayLike = 1.0
) -> Array:
  """Log-probability of each target token, in float32.

  Args:
    logits: [..., V] of any float type.
    targets: [...] int32.
    temperature: the logits are divided by it; the sampler's own, so that
      sampling and scoring speak of the same distribution.

  Returns:
    [...] float32.
  """
  scaled = _scaled(logits, temperature)
  # The largest logit is taken off first: logits far from 0 keep their digits.
  top = jax.lax.stop_gradient(jnp.max(scaled, axis=-1))
  total = jnp.sum(jnp.exp(scaled - top[..., None]), axis=-1)
  return _at(scaled, targets) - top - jnp.log(total)


def entropy(logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
  """Entropy of the categorical distribution, in nats.

  Args:
    logits: [..., V]; −inf excludes a token.
    temperature: the logits are divided by it.

  Returns:
    [...] float32.
  """
  logp = jax.nn.log_softmax(_scaled(logits, temperature), axis=-1)
  possible = jnp.isfinite(logp)
  logp = jnp.where(possible, logp, 0)
  return -jnp.sum(jnp.where(possible, jnp.exp(logp), 0) * logp, axis=-1)


def weighted_cross_entropy(
  logits: ArrayLike, targets: ArrayLike, weights: ArrayLike
) -> tuple[Array, Array, dict[str, Array]]:
  """Weighted negative log-likelihood as a sum, with its denominator.

  The two sums are returned apart so that microbatches and devices add them
  before the division: the mean is over the tokens of the whole batch.

  Args:
    logits: [..., V]; anything, NaN included, where the weight is 0.
    targets: [...] int32.
    weights: [...] non-negative weight of each target; 0 on padding, prompts and
      the first token of a document.

  Returns:
    Σ weight · −log p, Σ weight, and a dict of sums: `correct`, the weight of
    the targets that no other token's logit exceeds.
  """
  weights = masked.to_float32(weights)
  used = weights > 0
  logits = jnp.where(used[..., None], masked.to_float32(logits), 0)
  targets = jnp.where(used, jnp.asarray(targets), 0)
  logp = token_logp(logits, targets)
  best = jnp.max(jax.lax.stop_gradient(logits), axis=-1)
  correct = _at(jax.lax.stop_gradient(logits), targets) >= best
  weights = jnp.where(used, weights, 0)
  return (
    -jnp.sum(weights * logp),
    jnp.sum(weights),
    {"correct": jnp.sum(weights * correct)},
  )
