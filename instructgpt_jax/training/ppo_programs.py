"""What is compiled for an iteration of PPO."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from instructgpt_jax import configs, sharding
from instructgpt_jax.distributed import compiler_options
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.sampling import generate
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
from instructgpt_jax.steps import ppo as ppo_step
from instructgpt_jax.steps import ppo_gaps
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import networks


class Programs(NamedTuple):
  """The jitted programs of an iteration."""

  generate: Any  # (policy, prompts, key) → rollout
  experience: Any  # (rollout, frozen and value parameters, β) → experience
  update: Any  # (state, experience, rows, ptx) → (state, metrics)
  compare: Any  # (policy, reference, rollout) → gaps, for the start-up checks


def updates_per_iteration(section: configs.Ppo) -> int:
  """Counts the optimiser updates on one rollout batch."""
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
  models: tuple[LanguageModel, ScalarModel, ScalarModel],
  optimizers: Sequence[optax.GradientTransformation],
  state: PpoState,
  mesh: mesh_lib.AnyMesh,
  *,
  eos_id: int | tuple[int, ...],
  pad_id: int,
) -> Programs:
  """The programs of an iteration.

  Args:
    config: the experiment.
    models: policy, reward model and value network.
    optimizers: of policy and value network.
    state: what is trained, or its shapes.
    mesh: where it lies.
    eos_id: ends a response; of several ids, each does.
    pad_id: fills up ended rows.
  """
  section = config.ppo
  model, reward_model, value_model = models
  places = PpoState(
    policy=networks.shardings(model, state.policy, mesh),
    value=networks.shardings(value_model, state.value, mesh),
    ema=networks.shardings(model, state.ema, mesh),
    kl_coef=sharding.replicated(mesh),
    ptx_coef=sharding.replicated(mesh),
    ema_decay=sharding.replicated(mesh),
  )

  def on_mesh(function: Any, **settings: Any) -> Any:
    return mesh_lib.with_mesh(mesh, functools.partial(function, **settings))

  return Programs(
    generate=jax.jit(
      on_mesh(
        functools.partial(generate, model),
        max_new_tokens=config.data.max_response_tokens,
        temperature=section.temperature,
        eos_id=eos_id,
        pad_id=pad_id,
      ),
      compiler_options=compiler_options.decode_compiler_options(
        model.config.d_model, mesh
      ),
    ),
    experience=jax.jit(
      on_mesh(
        ppo_step.score_rollout,
        model=model,
        scalar_model=reward_model,
        value_model=value_model,
        config=section,
      ),
      # Named, since a run that goes on in mid-iteration puts them back so.
      out_shardings=(
        sharding.batch_sharding(mesh),
        sharding.replicated(mesh),
        None,
      ),
    ),
    update=jax.jit(
      on_mesh(
        ppo_step.update,
        model=model,
        value_model=value_model,
        optimizer=optimizers[0],
        value_optimizer=optimizers[1],
        config=section,
      ),
      donate_argnums=0,
      out_shardings=(places, None),
    ),
    compare=jax.jit(
      on_mesh(
        ppo_gaps.compare,
        model=model,
        temperature=section.temperature,
        clip_ratio=section.clip_ratio,
      )
    ),
  )
