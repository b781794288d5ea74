"""KL divergence between policy and reference: estimators and controller.

The divergence of a response is estimated from its sampled tokens alone. The
estimators' names are those of http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.losses import masked
from instructgpt_jax.types import Array


def k1(logp: ArrayLike, ref_logp: ArrayLike) -> Array:
  """Computes log π − log π_ref: unbiased; the estimator in the reward.

  Args:
    logp: [...] log-probabilities of sampled tokens under the policy.
    ref_logp: [...] log-probabilities of the same tokens under the reference.

  Returns:
    [...] float32.
  """
  return masked.to_float32(logp) - masked.to_float32(ref_logp)


def k3(logp: ArrayLike, ref_logp: ArrayLike) -> Array:
  """Computes π_ref / π − 1 + log π / π_ref: unbiased and never negative.

  Args:
    logp: [...] log-probabilities of sampled tokens under the policy.
    ref_logp: [...] log-probabilities of the same tokens under the reference.

  Returns:
    [...] float32.
  """
  log_ratio = k1(logp, ref_logp)
  return jnp.expm1(-log_ratio) + log_ratio


def adaptive_kl(
  kl_coef: ArrayLike,
  kl: ArrayLike,
  *,
  target: ArrayLike,
  horizon: ArrayLike,
  episodes: ArrayLike,
) -> Array:
  """Updates the KL coefficient β by proportional control.

  β ← β · (1 + clip(KL / target − 1, ±0.2) · episodes / horizon)

  Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

  Args:
    kl_coef: β.
    kl: mean KL of an episode, in nats.
    target: target KL of an episode, in nats.
    horizon: number of episodes over which β adapts.
    episodes: number of episodes since the last update.

  Returns:
    The next β, [] float32.
  """
  error = jnp.clip(masked.to_float32(kl) / target - 1, -0.2, 0.2)
  return masked.to_float32(kl_coef) * (1 + error * episodes / horizon)
