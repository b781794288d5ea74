"""Gaps between log-probabilities that must be equal on a rollout.

Decoding with a cache and a full pass give a token the same log-probability, but
for rounding. So do the policy before its first update and the reference.
`training.ppo_checks` compares the gaps with limits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instructgpt_jax.losses import masked
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import packing as packing_lib
from instructgpt_jax.steps.ppo_networks import (
  PackedEpisodes,
  hidden_at_states,
  logp_at_states,
  logp_of_tokens,
  pack_episodes,
)
from instructgpt_jax.types import Array, PyTree, Rollout

QUANTILE = 0.999


class Gap(NamedTuple):
  """Difference of two ways to compute log-probabilities, in nats a token."""

  mean: Any  # [] mean of |gap|
  high: Any  # [] its 99.9 % quantile
  k3: Any  # [] mean of ratio − 1 − log ratio, nats
  outside: Any  # [] share of tokens whose ratio leaves the clipping interval


class Gaps(NamedTuple):
  """Gaps of the comparisons on a rollout."""

  decoding: Gap  # recorded while decoding, against the policy's full pass
  reference: Gap  # the policy's full pass against the reference's
  # [] standard deviation of the log-probability of a random token, over
  # response states, in nats
  spread: Any


def measure_gaps(
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
    reference: parameters of the frozen reference.
    rollout: the sampled episodes.
    model: the network of policy and reference.
    temperature: temperature of sampling.
    clip_ratio: half-width of the clipping interval.
  """
  mask = rollout.response_mask
  policy_logp, spread = response_logp_and_spread(
    model, policy, rollout, temperature
  )
  reference_logp = response_logp(model, reference, rollout, temperature)

  def gap(new: Array, old: Array) -> Gap:
    log_ratio = jnp.where(mask, new - old, 0)
    size = jnp.abs(log_ratio)
    # Padding is last in descending order.
    largest = jnp.sort(jnp.where(mask, size, -1).reshape(-1), descending=True)
    rank = jnp.floor((1 - QUANTILE) * mask.sum()).astype(jnp.int32)
    return Gap(
      mean=masked.masked_mean(size, mask),
      high=largest[rank],
      k3=masked.masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
      outside=masked.masked_mean(
        jnp.abs(jnp.expm1(log_ratio)) > clip_ratio, mask
      ),
    )

  return Gaps(
    gap(policy_logp, rollout.logp), gap(policy_logp, reference_logp), spread
  )


def response_logp(
  model: LanguageModel, params: PyTree, rollout: Rollout, temperature: float
) -> Array:
  """Computes log-probabilities of the sampled tokens by one full pass.

  Args:
    model: the network.
    params: its parameters.
    rollout: B episodes.
    temperature: temperature of sampling.

  Returns:
    [B, N] float32, 0 after a response's end.
  """
  packing, episodes = pack_episodes(rollout)
  logp = packing.unpack_states(
    packing_lib.map_microbatches(
      packing,
      lambda microbatch: logp_at_states(model, params, microbatch, temperature),
      episodes,
    )
  )
  return jnp.where(rollout.response_mask, logp[:, :-1], 0)


def response_logp_and_spread(
  model: LanguageModel, params: PyTree, rollout: Rollout, temperature: float
) -> tuple[Array, Array]:
  """Computes `response_logp` and the spread of log-probabilities.

  The spread is the standard deviation, over all response states, of the
  log-probability of a uniformly random token at each state. The limits of
  `training.ppo_checks` scale with it.

  Args are those of `response_logp`.

  Returns:
    [B, N], as `response_logp`; and [], in nats.
  """
  packing, episodes = pack_episodes(rollout)
  random_tokens = jax.random.randint(
    jax.random.key(0), episodes.actions.shape, 0, model.config.vocab_size
  )

  def sampled_and_random_logp(
    microbatch: tuple[PackedEpisodes, Array],
  ) -> tuple[Array, Array]:
    episodes, random_tokens = microbatch
    hidden = hidden_at_states(model, params, episodes)
    matrix = language_step.unembedding_matrix(model, params)

    def logp_of(tokens: Array) -> Array:
      return logp_of_tokens(
        model, hidden, matrix, tokens, episodes.mask, temperature
      )

    return logp_of(episodes.actions), logp_of(random_tokens)

  logp, random_logp = packing_lib.map_microbatches(
    packing,
    sampled_and_random_logp,
    (episodes, random_tokens),
    output_structure=(0, 0),
  )
  logp = packing.unpack_states(logp)[:, :-1]
  variance = masked.masked_variance(random_logp, episodes.mask)
  return jnp.where(rollout.response_mask, logp, 0), jnp.sqrt(variance)
