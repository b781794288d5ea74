"""This project's steps on the timed work, as the training loops run them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import work
from instructgpt_jax.data import (
  batch_source,
  encoding,
  packing,
  ranking_packing,
)
from instructgpt_jax.distributed.compiler_options import (
  decode_compiler_options,
  init_compiler_options,
)
from instructgpt_jax.models import heads
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.steps import language, ppo, ppo_scoring, reward
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.ppo_networks import Networks
from instructgpt_jax.types import LanguageBatch, PromptBatch, RankingBatch

Step = Callable[[int], Any]  # the number of a step → arrays to wait for


def make(
  name: str, model: str, completions: int = 4, layout: str = "shared"
) -> Step:
  """Returns the step of a work.

  Completions and layout are settings of the reward model. Layout "shared" runs
  a prompt once, "rows" once per completion, and "pairs" runs both completions
  of each pair, as a trainer on pairs does.
  """
  if name == "reward":
    return _reward(model, completions, layout)
  steps = {"sft": _sft, "pretrain": _pretrain, "generate": _generate}
  return (steps | {"ppo": _ppo})[name](model)


def _optimizer():
  return optimizer_lib.make_optimizer(work.OPTIMIZER, 1000)


def _state(network: LanguageModel | ScalarModel, seed: int):
  init = jax.jit(
    lambda key: state_lib.new_state(
      heads.init_params(network, key), _optimizer()
    ),
    compiler_options=init_compiler_options(),
  )
  return init(jax.random.key(seed))


def language_batch(model: str, index: int) -> LanguageBatch:
  """Returns full rows with a loss on the tokens after each prompt."""
  tokens, prompts = work.sft_batch(model, index)
  columns = np.arange(tokens.shape[1], dtype=np.int32)
  return LanguageBatch(
    tokens=tokens,
    segments=np.ones_like(tokens),
    positions=np.broadcast_to(columns, tokens.shape),
    weights=(columns >= prompts[:, None]).astype(np.float32),
  )


def ranking_batch(rankings: work.Rankings, rows: int = 1) -> RankingBatch:
  """Lays out rankings as training does, with `rows` rows per prompt."""
  encoded = [
    encoding.EncodedRanking(prompt, tuple(completions), tuple(ranks))
    for prompt, completions, ranks in zip(*rankings, strict=True)
  ]
  count = len(encoded)
  layout = ranking_packing.Layout(rows_per_group=rows, num_groups=count)
  return next(
    ranking_packing.ranking_batches(
      encoded,
      batch_source.BatchSpec(batch_size=count, epochs=1, shuffle=False),
      layout=layout,
      pad_id=0,
    )
  )


def prompt_batch(model: str, index: int, name: str) -> PromptBatch:
  """Returns left-padded prompts of different lengths."""
  count = work.SHAPES[model].episodes
  tokens, mask = packing.left_pad(
    work.prompts(model, index, name),
    work.SHAPES[model].longest,
    work.pad_id(model),
  )
  ids = np.arange(count * index, count * (index + 1), dtype=np.int32)
  return PromptBatch(tokens=tokens, mask=mask, ids=ids)


def _supervised(
  network: LanguageModel | ScalarModel,
  train_step: Callable[..., Any],
  batch: Callable[[int], Any],
) -> Step:
  state = _state(network, 0)
  update = jax.jit(
    functools.partial(
      train_step, model=network, optimizer=_optimizer(), seed=0
    ),
    donate_argnums=0,
  )

  def step(index: int):
    nonlocal state
    state, metrics = update(state, batch(index))
    return metrics

  return step


def _language(model: str, batch: Callable[[int], LanguageBatch]) -> Step:
  network = LanguageModel(work.MODELS[model])
  return _supervised(network, language.train_step, batch)


def _sft(model: str) -> Step:
  return _language(model, functools.partial(language_batch, model))


def _pretrain(model: str) -> Step:
  """Returns the step with a loss on all tokens but the first of a row."""

  def batch(index: int) -> LanguageBatch:
    batch = language_batch(model, index)
    weights = np.ones_like(batch.weights)
    weights[:, 0] = 0
    return dataclasses.replace(batch, weights=weights)

  return _language(model, batch)


def _reward(model: str, completions: int, layout: str) -> Step:
  def batch(index: int) -> RankingBatch:
    rankings = work.rankings(model, index, completions)
    if layout == "pairs":
      return ranking_batch(work.pairs(rankings), rows=2)
    return ranking_batch(
      rankings, rows=1 if layout == "shared" else completions
    )

  network = ScalarModel(work.MODELS[model])
  return _supervised(network, reward.train_step, batch)


def _sampler(model: str, new_tokens: int = 0):
  network = LanguageModel(work.MODELS[model])
  # No token has this id, so every row is sampled to its full length.
  return jax.jit(
    functools.partial(
      generate,
      network,
      sampling=SamplingParams(
        max_new_tokens=new_tokens or work.SHAPES[model].new_tokens,
        eos_id=-1,
        pad_id=work.pad_id(model),
      ),
    ),
    compiler_options=decode_compiler_options(network.config.d_model),
  )


def _generate(model: str, new_tokens: int = 0) -> Step:
  network = LanguageModel(work.MODELS[model])
  run, weights = _sampler(model, new_tokens), _weights(network)
  key = jax.random.key(0)
  return lambda index: run(weights, prompt_batch(model, index, "generate"), key)


def _weights(network: LanguageModel):
  """Returns random weights in the layout of sampling, made one at a time."""
  shapes = jax.eval_shape(
    lambda key: heads.decoding_params(network, heads.init_params(network, key)),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)

  def draw(leaf: jax.ShapeDtypeStruct):
    if len(leaf.shape) == 1:  # scale of a norm, or bias
      return jnp.ones(leaf.shape, leaf.dtype)
    values = rng.standard_normal(leaf.shape, np.float32)
    values *= network.config.init_std
    return jnp.asarray(values, leaf.dtype)

  return jax.tree.map(draw, shapes)


def prefill(model: str) -> Step:
  """Returns the part of "generate" before its first decode step."""
  return _generate(model, new_tokens=1)


def _ppo(model: str) -> Step:
  network = LanguageModel(work.MODELS[model])
  scalar = ScalarModel(work.MODELS[model])
  section = work.ppo(model)
  policy, value = _state(network, 0), _state(scalar, 1)
  reference = jax.tree.map(jnp.copy, policy.params)
  reward_params = jax.tree.map(jnp.copy, value.params)
  state = state_lib.PpoState(
    policy=policy,
    value=value,
    ema=jax.tree.map(jnp.copy, policy.params),
    kl_coef=jnp.float32(section.kl_coef),
    ptx_coef=jnp.float32(section.ptx_coef),
    ema_decay=jnp.float32(section.ema_decay),
  )
  roll_out = _sampler(model)
  networks = Networks(
    policy=network,
    rewards=(scalar,),
    value=scalar,
    policy_optimizer=_optimizer(),
    value_optimizer=_optimizer(),
  )
  experience = jax.jit(
    functools.partial(
      ppo_scoring.score_rollout, networks=networks, config=section
    )
  )
  update = jax.jit(
    functools.partial(ppo.update, networks=networks, config=section),
    donate_argnums=0,
  )
  rows = np.arange(section.rollout_batch, dtype=np.int32)
  minibatches = np.split(rows, section.rollout_batch // section.minibatch)
  key = jax.random.key(0)

  def step(index: int):
    nonlocal state
    rollout = roll_out(
      state.policy.params, prompt_batch(model, index, "ppo"), key
    )
    scored, _, metrics = experience(
      rollout, reference, (reward_params,), state.value.params, state.kl_coef
    )
    for rows in minibatches:
      state, metrics = update(state, scored, rows, None)
    return metrics

  return step
