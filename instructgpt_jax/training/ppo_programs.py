"""The jitted programs of a PPO iteration."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax

from instructgpt_jax import configs, sharding
from instructgpt_jax.distributed import compiler_options
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.steps import ppo as ppo_step
from instructgpt_jax.steps import ppo_gaps, ppo_scoring
from instructgpt_jax.steps.ppo_networks import Networks
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import networks as networks_lib
from instructgpt_jax.types import PyTree


class Programs(NamedTuple):
  """The jitted programs of an iteration.

  A model among their arguments is a tree of its parameters.
  """

  # (policy, prompts, key) → rollout
  generate: Any
  # (rollout, reference, reward models, value network, β)
  #   → (experience, next β, metrics)
  score_rollout: Any
  # (state, experience, episodes of the minibatch, ptx batch, base parameters)
  #   → (state, metrics); donates the state
  update: Any
  # (policy, reference, rollout) → gaps, for `ppo_checks`
  measure_gaps: Any


def jit_programs(
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
    mesh: mesh that the programs run on.
    eos_id: token that ends a response, or several.
    pad_id: token after a response's end.
  """
  section = config.ppo
  # The shardings are explicit, because a run that resumes within an iteration
  # restores an experience before it has computed one.
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
        sampling=SamplingParams(
          max_new_tokens=config.data.max_response_tokens,
          temperature=section.temperature,
          eos_id=eos_id,
          pad_id=pad_id,
        ),
      ),
      compiler_options=compiler_options.decode_compiler_options(
        networks.policy.config.d_model, mesh
      ),
    ),
    score_rollout=jax.jit(
      _on_mesh(
        mesh, ppo_scoring.score_rollout, networks=networks, config=section
      ),
      out_shardings=experience_shardings,
    ),
    update=jax.jit(
      _on_mesh(mesh, ppo_step.update, networks=networks, config=section),
      donate_argnums=0,
      out_shardings=(_state_shardings(networks, state, mesh), None),
    ),
    measure_gaps=jax.jit(
      _on_mesh(
        mesh,
        ppo_gaps.measure_gaps,
        model=networks.policy,
        temperature=section.temperature,
        clip_ratio=section.clip_ratio,
      )
    ),
  )


def _on_mesh(mesh: mesh_lib.AnyMesh, function: Any, **settings: Any) -> Any:
  """Binds keyword arguments of a function that is traced for the mesh."""
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
