"""One update of PPO or PPO-ptx: (state, minibatch) → (state, metrics).

`update` computes, for a minibatch of episodes that `ppo_scoring` has scored:

  policy gradient      of `losses.ppo.policy_loss`
  + γ_ptx · gradient   of `losses.language.weighted_cross_entropy`
  value gradient       of `losses.ppo.value_loss`
  Adam, average        `steps.state`

The losses see arrays. `ppo_networks` computes them from the networks, and
defines the shape letters.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import configs
from instructgpt_jax.losses import chunked, language, masked, ppo
from instructgpt_jax.models import lora
from instructgpt_jax.models.kernels.dense import optimization_barrier
from instructgpt_jax.steps import accumulation, diagnostics
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.ppo_networks import (
  BaseParams,
  Networks,
  PackedEpisodes,
  hidden_at_states,
  pack_episodes,
  pad_to_states,
  scalars_at_states,
)
from instructgpt_jax.steps.state import Metrics, PpoState
from instructgpt_jax.types import (
  Array,
  Experience,
  LanguageBatch,
  PyTree,
  pytree,
)


def update(
  state: PpoState,
  experience: Experience,
  episode_indices: Array,
  ptx: LanguageBatch | None,
  base: BaseParams = BaseParams(),
  *,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[PpoState, Metrics]:
  """Updates policy and value network on a minibatch.

  Adds γ_ptx times the pretraining gradient to the PPO gradient, and takes one
  optimizer step of the policy (paper, Eq. 2 and C.4). Then updates the value
  network, and the policy's exponential moving average if there is one.

  Args:
    state: the state before.
    experience: all episodes of the iteration.
    episode_indices: [B] int32, the B episodes of this minibatch, as indices
      into the experience.
    ptx: pretraining rows, `ptx_ratio` for each episode; None when γ_ptx is 0.
    base: frozen base parameters under LoRA adapters.
    networks: the networks and their optimizers.
    config: the PPO settings.

  Returns:
    The next state, and the update's metrics.
  """
  minibatch = _select_minibatch(experience, episode_indices, config)
  grads, metrics = _policy_gradient(
    state, minibatch, base.policy, networks, config
  )
  if ptx is not None:
    grads, ptx_metrics = _add_ptx_gradient(
      grads, state, ptx, base.policy, networks, config
    )
    metrics |= ptx_metrics
  metrics["grad_norm"] = optax.tree.norm(grads)
  policy = state_lib.apply_gradients(
    state.policy, grads, networks.policy_optimizer
  )

  # The barrier makes the value pass depend on the finished policy update.
  # Otherwise XLA interleaves both passes and keeps both passes' activations in
  # memory.
  tokens = optimization_barrier(
    minibatch.episodes.tokens, (metrics["grad_norm"], policy.params)
  )
  episodes = dataclasses.replace(minibatch.episodes, tokens=tokens)
  minibatch = dataclasses.replace(minibatch, episodes=episodes)
  grads, value_metrics = _value_gradient(
    state, minibatch, base.value, networks, config
  )
  metrics |= value_metrics
  value = state_lib.apply_gradients(
    state.value, grads, networks.value_optimizer
  )
  ema = state.ema  # {} without averaging
  if ema:
    ema = state_lib.update_ema(ema, policy.params, state.ema_decay, policy.step)
  state = dataclasses.replace(state, policy=policy, value=value, ema=ema)
  return state, metrics


@pytree
class _Minibatch:
  """Packed episodes with the constants of both losses, [C, M, …]."""

  episodes: PackedEpisodes
  old_logp: Array  # [C, M, S] log-probabilities under the rollout's policy
  advantages: Array  # [C, M, S]
  old_values: Array  # [C, M, S] of the value network at rollout time
  returns: Array  # [C, M, S]
  response_tokens: Array  # [] int32, in the whole minibatch
  num_microbatches: Array  # [] int32, microbatches with any token


def _select_minibatch(
  experience: Experience, episode_indices: Array, config: configs.Ppo
) -> _Minibatch:
  """Selects a minibatch's episodes from the experience and packs them."""
  chosen = jax.tree.map(lambda x: x[episode_indices], experience)
  response_tokens = chosen.rollout.response_mask.sum()
  packing, episodes = pack_episodes(chosen.rollout, config.microbatch)
  old_logp, advantages, old_values, returns = (
    packing.pack_states(pad_to_states(x))
    for x in (
      chosen.rollout.logp,
      chosen.advantages,
      chosen.values,
      chosen.returns,
    )
  )
  return _Minibatch(
    episodes=episodes,
    old_logp=old_logp,
    advantages=advantages,
    old_values=old_values,
    returns=returns,
    response_tokens=response_tokens,
    num_microbatches=packing.num_microbatches,
  )


def _policy_gradient(
  state: PpoState,
  minibatch: _Minibatch,
  base: PyTree,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[PyTree, Metrics]:
  """Computes the gradient of the clipped surrogate loss, by microbatches."""
  model = networks.policy
  token_loss = functools.partial(
    _token_loss, temperature=config.temperature, clip_ratio=config.clip_ratio
  )

  def loss_fn(params, microbatch, index):
    del index  # only dropout would need it
    params = lora.merge_trees(base, params)
    episodes, old_logp, advantages = microbatch
    loss, sums = chunked.chunked_logits_loss(
      token_loss,
      hidden_at_states(model, params, episodes),
      language_step.unembedding_matrix(model, params),
      {
        "tokens": episodes.actions.reshape(-1),
        "old_logp": old_logp.reshape(-1),
        "advantages": advantages.reshape(-1),
      },
      episodes.mask.reshape(-1),
      language_step.adjust(model),
    )
    # Divided by the whole minibatch's tokens, so that microbatches add up.
    return jax.tree.map(
      lambda x: masked.safe_divide(x, minibatch.response_tokens), (loss, sums)
    )

  loss, grads, metrics = accumulation.accumulate_microbatches(
    loss_fn,
    state.policy.params,
    (minibatch.episodes, minibatch.old_logp, minibatch.advantages),
    minibatch.num_microbatches,
  )
  norm = optax.tree.norm(grads)
  return grads, {"policy_loss": loss, **metrics, "grad_norm_ppo": norm}


def _token_loss(
  logits: Array,
  token_inputs: dict[str, Array],
  mask: Array,
  *,
  temperature: float,
  clip_ratio: float,
) -> tuple[Array, Metrics]:
  """Sums the clipped surrogate loss and its metrics over a chunk of tokens.

  Args:
    logits: [n, V] float32.
    token_inputs: tokens, old_logp and advantages, [n] each.
    mask: [n] bool, True on response tokens.
    temperature: temperature of sampling.
    clip_ratio: ε.
  """
  loss, sums = ppo.policy_loss(
    language.token_logp(
      logits, token_inputs["tokens"], temperature=temperature
    ),
    token_inputs["old_logp"],
    token_inputs["advantages"],
    mask,
    clip_ratio=clip_ratio,
    normalizer=1.0,
  )
  entropy = language.entropy(
    jax.lax.stop_gradient(logits), temperature=temperature
  )
  return loss, sums | {"entropy": masked.masked_sum(entropy, mask)}


def _add_ptx_gradient(
  grads: PyTree,
  state: PpoState,
  ptx: LanguageBatch,
  base: PyTree,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[PyTree, Metrics]:
  """Adds γ_ptx times the gradient of the language-model loss."""
  loss, ptx_grads, metrics = language_step.gradients(
    networks.policy,
    state.policy.params,
    ptx,
    base,
    microbatch=config.ptx_microbatch,
  )
  ptx_grads = jax.tree.map(lambda g: state.ptx_coef * g, ptx_grads)
  return jax.tree.map(jnp.add, grads, ptx_grads), {
    "ptx_loss": loss,
    "ptx_accuracy": metrics["accuracy"],
    "grad_norm_ptx": optax.tree.norm(ptx_grads),  # with γ_ptx
    "grad_angle": diagnostics.angle(grads, ptx_grads),
  }


def _value_gradient(
  state: PpoState,
  minibatch: _Minibatch,
  base: PyTree,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[PyTree, Metrics]:
  """Computes the gradient of the clipped value loss."""

  def loss_fn(params, microbatch, index):
    del index  # only dropout would need it
    params = lora.merge_trees(base, params)
    episodes, old_values, returns = microbatch
    return ppo.value_loss(
      scalars_at_states(networks.value, params, episodes),
      old_values,
      returns,
      episodes.mask,
      clip_value=config.clip_value,
      normalizer=minibatch.response_tokens,
    )

  loss, grads, metrics = accumulation.accumulate_microbatches(
    loss_fn,
    state.value.params,
    (minibatch.episodes, minibatch.old_values, minibatch.returns),
    minibatch.num_microbatches,
  )
  norm = optax.tree.norm(grads)
  return grads, {"value_loss": loss, **metrics, "grad_norm_value": norm}
