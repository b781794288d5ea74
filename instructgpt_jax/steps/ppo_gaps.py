"""Gaps between log-probabilities that must be equal on a rollout."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from instructgpt_jax.losses import masked
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.steps import ppo as ppo_step
from instructgpt_jax.types import Array, PyTree, Rollout

QUANTILE = 0.999


class Gap(NamedTuple):
  """Difference of two ways to compute log-probabilities, in nats a token."""

  mean: Any  # [] mean of |gap|
  high: Any  # [] its 99.9 % quantile
  kl: Any  # [] mean of ratio − 1 − log ratio
  outside: Any  # [] share of tokens whose ratio leaves the clipping interval


class Gaps(NamedTuple):
  """Gaps of the comparisons on a rollout."""

  decoding: Gap  # recorded while decoding, against the policy's full pass
  reference: Gap  # the policy's full pass against the reference's
  spread: Any  # [] standard deviation of log-probabilities over the vocabulary


def compare(
  policy: PyTree,
  reference: PyTree,
  rollout: Rollout,
  *,
  model: LanguageModel,
  temperature: float,
  clip_ratio: float,
) -> Gaps:
  """Compares log-probabilities that must be equal but for rounding.

  Args:
    policy: parameters that sampled the rollout.
    reference: those of the frozen reference.
    rollout: what was sampled.
    model: the network of both.
    temperature: of sampling.
    clip_ratio: half-width of the clipping interval.
  """
  mask = rollout.response_mask
  ours, spread = ppo_step.response_logp_and_spread(
    model, policy, rollout, temperature
  )
  theirs = ppo_step.response_logp(model, reference, rollout, temperature)

  def gap(new: Array, old: Array) -> Gap:
    log_ratio = jnp.where(mask, new - old, 0)
    size = jnp.abs(log_ratio)
    order = jnp.sort(jnp.where(mask, size, -1).reshape(-1), descending=True)
    rank = jnp.floor((1 - QUANTILE) * mask.sum()).astype(jnp.int32)
    return Gap(
      mean=masked.masked_mean(size, mask),
      high=order[rank],
      kl=masked.masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
      outside=masked.masked_mean(
        jnp.abs(jnp.expm1(log_ratio)) > clip_ratio, mask
      ),
    )

  return Gaps(gap(ours, rollout.logp), gap(ours, theirs), spread)
