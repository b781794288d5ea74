"""What PPO and PPO-ptx compile."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import checks
from instructgpt_jax.data import packing as packing_lib
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed.mesh import AnyMesh
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
from instructgpt_jax.planner import shapes
from instructgpt_jax.planner.work import Pass, Program, Work
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import packing
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training import networks, ppo_programs
from instructgpt_jax.types import PromptBatch


def ppo(
  config: configs.PpoExperiment,
  mesh: AnyMesh,
  reward_model: configs.Model | None,
) -> Work:
  """Prompts and responses of full length."""
  section, data = config.ppo, config.data
  checks.check_lengths(data, config.model.max_seq_len)
  checks.check_ppo_batches(section)
  mesh_lib.check_divisible(section.rollout_batch, mesh)
  shape = shapes.shaped(config.model, config, mesh)
  scores = shapes.shaped(reward_model or config.model, config, mesh)
  adapters = {
    n: getattr(shape, n) for n in ("lora_rank", "lora_alpha", "lora_layers")
  }
  first = scores if section.value_from_reward else shape
  models = (
    LanguageModel(shape),
    ScalarModel(scores),
    ScalarModel(dataclasses.replace(first, **adapters)),
  )
  optimizers = [
    optimizer_lib.make_optimizer(o, shapes.UPDATES)
    for o in ppo_programs.optimizer_configs(config)
  ]
  policy = shapes.in_training(models[0], optimizers[0], mesh)
  value = shapes.in_training(models[2], optimizers[1], mesh)
  scalar = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=sharding.replicated(mesh)
  )
  state = state_lib.PpoState(
    policy=policy.state,
    value=value.state,
    ema=policy.state.params if section.ema_decay else {},
    kl_coef=scalar,
    ptx_coef=scalar,
    ema_decay=scalar,
  )
  programs = ppo_programs.jitted(
    config, models, optimizers, state, mesh, eos_id=0, pad_id=1
  )
  start = policy.whole
  reward_params = networks.abstract_params(models[1], mesh)
  width = max(packing_lib.bucket_lengths(data.max_prompt_tokens))
  width = min(width, config.model.max_seq_len - data.max_response_tokens)
  answer = data.max_response_tokens
  count, length = section.rollout_batch, width + answer
  states = answer + 1
  ids = shapes.ints(count, width)
  prompts = shapes.split_rows(
    mesh,
    PromptBatch(
      tokens=ids,
      mask=jax.ShapeDtypeStruct(ids.shape, jnp.bool_),
      ids=shapes.ints(count),
    ),
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  sampling = (policy.whole, prompts, key)

  @functools.cache
  def scoring() -> Any:
    rollout = shapes.split_rows(
      mesh, jax.eval_shape(programs.generate, *sampling)
    )
    return rollout, start, reward_params, value.whole, scalar

  def updating() -> Any:
    held = jax.eval_shape(programs.experience, *scoring())[0]
    rows = jax.ShapeDtypeStruct((section.minibatch,), jnp.int32)
    below = policy.frozen, value.frozen
    return programs.update, (
      state,
      shapes.split_rows(mesh, held),
      rows,
      ptx,
      *below,
    )

  ptx = None
  scored, updated = (
    section.microbatch
    or packing.microbatch_size(rows, length, sharding.batch_shards(mesh))
    for rows in (count, section.minibatch)
  )
  passes = [
    shapes.training(
      network,
      own,
      section.minibatch,
      updated,
      length=length,
      logits=logits,
    )
    for network, own, logits in (
      (policy, shape, states),
      (value, models[2].config, 0),
    )
  ]
  trips = shapes.chunks(shape, mesh, updated * states, updated * answer)
  if section.ptx_coef:
    ptx_length = checks.row_length(
      section.ptx_sequence, config.model.max_seq_len, "ppo.ptx_sequence"
    )
    ptx_rows = section.minibatch * section.ptx_ratio
    mesh_lib.check_divisible(ptx_rows, mesh)
    ptx = shapes.language_batch(mesh, ptx_rows, ptx_length)
    trips = shapes.chunks(shape, mesh, section.ptx_microbatch * ptx_length)
    passes.append(
      shapes.training(
        policy,
        shape,
        ptx_rows,
        section.ptx_microbatch,
        length=ptx_length,
        logits=ptx_length,
      )
    )
  held = shapes.held(policy, "policy")
  if section.ema_decay:
    held["policy average"] = state.ema
  held |= shapes.held(value, "value")
  # What is frozen serves both; the start of what is trained is a copy.
  held["reference"] = policy.state.params
  held["reward model"] = reward_params
  updates = ppo_programs.updates_per_iteration(section)
  trained = section.inner_epochs * count * length
  if ptx is not None:
    trained += updates * ptx.tokens.size
  return Work(
    unit="iteration",
    examples=count,
    what="episodes",
    episodes=section.episodes,
    tokens=trained,
    parameters=shapes.parameters(policy.whole),
    held=held,
    state=state,
    programs=(
      Program(
        name="sample",
        make=lambda: (programs.generate, sampling),
        times=1,
        trips=answer - 1,
        passes=_sampling(shape, count, width, answer),
      ),
      Program(
        name="score",
        make=lambda: (programs.experience, scoring()),
        times=1,
        trips=shapes.chunks(shape, mesh, scored * states, scored * answer),
        passes=tuple(
          Pass(
            kind="forward",
            model=network.config,
            rows=scored,
            length=length,
            times=count // scored,
            logits=logits,
          )
          for network, logits in zip(models, (states, 0, 0), strict=True)
        ),
      ),
      Program(
        name="update",
        make=updating,
        times=updates,
        trips=trips,
        passes=tuple(passes),
      ),
    ),
    model=shape,
  )


def _sampling(
  model: configs.Model, rows: int, width: int, answer: int
) -> tuple[Pass, ...]:
  """Prompts in one pass, then token after token."""
  return (
    Pass(kind="forward", model=model, rows=rows, length=width, logits=1),
    Pass(
      kind="decode",
      model=model,
      rows=rows,
      length=width + answer,
      times=answer - 1,
      logits=1,
    ),
  )
