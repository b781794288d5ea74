"""PPO and PPO-ptx on arrays: scoring a rollout, and one update.

`score_rollout` computes, for a batch of episodes:

  log π_ref      one pass of the reference
  score, V       one pass each of the reward model and the value network
  rewards        `losses.returns.token_rewards`
  advantages     `losses.returns.gae`, `losses.masked.whiten`
  next β         `losses.kl.adaptive_kl`

`update` computes, for a minibatch of these episodes:

  policy gradient      of `losses.ppo.policy_loss`
  + γ_ptx · gradient   of `losses.language.weighted_cross_entropy`
  value gradient       of `losses.ppo.value_loss`
  Adam, average        `steps.state`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import configs
from instructgpt_jax.losses import chunked, language, masked, ppo, returns
from instructgpt_jax.losses import kl as kl_lib
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.models.kernels.dense import optimization_barrier
from instructgpt_jax.steps import accumulation, diagnostics, packing
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.state import Metrics, PpoState
from instructgpt_jax.types import (
  Array,
  Experience,
  LanguageBatch,
  PyTree,
  Rollout,
  pytree,
)


class Networks(NamedTuple):
  """The networks of PPO, and the optimizers of those that are trained."""

  policy: LanguageModel  # also the reference's
  reward: ScalarModel
  value: ScalarModel
  policy_optimizer: optax.GradientTransformation
  value_optimizer: optax.GradientTransformation


class BaseParams(NamedTuple):
  """Frozen base parameters under LoRA adapters."""

  policy: PyTree = None  # None or {} where all parameters are trained
  value: PyTree = None


@pytree
class _PackedEpisodes:
  """Episodes packed into rows: [C, M, …] for all microbatches, [M, …] for one.

  B episodes have P prompt and N response positions, T = P + N. They are packed
  into C microbatches of M rows of T tokens, several to a row. A state is a
  position whose output is read: each that predicts a response token, and the
  last token's; at most N + 1 of an episode, and S = N + 1 of a whole row.
  """

  tokens: Array  # [·, T] int32
  segments: Array  # [·, T] int32, number of the episode from 1; 0 is padding
  positions: Array  # [·, T] int32
  states: Array  # [·, S] int32, position in the row of each state
  actions: Array  # [·, S] int32, the token that follows each state
  mask: Array  # [·, S] bool, True where a response token follows


def _pad_to_states(x: Array) -> Array:
  """Appends a zero for the last state: [B, N] → [B, S].

  State i precedes response token i, so the other indices agree.
  """
  return jnp.pad(x, ((0, 0), (0, 1)))


def _pack_episodes(
  rollout: Rollout, microbatch: int
) -> tuple[packing.Packing, _PackedEpisodes]:
  real = rollout.segments > 0
  length = rollout.response_mask.shape[1]
  packed = packing.pack(real, length + 1, microbatch)
  segment_ids = 1 + jnp.arange(len(real), dtype=jnp.int32)
  episodes = _PackedEpisodes(
    tokens=packed.scatter_tokens(rollout.tokens),
    segments=packed.scatter_tokens(
      jnp.broadcast_to(segment_ids[:, None], real.shape)
    ),
    positions=packed.scatter_tokens(rollout.positions),
    states=packed.state_positions,
    actions=packed.scatter_states(_pad_to_states(rollout.tokens[:, -length:])),
    mask=packed.scatter_states(_pad_to_states(rollout.response_mask)),
  )
  return packed, episodes


def _hidden_at_states(
  model: LanguageModel, params: PyTree, episodes: _PackedEpisodes
) -> Array:
  """Computes hidden states [M · S, D] at the states of a microbatch."""
  hidden = model.apply(
    {"params": params},
    episodes.tokens,
    episodes.segments,
    episodes.positions,
    query_positions=episodes.states,
    method="hidden",
  )
  return hidden.reshape(-1, hidden.shape[-1])


def _logp_at_states(
  model: LanguageModel,
  params: PyTree,
  episodes: _PackedEpisodes,
  temperature: float,
) -> Array:
  """Computes log-probabilities [M, S] of response tokens, 0 elsewhere."""
  logp = chunked.token_logp(
    _hidden_at_states(model, params, episodes),
    language_step.unembedding_matrix(model, params),
    episodes.actions.reshape(-1),
    episodes.mask.reshape(-1),
    temperature=temperature,
    adjust=language_step.adjust(model),
  )
  return logp.reshape(episodes.mask.shape)


def _scalars_at_states(
  model: ScalarModel, params: PyTree, episodes: _PackedEpisodes
) -> Array:
  """Computes the scalar [M, S] of every state."""
  return model.apply(
    {"params": params},
    episodes.tokens,
    episodes.segments,
    episodes.positions,
    query_positions=episodes.states,
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
  packed, episodes = _pack_episodes(rollout, 0)
  logp = packed.gather_states(
    packing.map_microbatches(
      packed,
      lambda microbatch: _logp_at_states(
        model, params, microbatch, temperature
      ),
      episodes,
    )
  )
  return jnp.where(rollout.response_mask, logp[:, :-1], 0)


def response_logp_and_spread(
  model: LanguageModel, params: PyTree, rollout: Rollout, temperature: float
) -> tuple[Array, Array]:
  """Computes `response_logp` and the spread of log-probabilities.

  The spread is the standard deviation of logits / temperature over the
  vocabulary, estimated from one uniformly random token for each state. The
  limits of `training.ppo_checks` scale with it.

  Returns:
    [B, N], as `response_logp`; and [], in nats.
  """
  packed, episodes = _pack_episodes(rollout, 0)
  random_tokens = jax.random.randint(
    jax.random.key(0), episodes.actions.shape, 0, model.config.vocab_size
  )

  def sampled_and_random_logp(
    microbatch: tuple[_PackedEpisodes, Array],
  ) -> tuple[Array, Array]:
    episodes, random_tokens = microbatch
    hidden = _hidden_at_states(model, params, episodes)
    matrix = language_step.unembedding_matrix(model, params)

    def logp_of(tokens: Array) -> Array:
      return chunked.token_logp(
        hidden,
        matrix,
        tokens.reshape(-1),
        episodes.mask.reshape(-1),
        temperature=temperature,
        adjust=language_step.adjust(model),
      ).reshape(episodes.mask.shape)

    return logp_of(episodes.actions), logp_of(random_tokens)

  logp, random_logp = packing.map_microbatches(
    packed, sampled_and_random_logp, (episodes, random_tokens), (0, 0)
  )
  logp = packed.gather_states(logp)[:, :-1]
  variance = masked.masked_variance(random_logp, episodes.mask)
  return jnp.where(rollout.response_mask, logp, 0), jnp.sqrt(variance)


class _Scores(NamedTuple):
  """Outputs of reference, reward model and value network on a rollout."""

  ref_logp: Array  # [B, N] log-probabilities under the reference
  score: Array  # [B] reward-model score
  values: Array  # [B, N] value of the state before each token
  last_value: Array  # [B] value after token N, for truncated responses


def score_rollout(
  rollout: Rollout,
  reference_params: PyTree,
  reward_params: PyTree,
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
    reward_params: parameters of the reward model.
    value_params: current parameters of the value network.
    kl_coef: β of this rollout.
    networks: the networks.
    config: the PPO settings.

  Returns:
    Experience for the updates, with the fixed targets of the losses; β of the
    next iteration; and the rollout's metrics.
  """
  mask = rollout.response_mask
  scores = _run_networks(
    rollout, reference_params, reward_params, value_params, networks, config
  )
  penalized = scores.score - config.eos_penalty * ~rollout.ended
  rewards = returns.token_rewards(
    penalized, rollout.logp, scores.ref_logp, mask, kl_coef
  )
  episode_return = masked.masked_sum(rewards, mask, axis=1)
  advantages, targets = _advantages(rewards, scores, rollout, config)
  kl = kl_lib.k1(rollout.logp, scores.ref_logp)
  episode_kl = masked.masked_sum(kl, mask, axis=1)
  next_kl_coef = _next_kl_coef(kl_coef, episode_kl, config)
  metrics = {
    "reward": scores.score.mean(),  # without the KL penalty
    "reward_std": scores.score.std(),
    "return": episode_return.mean(),  # with penalties
    "kl": episode_kl.mean(),
    "kl_per_token": masked.masked_mean(kl, mask),
    "kl_k3_per_token": masked.masked_mean(
      kl_lib.k3(rollout.logp, scores.ref_logp), mask
    ),
    "kl_coef": kl_coef,
    "explained_variance": ppo.explained_variance(scores.values, targets, mask),
    "response_length": mask.sum(axis=1).mean(),
    "ended": rollout.ended.mean(),
    "response_tokens": mask.sum(),
  }
  values = masked.zero_outside(scores.values, mask)
  experience = Experience(
    rollout=rollout, advantages=advantages, returns=targets, values=values
  )
  return experience, next_kl_coef, metrics


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
  reward_params: PyTree,
  value_params: PyTree,
  networks: Networks,
  config: configs.Ppo,
) -> _Scores:
  """Runs reference, reward model and value network on a rollout."""
  mask = rollout.response_mask
  packed, episodes = _pack_episodes(rollout, config.microbatch or 0)

  def at_states(function: Callable[[_PackedEpisodes], Array]) -> Array:
    """Computes a function of each microbatch, as [B, S]."""
    return packed.gather_states(
      packing.map_microbatches(packed, function, episodes)
    )

  ref_logp = at_states(
    lambda microbatch: _logp_at_states(
      networks.policy, reference_params, microbatch, config.temperature
    )
  )
  ref_logp = jnp.where(mask, ref_logp[:, :-1], 0)
  scores = at_states(
    lambda microbatch: _scalars_at_states(
      networks.reward, reward_params, microbatch
    )
  )
  values = at_states(
    lambda microbatch: _scalars_at_states(
      networks.value, value_params, microbatch
    )
  )
  last_state_index = mask.sum(axis=1, keepdims=True)
  return _Scores(
    ref_logp=ref_logp,
    score=jnp.take_along_axis(scores, last_state_index, axis=1)[:, 0],
    # values[:, i] is the value before response token i, read at the token that
    # precedes it, as the reward model reads a response's score at its last one.
    values=values[:, :-1],
    # Used for truncated responses alone, whose last state is column N.
    last_value=values[:, -1],
  )


def _advantages(
  rewards: Array, scores: _Scores, rollout: Rollout, config: configs.Ppo
) -> tuple[Array, Array]:
  """Computes advantages and returns, [B, N] each; advantages are whitened."""
  mask = rollout.response_mask
  if config.whiten_rewards:
    rewards = masked.whiten(rewards, mask, shift_mean=False)
  bootstrap = config.bootstrap_truncated * ~rollout.ended
  advantages, targets = returns.gae(
    rewards,
    scores.values,
    mask,
    discount=config.discount,
    lam=config.gae_lambda,
    last_value=bootstrap * scores.last_value,
  )
  if config.whiten_advantages:
    advantages = masked.whiten(advantages, mask, shift_mean=True)
  return advantages, targets


@pytree
class _Minibatch:
  """Packed episodes with the constants of both losses, [C, M, …]."""

  episodes: _PackedEpisodes
  old_logp: Array  # [C, M, S]
  advantages: Array  # [C, M, S]
  old_values: Array  # [C, M, S]
  returns: Array  # [C, M, S]
  response_tokens: Array  # [] int32, in the whole minibatch
  num_microbatches: Array  # [] int32, microbatches with any token


def update(
  state: PpoState,
  experience: Experience,
  rows: Array,
  ptx: LanguageBatch | None,
  base: BaseParams = BaseParams(),
  *,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[PpoState, Metrics]:
  """Updates policy and value network on a minibatch.

  Adds γ_ptx times the pretraining gradient to the PPO gradient, and takes one
  optimizer step of the policy (paper, Eq. 2 and C.4). Then updates the value
  network, and the policy's moving average if there is one.

  Args:
    state: the state before.
    experience: B episodes of the iteration.
    rows: [minibatch] int32, indices of this update's episodes.
    ptx: `ptx_ratio` · minibatch pretraining rows; None when γ_ptx is 0.
    base: frozen base parameters under LoRA adapters.
    networks: the networks and their optimizers.
    config: the PPO settings.

  Returns:
    The next state, and the update's metrics.
  """
  minibatch = _minibatch(experience, rows, config)
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

  # The value pass is made to depend on the finished policy update. Otherwise
  # XLA interleaves both passes and keeps the activations of both in memory.
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
  ema = state.ema
  if ema:
    ema = state_lib.update_ema(ema, policy.params, state.ema_decay, policy.step)
  state = dataclasses.replace(state, policy=policy, value=value, ema=ema)
  return state, metrics


def _minibatch(
  experience: Experience, rows: Array, config: configs.Ppo
) -> _Minibatch:
  """Selects a minibatch's episodes from the experience and packs them."""
  chosen = jax.tree.map(lambda x: x[rows], experience)
  response_tokens = chosen.rollout.response_mask.sum()
  packed, episodes = _pack_episodes(chosen.rollout, config.microbatch or 0)
  old_logp, advantages, old_values, targets = (
    packed.scatter_states(_pad_to_states(x))
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
    returns=targets,
    response_tokens=response_tokens,
    num_microbatches=packed.num_microbatches,
  )


def _policy_gradient(
  state: PpoState,
  minibatch: _Minibatch,
  base: PyTree,
  networks: Networks,
  config: configs.Ppo,
) -> tuple[PyTree, Metrics]:
  """Computes the gradient of the clipped surrogate loss."""
  model = networks.policy
  token_loss = functools.partial(
    _token_loss, temperature=config.temperature, clip_ratio=config.clip_ratio
  )

  def loss_fn(params, microbatch, index):
    del index
    params = lora.merge_trees(base, params)
    episodes, old_logp, advantages = microbatch
    loss, sums = chunked.chunked_logits_loss(
      token_loss,
      _hidden_at_states(model, params, episodes),
      language_step.unembedding_matrix(model, params),
      {
        "tokens": episodes.actions.reshape(-1),
        "old_logp": old_logp.reshape(-1),
        "advantages": advantages.reshape(-1),
      },
      episodes.mask.reshape(-1),
      language_step.adjust(model),
    )
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
  rows: dict[str, Array],
  used: Array,
  *,
  temperature: float,
  clip_ratio: float,
) -> tuple[Array, Metrics]:
  """Sums the clipped surrogate loss and its metrics over [C] tokens."""
  loss, sums = ppo.policy_loss(
    language.token_logp(logits, rows["tokens"], temperature=temperature),
    rows["old_logp"],
    rows["advantages"],
    used,
    clip_ratio=clip_ratio,
    normalizer=1.0,
  )
  entropy = language.entropy(
    jax.lax.stop_gradient(logits), temperature=temperature
  )
  return loss, sums | {"entropy": masked.masked_sum(entropy, used)}


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
    "grad_norm_ptx": optax.tree.norm(ptx_grads),
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
    del index
    params = lora.merge_trees(base, params)
    episodes, old_values, targets = microbatch
    return ppo.value_loss(
      _scalars_at_states(networks.value, params, episodes),
      old_values,
      targets,
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
