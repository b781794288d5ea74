"""The compiled programs of a PPO iteration."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from instructgpt_jax import configs, sharding
from instructgpt_jax.distributed import compiler_options
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.sampling import generate
from instructgpt_jax.steps import ppo as ppo_step
from instructgpt_jax.steps import ppo_gaps
from instructgpt_jax.steps.ppo import Networks
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import networks as networks_lib
from instructgpt_jax.types import PyTree


class Programs(NamedTuple):
  """The jitted programs of an iteration."""

  generate: Any  # (policy, prompts, key) → rollout
  # (rollout, reference, reward model, value network, β) → experience
  experience: Any
  # (state, experience, rows, ptx batch, base parameters) → (state, metrics)
  update: Any
  compare: Any  # (policy, reference, rollout) → gaps, for the start-up checks


def updates_per_iteration(section: configs.Ppo) -> int:
  """Counts the optimizer updates on one rollout batch."""
  return section.inner_epochs * (section.rollout_batch // section.minibatch)


def optimizer_configs(
  config: configs.PpoExperiment,
) -> tuple[configs.Optimizer, configs.Optimizer]:
  """Returns the settings of policy and value optimizer, in updates.

  A warmup_steps of -1 becomes ppo.warmup_iterations, counted in updates of the
  rollout batch, minibatch and inner epochs of this run.
  """
  updates = updates_per_iteration(config.ppo)
  steps = config.ppo.warmup_iterations * updates

  def resolved(optimizer: configs.Optimizer) -> configs.Optimizer:
    if optimizer.warmup_steps >= 0:
      return optimizer
    return dataclasses.replace(optimizer, warmup_steps=steps)

  return resolved(config.optimizer), resolved(config.value_optimizer)


def jitted(
  config: configs.PpoExperiment,
  networks: Networks,
  state: PpoState,
  mesh: mesh_lib.AnyMesh,
  *,
  eos_id: int | tuple[int, ...],
  pad_id: int,
) -> Programs:
  """Jits the programs of an iteration; each compiles on its first call.

  Args:
    config: the experiment.
    networks: the networks and their optimizers.
    state: the trained state, or its shapes.
    mesh: where it lies.
    eos_id: token that ends a response, or several.
    pad_id: token after a response's end.
  """
  section = config.ppo
  # The experience's shardings are named, since a run that resumes in the middle
  # of an iteration restores them.
  experience_shardings = (
    sharding.batch_sharding(mesh),
    sharding.replicated(mesh),
    None,
  )
  return Programs(
    generate=jax.jit(
      _on_mesh(
        mesh,
        functools.partial(generate, networks.policy),
        max_new_tokens=config.data.max_response_tokens,
        temperature=section.temperature,
        eos_id=eos_id,
        pad_id=pad_id,
      ),
      compiler_options=compiler_options.decode_compiler_options(
        networks.policy.config.d_model, mesh
      ),
    ),
    experience=jax.jit(
      _on_mesh(mesh, ppo_step.score_rollout, networks=networks, config=section),
      out_shardings=experience_shardings,
    ),
    update=jax.jit(
      _on_mesh(mesh, ppo_step.update, networks=networks, config=section),
      donate_argnums=0,
      out_shardings=(_state_shardings(networks, state, mesh), None),
    ),
    compare=jax.jit(
      _on_mesh(
        mesh,
        ppo_gaps.compare,
        model=networks.policy,
        temperature=section.temperature,
        clip_ratio=section.clip_ratio,
      )
    ),
  )


def _on_mesh(mesh: mesh_lib.AnyMesh, function: Any, **settings: Any) -> Any:
  return mesh_lib.with_mesh(mesh, functools.partial(function, **settings))


def _state_shardings(
  networks: Networks, state: PpoState, mesh: mesh_lib.AnyMesh
) -> PyTree:
  """Returns the sharding of each array of the state."""
  replicated = sharding.replicated(mesh)
  return PpoState(
    policy=networks_lib.shardings(networks.policy, state.policy, mesh),
    value=networks_lib.shardings(networks.value, state.value, mesh),
    ema=networks_lib.shardings(networks.policy, state.ema, mesh),
    kl_coef=replicated,
    ptx_coef=replicated,
    ema_decay=replicated,
  )
