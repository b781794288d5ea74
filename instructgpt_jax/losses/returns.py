"""Rewards of tokens, KL estimators, and generalised advantage estimation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.losses import masked
from instructgpt_jax.types import Array


def kl_k1(logp: ArrayLike, ref_logp: ArrayLike) -> Array:
  """log π − log π_ref of the sampled token: unbiased, the one in the reward.

  Args:
    logp: [...] log-probabilities under the policy that sampled.
    ref_logp: [...] the same tokens under the reference.
  """
  return masked.to_float32(logp) - masked.to_float32(ref_logp)


def kl_k2(logp: ArrayLike, ref_logp: ArrayLike) -> Array:
  """½ (log π − log π_ref)²: biased, low variance, for logging.

  Args:
    logp: [...] log-probabilities under the policy that sampled.
    ref_logp: [...] the same tokens under the reference.
  """
  return 0.5 * jnp.square(kl_k1(logp, ref_logp))


def kl_k3(logp: ArrayLike, ref_logp: ArrayLike) -> Array:
  """π_ref/π − 1 + log π/π_ref: unbiased, never negative, for logging.

  Args:
    logp: [...] log-probabilities under the policy that sampled.
    ref_logp: [...] the same tokens under the reference.
  """
  log_ratio = kl_k1(logp, ref_logp)
  return jnp.expm1(-log_ratio) + log_ratio


def last_token(mask: ArrayLike) -> Array:
  """Marks the last True of each row.

  Args:
    mask: [B, N] bool.

  Returns:
    [B, N] bool, one True a row, none in a row without any.
  """
  mask = masked.to_bool(mask)
  left = jnp.cumsum(mask[..., ::-1].astype(jnp.int32), axis=-1)[..., ::-1]
  return mask & (left == 1)


def token_rewards(
  score: ArrayLike,
  logp: ArrayLike,
  ref_logp: ArrayLike,
  mask: ArrayLike,
  kl_coef: ArrayLike,
) -> Array:
  """−β (log π − log π_ref) per token, and the score once, on the last one.

  Eq. 2 of arXiv:2203.02155, as lm-human-preferences spreads it over tokens: the
  rewards of an episode add up to score − β Σ KL.

  Args:
    score: [B] reward-model scores of whole responses.
    logp: [B, N] log-probabilities under the rollout policy.
    ref_logp: [B, N] the same tokens under the reference.
    mask: [B, N] bool, True on response tokens, end-of-text included.
    kl_coef: β.

  Returns:
    [B, N] float32, 0 outside the mask.
  """
  penalty = -masked.to_float32(kl_coef) * kl_k1(logp, ref_logp)
  landed = masked.zero_outside(
    masked.to_float32(score)[..., None], last_token(mask)
  )
  return masked.zero_outside(penalty, mask) + landed


def gae(
  rewards: ArrayLike,
  values: ArrayLike,
  mask: ArrayLike,
  *,
  discount: ArrayLike,
  lam: ArrayLike,
  last_value: ArrayLike = 0.0,
) -> tuple[Array, Array]:
  """Generalised advantage estimation (arXiv:1506.02438, eq. 16).

  Positions outside the mask are skipped: the token before them sees what comes
  after them.

  Args:
    rewards: [B, N].
    values: [B, N] value of the state in which token t was chosen.
    mask: [B, N] bool, True on response tokens.
    discount: γ of the return.
    lam: λ.
    last_value: value of the state after the last response token, [B] or scalar.
      0 after a terminal; a truncated response is bootstrapped only where the
      caller puts another value here.

  Returns:
    [B, N] advantages and [B, N] returns (advantages + values), 0 outside the
    mask. The advantages are not whitened.
  """
  mask = masked.to_bool(mask)
  rewards, values = (
    masked.zero_outside(rewards, mask),
    masked.zero_outside(values, mask),
  )
  dtype = jnp.promote_types(rewards.dtype, values.dtype)
  rewards, values = rewards.astype(dtype), values.astype(dtype)
  discount = jnp.asarray(discount, dtype)
  lam = jnp.asarray(lam, dtype)
  end = jnp.broadcast_to(jnp.asarray(last_value, dtype), mask.shape[:-1])

  def step(after, now):
    next_value, next_advantage = after
    reward, value, valid = now
    delta = reward + discount * next_value - value
    advantage = delta + discount * lam * next_advantage
    after = (
      jnp.where(valid, value, next_value),
      jnp.where(valid, advantage, next_advantage),
    )
    return after, jnp.where(valid, advantage, 0)

  time_major = [jnp.moveaxis(x, -1, 0) for x in (rewards, values, mask)]
  _, advantages = jax.lax.scan(
    step, (end, jnp.zeros_like(end)), tuple(time_major), reverse=True
  )
  advantages = jnp.moveaxis(advantages, 0, -1)
  return advantages, advantages + values
