"""Scoring of a rollout: from episodes to the constants of PPO's losses.

`score_rollout` computes, for a batch of episodes:

  log π_ref      one pass of the reference
  score, V       one pass each of the reward model and the value network;
                 `reward_ensemble.combine_scores`, if it is an ensemble
  rewards        `losses.returns.token_rewards`
  advantages     `losses.returns.gae`, `losses.masked.whiten`
  next β         `losses.kl.adaptive_kl`

`ppo_networks` defines the shape letters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from instructgpt_jax import configs
from instructgpt_jax.losses import kl as kl_lib
from instructgpt_jax.losses import masked, ppo, returns
from instructgpt_jax.models.heads import ScalarModel
from instructgpt_jax.steps import packing as packing_lib
from instructgpt_jax.steps import reward_ensemble
from instructgpt_jax.steps.ppo_networks import (
  Networks,
  PackedEpisodes,
  logp_at_states,
  pack_episodes,
  scalars_at_states,
)
from instructgpt_jax.steps.state import Metrics
from instructgpt_jax.types import Array, Experience, PyTree, Rollout


def score_rollout(
  rollout: Rollout,
  reference_params: PyTree,
  reward_params: tuple[PyTree, ...],
  value_params: PyTree,
  kl_coef: Array,
  *,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[Experience, Array, Metrics]:
  """Scores a rollout and computes advantages (paper, section 3.5 and C.4).

  Args:
    rollout: B episodes that the policy sampled, [B, P + N] tokens.
    reference_params: parameters of the policy before PPO.
    reward_params: parameters of each reward model.
    value_params: current parameters of the value network.
    kl_coef: β of this rollout, weight of the KL penalty.
    networks: the networks.
    config: the PPO settings.

  Returns:
    Experience for the updates, with the fixed targets of the losses; β of the
    next iteration; and the rollout's metrics.
  """
  mask = rollout.response_mask
  outputs = _run_networks(
    rollout, reference_params, reward_params, value_params, networks, config
  )
  # Responses that reach the length limit without end-of-text lose a constant.
  penalized = outputs.score - config.eos_penalty * ~rollout.ended
  rewards = returns.token_rewards(
    penalized, rollout.logp, outputs.ref_logp, mask, kl_coef
  )
  episode_return = masked.masked_sum(rewards, mask, axis=1)
  advantages, targets = _compute_advantages(rewards, outputs, rollout, config)
  kl = kl_lib.k1(rollout.logp, outputs.ref_logp)
  episode_kl = masked.masked_sum(kl, mask, axis=1)
  next_kl_coef = _next_kl_coef(kl_coef, episode_kl, config)
  metrics = {
    # Reward-model score, without the KL and end-of-text penalties.
    "reward": outputs.score.mean(),
    "reward_std": outputs.score.std(),
    "return": episode_return.mean(),  # with penalties
    "kl": episode_kl.mean(),  # nats an episode (k1)
    "kl_per_token": masked.masked_mean(kl, mask),
    "kl_k3_per_token": masked.masked_mean(
      kl_lib.k3(rollout.logp, outputs.ref_logp), mask
    ),
    "kl_coef": kl_coef,
    "explained_variance": ppo.explained_variance(outputs.values, targets, mask),
    "response_length": mask.sum(axis=1).mean(),
    "ended": rollout.ended.mean(),
    "response_tokens": mask.sum(),
  }
  values = masked.zero_outside(outputs.values, mask)
  experience = Experience(
    rollout=rollout, advantages=advantages, returns=targets, values=values
  )
  return experience, next_kl_coef, metrics


class _NetworkOutputs(NamedTuple):
  """Outputs of reference, reward model and value network on a rollout."""

  ref_logp: Array  # [B, N] log-probabilities under the reference
  score: Array  # [B] score of the reward model or of the ensemble
  values: Array  # [B, N] value of the state before each response token
  last_value: Array  # [B] value after response token N


def _next_kl_coef(
  kl_coef: Array, episode_kl: Array, config: configs.Ppo
) -> Array:
  """Adapts β to the KL [B] of a rollout's episodes, if it has a target."""
  if not config.kl_target:
    return kl_coef
  return kl_lib.adaptive_kl(
    kl_coef,
    episode_kl.mean(),
    target=config.kl_target,
    horizon=config.kl_horizon,
    episodes=len(episode_kl),
  )


def _run_networks(
  rollout: Rollout,
  reference_params: PyTree,
  reward_params: tuple[PyTree, ...],
  value_params: PyTree,
  networks: Networks,
  config: configs.Ppo,
) -> _NetworkOutputs:
  """Runs reference, reward model and value network on a rollout."""
  mask = rollout.response_mask
  packing, episodes = pack_episodes(rollout, config.microbatch)

  def at_states(function: Callable[[PackedEpisodes], Array]) -> Array:
    """Computes a function of each microbatch, as [B, N + 1]."""
    return packing.unpack_states(
      packing_lib.map_microbatches(packing, function, episodes)
    )

  ref_logp = at_states(
    lambda microbatch: logp_at_states(
      networks.policy, reference_params, microbatch, config.temperature
    )
  )
  ref_logp = jnp.where(mask, ref_logp[:, :-1], 0)

  def scalars(model: ScalarModel, params: PyTree) -> Array:
    return at_states(
      lambda microbatch: scalars_at_states(model, params, microbatch)
    )

  # State i follows the first i response tokens, so the last state of a response
  # has the index of its length. The reward model reads the score there.
  last_state_index = mask.sum(axis=1, keepdims=True)
  scores = [
    jnp.take_along_axis(scalars(model, params), last_state_index, axis=1)[:, 0]
    for model, params in zip(networks.rewards, reward_params, strict=True)
  ]
  values = scalars(networks.value, value_params)
  return _NetworkOutputs(
    ref_logp=ref_logp,
    score=reward_ensemble.combine_scores(jnp.stack(scores), config),
    values=values[:, :-1],
    # State N exists for responses of N tokens only. Only truncated responses,
    # which have N tokens, use its value.
    last_value=values[:, -1],
  )


def _compute_advantages(
  rewards: Array,
  outputs: _NetworkOutputs,
  rollout: Rollout,
  config: configs.Ppo,
) -> tuple[Array, Array]:
  """Computes advantages and returns, [B, N] each; advantages are whitened."""
  mask = rollout.response_mask
  if config.whiten_rewards:
    rewards = masked.whiten(rewards, mask, shift_mean=False)
  # A truncated response may end in its last value, which then replaces the
  # rewards of the tokens that were not sampled.
  bootstrap = config.bootstrap_truncated * ~rollout.ended
  advantages, targets = returns.gae(
    rewards,
    outputs.values,
    mask,
    discount=config.discount,
    lam=config.gae_lambda,
    last_value=bootstrap * outputs.last_value,
  )
  if config.whiten_advantages:
    advantages = masked.whiten(advantages, mask, shift_mean=True)
  return advantages, targets
