"""Workload of PPO and PPO-ptx, with prompts and responses of full length."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import checks
from instructgpt_jax.data import packing as packing_lib
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed.mesh import AnyMesh
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.planner import shapes
from instructgpt_jax.planner.workload import Pass, Program, Workload
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import packing
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.ppo_networks import BaseParams, Networks
from instructgpt_jax.training import networks, ppo_programs
from instructgpt_jax.types import LanguageBatch, PromptBatch, PyTree


def ppo_workload(
  config: configs.PpoExperiment,
  mesh: AnyMesh,
  reward_models: Sequence[configs.Model],
) -> Workload:
  """Returns the workload of an iteration.

  Args:
    config: the experiment.
    mesh: mesh of the devices.
    reward_models: the reward models' networks; the policy's if empty.

  Raises:
    UserError: lengths or batch sizes do not fit each other or the mesh.
  """
  section = config.ppo
  checks.check_ppo(section, config.data, config.model.max_seq_len)
  mesh_lib.check_divisible(section.rollout_batch, mesh)
  iteration = _Iteration(config, mesh, reward_models or [config.model])
  updates = section.updates_per_iteration
  tokens = section.inner_epochs * section.rollout_batch * iteration.length
  if iteration.ptx_batch is not None:
    tokens += updates * iteration.ptx_batch.tokens.size
  return Workload(
    unit="iteration",
    examples=section.rollout_batch,
    example_name="episodes",
    episodes=section.episodes,
    tokens=tokens,
    parameters=shapes.num_params(iteration.policy.all_params),
    resident=iteration.resident(),
    state=iteration.state,
    programs=(
      iteration.sample_program(),
      iteration.score_program(),
      iteration.update_program(updates),
    ),
    model=iteration.policy_model.config,
  )


class _Iteration:
  """Shapes and programs of one iteration.

  Attributes:
    policy: the policy in training.
    value: the value network in training.
    state: what a checkpoint holds.
    prompt_length: tokens of a prompt, padding included.
    response_length: tokens of a response.
    length: tokens of an episode.
    num_states: states of a response, its end included.
    ptx_batch: pretraining batch of an update; None without PPO-ptx.
  """

  def __init__(
    self,
    config: configs.PpoExperiment,
    mesh: AnyMesh,
    reward_models: Sequence[configs.Model],
  ):
    self._config, self._mesh, self._section = config, mesh, config.ppo
    self._make_networks(reward_models)
    data = config.data
    width = max(packing_lib.bucket_lengths(data.max_prompt_tokens))
    self.response_length = data.max_response_tokens
    self.prompt_length = min(
      width, config.model.max_seq_len - self.response_length
    )
    self.length = self.prompt_length + self.response_length
    self.num_states = self.response_length + 1
    self.ptx_batch = self._make_ptx_batch()

  def _make_networks(self, reward_models: Sequence[configs.Model]) -> None:
    config, mesh, section = self._config, self._mesh, self._section
    policy = shapes.with_vocabulary(config.model, config, mesh)
    rewards = [
      shapes.with_vocabulary(model, config, mesh) for model in reward_models
    ]
    adapters = {
      n: getattr(policy, n) for n in ("lora_rank", "lora_alpha", "lora_layers")
    }
    value = rewards[0] if section.value_from_reward else policy
    self.policy_model = LanguageModel(policy)
    self.reward_models = tuple(map(ScalarModel, rewards))
    self.value_model = ScalarModel(dataclasses.replace(value, **adapters))
    policy_optimizer, value_optimizer = (
      optimizer_lib.make_optimizer(optimizer, shapes.UPDATES)
      for optimizer in config.resolved_optimizers
    )
    self.policy = shapes.abstract_network(
      self.policy_model, policy_optimizer, mesh
    )
    self.value = shapes.abstract_network(
      self.value_model, value_optimizer, mesh
    )
    self.reward_params = tuple(
      networks.abstract_params(model, mesh) for model in self.reward_models
    )
    self._scalar = jax.ShapeDtypeStruct(
      (), jnp.float32, sharding=sharding.replicated(mesh)
    )
    self.state = state_lib.PpoState(
      policy=self.policy.state,
      value=self.value.state,
      ema=self.policy.state.params if section.ema_decay else {},
      kl_coef=self._scalar,
      ptx_coef=self._scalar,
      ema_decay=self._scalar,
    )
    self._programs = ppo_programs.jit_programs(
      config,
      Networks(
        self.policy_model,
        self.reward_models,
        self.value_model,
        policy_optimizer,
        value_optimizer,
      ),
      self.state,
      mesh,
      eos_id=0,
      pad_id=1,
    )

  def _make_ptx_batch(self) -> LanguageBatch | None:
    section = self._section
    if not section.ptx_coef:
      return None
    rows = section.minibatch * section.ptx_ratio
    mesh_lib.check_divisible(rows, self._mesh)
    return shapes.language_batch(self._mesh, rows, self._config.ptx_length)

  def resident(self) -> dict[str, PyTree]:
    """Returns the arrays that stay on the chips, by name."""
    trees = shapes.resident_trees(self.policy, "policy")
    if self._section.ema_decay:
      trees["policy average"] = self.state.ema
    trees |= shapes.resident_trees(self.value, "value")
    # Policy and reference share frozen parameters.
    trees["reference"] = self.policy.state.params
    for number, params in enumerate(self.reward_params, 1):
      suffix = f" {number}" if len(self.reward_params) > 1 else ""
      trees["reward model" + suffix] = params
    return trees

  def _microbatch(self, rows: int) -> int:
    """Returns the microbatch size of a pass over episodes."""
    shards = sharding.batch_shards(self._mesh)
    return self._section.microbatch or packing.microbatch_size(
      rows, self.length, shards
    )

  def _loss_chunks(self, rows: int) -> int:
    """Returns the chunks of the policy's log-probabilities."""
    return shapes.loss_chunks(
      self.policy_model.config,
      self._mesh,
      rows * self.num_states,
      rows * self.response_length,
    )

  @functools.cached_property
  def _sample_arguments(self) -> tuple[Any, ...]:
    count = self._section.rollout_batch
    ids = shapes.int32_shape(count, self.prompt_length)
    prompts = shapes.shard_batch(
      self._mesh,
      PromptBatch(
        tokens=ids,
        mask=jax.ShapeDtypeStruct(ids.shape, jnp.bool_),
        ids=shapes.int32_shape(count),
      ),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return self.policy.all_params, prompts, key

  @functools.cached_property
  def _score_arguments(self) -> tuple[Any, ...]:
    rollout = shapes.shard_batch(
      self._mesh,
      jax.eval_shape(self._programs.generate, *self._sample_arguments),
    )
    return (
      rollout,
      self.policy.all_params,
      self.reward_params,
      self.value.all_params,
      self._scalar,
    )

  @functools.cached_property
  def _update_arguments(self) -> tuple[Any, ...]:
    experience, *_ = jax.eval_shape(
      self._programs.score_rollout, *self._score_arguments
    )
    return (
      self.state,
      shapes.shard_batch(self._mesh, experience),
      jax.ShapeDtypeStruct((self._section.minibatch,), jnp.int32),
      self.ptx_batch,
      BaseParams(self.policy.frozen, self.value.frozen),
    )

  def sample_program(self) -> Program:
    """Returns the program that samples responses."""
    model, rows = self.policy_model.config, self._section.rollout_batch
    steps = self.response_length - 1
    return Program(
      name="sample",
      build=lambda: (self._programs.generate, self._sample_arguments),
      runs=1,
      loop_trips=steps,
      passes=(
        Pass(
          kind="forward",
          model=model,
          rows=rows,
          length=self.prompt_length,
          logits=1,
        ),
        Pass(
          kind="decode",
          model=model,
          rows=rows,
          length=self.length,
          count=steps,
          logits=1,
        ),
      ),
    )

  def score_program(self) -> Program:
    """Returns the program that scores a rollout."""
    count = self._section.rollout_batch
    microbatch = self._microbatch(count)
    return Program(
      name="score",
      build=lambda: (self._programs.score_rollout, self._score_arguments),
      runs=1,
      loop_trips=self._loss_chunks(microbatch),
      passes=tuple(
        Pass(
          kind="forward",
          model=model.config,
          rows=microbatch,
          length=self.length,
          count=count // microbatch,
          logits=logits,
        )
        for model, logits in (
          (self.policy_model, self.num_states),
          *((model, 0) for model in self.reward_models),
          (self.value_model, 0),
        )
      ),
    )

  def update_program(self, updates: int) -> Program:
    """Returns the program of one update."""
    section, model = self._section, self.policy_model.config
    microbatch = self._microbatch(section.minibatch)
    trips = self._loss_chunks(microbatch)
    passes = [
      shapes.training_pass(
        network,
        config,
        section.minibatch,
        microbatch,
        length=self.length,
        logits=logits,
      )
      for network, config, logits in (
        (self.policy, model, self.num_states),
        (self.value, self.value_model.config, 0),
      )
    ]
    if self.ptx_batch is not None:
      rows, length = self.ptx_batch.tokens.shape
      trips = shapes.loss_chunks(
        model, self._mesh, section.ptx_microbatch * length
      )
      passes.append(
        shapes.training_pass(
          self.policy,
          model,
          rows,
          section.ptx_microbatch,
          length=length,
          logits=length,
        )
      )
    return Program(
      name="update",
      build=lambda: (self._programs.update, self._update_arguments),
      runs=updates,
      loop_trips=trips,
      passes=tuple(passes),
    )
