"""PPO and PPO-ptx: what a rollout is worth, and one update on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import configs
from instructgpt_jax.losses import chunked, language, masked, ppo, returns
from instructgpt_jax.losses import kl as kl_lib
from instructgpt_jax.models import layers, lora
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
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


@pytree
class _Rows:
  """Packed episodes: [C, M, …], or [M, …] of one microbatch."""

  tokens: Array  # [·, T] int32
  segments: Array  # [·, T] int32, episodes of the batch from 1; 0 is padding
  positions: Array  # [·, T] int32
  columns: Array  # [·, S] int32, where states stand
  actions: Array  # [·, S] int32, the token that follows each
  mask: Array  # [·, S] bool, True where that is a response token


def _shift_to_states(x: Array) -> Array:
  """[B, N] of response tokens → [B, S], where each was predicted from."""
  return jnp.pad(x, ((0, 0), (0, 1)))


def _packed(rollout: Rollout, microbatch: int) -> tuple[packing.Packing, _Rows]:
  real = rollout.segments > 0
  answer = rollout.response_mask.shape[1]
  found = packing.pack(real, answer + 1, microbatch)
  episodes = 1 + jnp.arange(len(real), dtype=jnp.int32)
  rows = _Rows(
    tokens=found.scatter_tokens(rollout.tokens),
    segments=found.scatter_tokens(
      jnp.broadcast_to(episodes[:, None], real.shape)
    ),
    positions=found.scatter_tokens(rollout.positions),
    columns=found.columns,
    actions=found.scatter_states(_shift_to_states(rollout.tokens[:, -answer:])),
    mask=found.scatter_states(_shift_to_states(rollout.response_mask)),
  )
  return found, rows


def _hidden(model: LanguageModel, params: PyTree, rows: _Rows) -> Array:
  """[M · S, D]."""
  hidden = model.apply(
    {"params": params},
    rows.tokens,
    rows.segments,
    rows.positions,
    wanted=rows.columns,
    method="hidden",
  )
  return hidden.reshape(-1, hidden.shape[-1])


def _logp(
  model: LanguageModel, params: PyTree, rows: _Rows, temperature: float
) -> Array:
  """[M, S] log-probabilities of the response tokens, 0 elsewhere."""
  logp = chunked.token_logp(
    _hidden(model, params, rows),
    language_step.unembedding_matrix(model, params),
    rows.actions.reshape(-1),
    rows.mask.reshape(-1),
    temperature=temperature,
    adjust=language_step.adjust(model),
  )
  return logp.reshape(rows.mask.shape)


def _scalars(model: ScalarModel, params: PyTree, rows: _Rows) -> Array:
  """[M, S], the scalar at every state."""
  return model.apply(
    {"params": params},
    rows.tokens,
    rows.segments,
    rows.positions,
    wanted=rows.columns,
  )


def response_logp(
  model: LanguageModel, params: PyTree, rollout: Rollout, temperature: float
) -> Array:
  """[B, N] log-probabilities of the sampled tokens by one full pass.

  At the sampling temperature; 0 after a response's end.
  """
  found, rows = _packed(rollout, 0)
  logp = found.gather_states(
    packing.each(
      found, lambda part: _logp(model, params, part, temperature), rows
    )
  )
  return jnp.where(rollout.response_mask, logp[:, :-1], 0)


def response_logp_and_spread(
  model: LanguageModel, params: PyTree, rollout: Rollout, temperature: float
) -> tuple[Array, Array]:
  """Computes `response_logp` and the spread of log-probabilities.

  The spread is the standard deviation of the log-probabilities of tokens drawn
  from the vocabulary at random. It is that of the logits, over temperature.

  Returns:
    [B, N], as `response_logp`; and [], in nats.
  """
  packed, rows = _packed(rollout, 0)
  words = model.config.vocab_size
  drawn = jax.random.randint(jax.random.key(0), rows.actions.shape, 0, words)

  def both(part: tuple[_Rows, Array]) -> tuple[Array, Array]:
    rows, drawn = part
    hidden = _hidden(model, params, rows)
    matrix = language_step.unembedding_matrix(model, params)

    def logp(tokens: Array) -> Array:
      return chunked.token_logp(
        hidden,
        matrix,
        tokens.reshape(-1),
        rows.mask.reshape(-1),
        temperature=temperature,
        adjust=language_step.adjust(model),
      ).reshape(rows.mask.shape)

    return logp(rows.actions), logp(drawn)

  logp, of_drawn = packing.each(packed, both, (rows, drawn), (0, 0))
  logp = packed.gather_states(logp)[:, :-1]
  variance = masked.masked_variance(of_drawn, rows.mask)
  return jnp.where(rollout.response_mask, logp, 0), jnp.sqrt(variance)


def score_rollout(
  rollout: Rollout,
  reference_params: PyTree,
  reward_params: PyTree,
  value_params: PyTree,
  kl_coef: Array,
  *,
  model: LanguageModel,
  scalar_model: ScalarModel,
  value_model: ScalarModel,
  config: configs.Ppo,
) -> tuple[Experience, Array, Metrics]:
  """Scores a rollout [B, P + N] and works out advantages (section 3.5, C.4).

  Args:
    rollout: the batch, sampled by the policy.
    reference_params: the policy before PPO; frozen.
    reward_params: the reward model; frozen.
    value_params: the value network now.
    kl_coef: β now.
    model: the policy's network.
    scalar_model: the reward model's network.
    value_model: the value function's network.
    config: the PPO settings.

  Returns:
    What the losses take as constants; the next β; and metrics of the rollout.
  """
  mask = rollout.response_mask
  found, rows = _packed(rollout, config.microbatch)

  def each(function: Callable[[_Rows], Array]) -> Array:
    return found.gather_states(packing.each(found, function, rows))

  ref_logp = each(
    lambda part: _logp(model, reference_params, part, config.temperature)
  )
  ref_logp = jnp.where(mask, ref_logp[:, :-1], 0)
  scores = each(lambda part: _scalars(scalar_model, reward_params, part))
  values = each(lambda part: _scalars(value_model, value_params, part))
  last = mask.sum(axis=1, keepdims=True)
  score = jnp.take_along_axis(scores, last, axis=1)[:, 0]
  # The value of a state is the scalar at its last token, so the value network
  # that starts as the reward model equals it at every token.
  values, after = values[:, :-1], values[:, -1]
  kept_score = score - config.eos_penalty * ~rollout.ended
  rewards = returns.token_rewards(
    kept_score, rollout.logp, ref_logp, mask, kl_coef
  )
  episode_return = masked.masked_sum(rewards, mask, axis=1)
  if config.whiten_rewards:
    rewards = masked.whiten(rewards, mask, shift_mean=False)
  bootstrap = config.bootstrap_truncated * ~rollout.ended
  raw_advantages, targets = returns.gae(
    rewards,
    values,
    mask,
    discount=config.discount,
    lam=config.gae_lambda,
    last_value=bootstrap * after,
  )
  advantages = raw_advantages
  if config.whiten_advantages:
    advantages = masked.whiten(raw_advantages, mask, shift_mean=True)
  kl = kl_lib.k1(rollout.logp, ref_logp)
  episode_kl = masked.masked_sum(kl, mask, axis=1)
  next_kl_coef = kl_coef
  if config.kl_target:
    next_kl_coef = kl_lib.adaptive_kl(
      kl_coef,
      episode_kl.mean(),
      target=config.kl_target,
      horizon=config.kl_horizon,
      episodes=mask.shape[0],
    )
  metrics = {
    "reward": score.mean(),
    "reward_std": score.std(),
    "return": episode_return.mean(),
    "kl": episode_kl.mean(),
    "kl_per_token": masked.masked_mean(kl, mask),
    "kl_k3_per_token": masked.masked_mean(
      kl_lib.k3(rollout.logp, ref_logp), mask
    ),
    "kl_coef": kl_coef,
    "explained_variance": ppo.explained_variance(values, targets, mask),
    "response_length": mask.sum(axis=1).mean(),
    "ended": rollout.ended.mean(),
    "response_tokens": mask.sum(),
  }
  result = Experience(
    rollout=rollout,
    advantages=advantages,
    returns=targets,
    values=masked.zero_outside(values, mask),
  )
  return result, next_kl_coef, metrics


def _token_loss(
  logits: Array,
  rows: dict[str, Array],
  used: Array,
  *,
  temperature: float,
  clip_ratio: float,
) -> tuple[Array, Metrics]:
  """Sums over [C] response tokens of the clipped objective and its metrics."""
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


def update(
  state: PpoState,
  batch: Experience,
  rows: Array,
  ptx: LanguageBatch | None,
  frozen: PyTree = None,
  value_frozen: PyTree = None,
  *,
  model: LanguageModel,
  value_model: ScalarModel,
  optimizer: optax.GradientTransformation,
  value_optimizer: optax.GradientTransformation,
  config: configs.Ppo,
) -> tuple[PpoState, Metrics]:
  """Updates policy and value network on a minibatch.

  The pretraining gradient, scaled by γ, is added to the PPO gradient before
  the one optimiser step (Eq. 2, C.4); the average of the weights moves once.

  Args:
    state: what is trained.
    batch: the iteration's experience, B episodes.
    rows: [minibatch] int32, which episodes.
    ptx: `ptx_ratio` · minibatch pretraining rows; None when γ is 0.
    frozen: parameters that the policy has beside those that are trained.
    value_frozen: those of the value network.
    model: the policy's network.
    value_model: the value function's network.
    optimizer: the policy's.
    value_optimizer: the value network's.
    config: the PPO settings.

  Returns:
    The next state, and the update's metrics.
  """
  chosen = jax.tree.map(lambda x: x[rows], batch)
  normalizer = chosen.rollout.response_mask.sum()
  found, packed = _packed(chosen.rollout, config.microbatch)
  old_logp, advantages, values, targets = (
    found.scatter_states(_shift_to_states(x))
    for x in (
      chosen.rollout.logp,
      chosen.advantages,
      chosen.values,
      chosen.returns,
    )
  )
  token_loss = functools.partial(
    _token_loss, temperature=config.temperature, clip_ratio=config.clip_ratio
  )

  def policy_loss(params, part, index):
    del index
    params = lora.merge_trees(frozen, params)
    rows, old_logp, advantages = part
    loss, sums = chunked.chunked_logits_loss(
      token_loss,
      _hidden(model, params, rows),
      language_step.unembedding_matrix(model, params),
      {
        "tokens": rows.actions.reshape(-1),
        "old_logp": old_logp.reshape(-1),
        "advantages": advantages.reshape(-1),
      },
      rows.mask.reshape(-1),
      language_step.adjust(model),
    )
    return jax.tree.map(
      lambda x: masked.safe_divide(x, normalizer), (loss, sums)
    )

  def value_loss(params, part, index):
    del index
    params = lora.merge_trees(value_frozen, params)
    rows, values, targets = part
    return ppo.value_loss(
      _scalars(value_model, params, rows),
      values,
      targets,
      rows.mask,
      clip_value=config.clip_value,
      normalizer=normalizer,
    )

  loss, grads, metrics = accumulation.accumulate_microbatches(
    policy_loss,
    state.policy.params,
    (packed, old_logp, advantages),
    found.used,
  )
  metrics = {
    "policy_loss": loss,
    **metrics,
    "grad_norm_ppo": optax.tree.norm(grads),
  }
  if ptx is not None:
    ptx_loss, ptx_grads, ptx_metrics = language_step.gradients(
      model,
      state.policy.params,
      ptx,
      frozen,
      microbatch=config.ptx_microbatch,
    )
    ptx_grads = jax.tree.map(lambda g: state.ptx_coef * g, ptx_grads)
    metrics |= {
      "ptx_loss": ptx_loss,
      "ptx_accuracy": ptx_metrics["accuracy"],
      "grad_norm_ptx": optax.tree.norm(ptx_grads),
      "grad_angle": diagnostics.angle(grads, ptx_grads),
    }
    grads = jax.tree.map(jnp.add, grads, ptx_grads)
  metrics["grad_norm"] = optax.tree.norm(grads)
  policy = state_lib.apply_gradients(state.policy, grads, optimizer)

  # Else the compiler interleaves both passes, and holds both's activations.
  tokens = layers.optimization_barrier(
    packed.tokens, (metrics["grad_norm"], policy.params)
  )
  loss, grads, value_metrics = accumulation.accumulate_microbatches(
    value_loss,
    state.value.params,
    (dataclasses.replace(packed, tokens=tokens), values, targets),
    found.used,
  )
  metrics |= {
    "value_loss": loss,
    **value_metrics,
    "grad_norm_value": optax.tree.norm(grads),
  }
  value = state_lib.apply_gradients(state.value, grads, value_optimizer)
  ema = state.ema
  if ema:
    ema = state_lib.update_ema(ema, policy.params, state.ema_decay, policy.step)
  state = dataclasses.replace(state, policy=policy, value=value, ema=ema)
  return state, metrics
