"""Rewards of tokens, and generalized advantage estimation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.losses import kl, masked
from instructgpt_jax.types import Array


def last_token(mask: ArrayLike) -> Array:
  """Marks the last True of each row.

  Args:
    mask: [B, N] bool.

  Returns:
    [B, N] bool, one True in each row that has any.
  """
  mask = masked.to_bool(mask)
  remaining = jnp.cumsum(mask[..., ::-1].astype(jnp.int32), axis=-1)[..., ::-1]
  return mask & (remaining == 1)


def token_rewards(
  score: ArrayLike,
  logp: ArrayLike,
  ref_logp: ArrayLike,
  mask: ArrayLike,
  kl_coef: ArrayLike,
) -> Array:
  """Computes the reward of each response token.

  r_t = −β (log π(a_t) − log π_ref(a_t)), plus the score at the last token, so
  the rewards of an episode add up to score − β Σ KL.

  Sources: Ouyang et al. 2022, arXiv:2203.02155, eq. 2; spread over tokens as in
  the code of Ziegler et al. 2019, lm-human-preferences.

  Args:
    score: [B] reward-model scores of whole responses.
    logp: [B, N] log-probabilities under the rollout policy.
    ref_logp: [B, N] log-probabilities of the same tokens under the reference.
    mask: [B, N] bool, True on response tokens, end-of-text included.
    kl_coef: β.

  Returns:
    [B, N] float32, 0 outside the mask.
  """
  penalty = -masked.to_float32(kl_coef) * kl.k1(logp, ref_logp)
  last_score = masked.zero_outside(
    masked.to_float32(score)[..., None], last_token(mask)
  )
  return masked.zero_outside(penalty, mask) + last_score


def gae(
  rewards: ArrayLike,
  values: ArrayLike,
  mask: ArrayLike,
  *,
  discount: ArrayLike,
  lam: ArrayLike,
  last_value: ArrayLike = 0.0,
) -> tuple[Array, Array]:
  """Computes generalized advantage estimates and returns.

  δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}. Positions outside the
  mask are skipped: the token before them is followed by the one after them.

  Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.

  Args:
    rewards: [B, N].
    values: [B, N], V_t, value of the state in which token t was chosen.
    mask: [B, N] bool, True on response tokens.
    discount: γ.
    lam: λ.
    last_value: [B] or scalar, value of the state after the last response token.
      0 after a terminal state; another value bootstraps truncated responses.

  Returns:
    [B, N] advantages, not whitened, and [B, N] returns (advantages + values),
    both 0 outside the mask.
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

  def step(following, current):
    next_value, next_advantage = following
    reward, value, valid = current
    delta = reward + discount * next_value - value
    advantage = delta + discount * lam * next_advantage
    following = (
      jnp.where(valid, value, next_value),
      jnp.where(valid, advantage, next_advantage),
    )
    return following, jnp.where(valid, advantage, 0)

  time_major = [jnp.moveaxis(x, -1, 0) for x in (rewards, values, mask)]
  _, advantages = jax.lax.scan(
    step, (end, jnp.zeros_like(end)), tuple(time_major), reverse=True
  )
  advantages = jnp.moveaxis(advantages, 0, -1)
  return advantages, advantages + values
