"""The losses of proximal policy optimization."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.losses import masked
from instructgpt_jax.types import Array


def policy_loss(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike,
  *,
  clip_ratio: ArrayLike,
  normalizer: ArrayLike | None = None,
) -> tuple[Array, dict[str, Array]]:
  """Computes the clipped surrogate loss, a mean over tokens.

  L = −mean(min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)), with ρ = π(a) / π_old(a).

  Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.

  Args:
    logp: [B, N] log-probabilities of the sampled tokens under the policy.
    old_logp: [B, N] the same under the policy of the rollout; constant.
    advantages: [B, N] advantages; constant.
    mask: [B, N] bool, True on response tokens.
    clip_ratio: ε, half-width of the interval around ratio 1.
    normalizer: response tokens of the whole minibatch, when this is one of its
      microbatches.

  Returns:
    The scalar loss, and a dict of scalars, all averaged as the loss is:
    `clip_fraction`, tokens whose clipped objective is the smaller one;
    `approx_kl`, KL(old ‖ new) by ratio − 1 − log ratio (k3); `ratio_mean`; and
    `ratio_variance` around 1, the ratio's expectation under the old policy.
  """
  logp = masked.zero_outside(logp, mask)
  old_logp = jax.lax.stop_gradient(masked.zero_outside(old_logp, mask))
  advantages = jax.lax.stop_gradient(masked.zero_outside(advantages, mask))
  log_ratio = logp - old_logp
  ratio = jnp.exp(log_ratio)
  plain = ratio * advantages
  clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio) * advantages

  def average(x: Array) -> Array:
    return masked.masked_mean(x, mask, normalizer=normalizer)

  loss = -average(jnp.minimum(plain, clipped))
  metrics = {
    "clip_fraction": average(clipped < plain),
    "approx_kl": average(jnp.expm1(log_ratio) - log_ratio),
    "ratio_mean": average(ratio),
    "ratio_variance": average(jnp.square(jnp.expm1(log_ratio))),
  }
  return loss, jax.lax.stop_gradient(metrics)


def value_loss(
  values: ArrayLike,
  old_values: ArrayLike,
  returns: ArrayLike,
  mask: ArrayLike,
  *,
  clip_value: float | None,
  normalizer: ArrayLike | None = None,
) -> tuple[Array, dict[str, Array]]:
  """Computes the clipped value loss, a mean over tokens.

  L = ½ mean(max((V − R)², (clip(V, V_old ± c) − R)²))

  Source: the code of Ziegler et al. 2019, lm-human-preferences.

  Args:
    values: [B, N] values of the network in training.
    old_values: [B, N] values at rollout time; constant.
    returns: [B, N] returns; constant.
    mask: [B, N] bool, True on response tokens.
    clip_value: half-width around the rollout's values; None is no clipping. A
      Python number.
    normalizer: response tokens of the whole minibatch, when this is one of its
      microbatches.

  Returns:
    The scalar loss, and a dict of scalars, averaged as the loss is:
    `value_clip_fraction`, tokens whose clipped error is the larger one, and
    `value_error`, the mean squared unclipped error.
  """
  values = masked.zero_outside(values, mask)
  old_values = jax.lax.stop_gradient(masked.zero_outside(old_values, mask))
  returns = jax.lax.stop_gradient(masked.zero_outside(returns, mask))

  def average(x: Array) -> Array:
    return masked.masked_mean(x, mask, normalizer=normalizer)

  plain = worst = jnp.square(values - returns)
  outside = jnp.zeros(values.shape, jnp.bool_)
  if clip_value:
    clipped = jnp.clip(values, old_values - clip_value, old_values + clip_value)
    error = jnp.square(clipped - returns)
    worst = jnp.maximum(plain, error)
    outside = error > plain
  metrics = {
    "value_clip_fraction": average(outside),
    "value_error": average(plain),
  }
  return 0.5 * average(worst), jax.lax.stop_gradient(metrics)


def explained_variance(
  values: ArrayLike, returns: ArrayLike, mask: ArrayLike
) -> Array:
  """Computes 1 − Var(returns − values) / Var(returns).

  Args:
    values: [B, N] values at rollout time.
    returns: [B, N] returns.
    mask: [B, N] bool, True on response tokens.

  Returns:
    [] float32; 0 where the returns do not vary.
  """
  returns = masked.zero_outside(returns, mask)
  values = masked.zero_outside(values, mask)
  total = masked.masked_variance(returns, mask)
  residual = masked.masked_variance(returns - values, mask)
  return jnp.where(total > 0, 1 - masked.safe_divide(residual, total), 0)
