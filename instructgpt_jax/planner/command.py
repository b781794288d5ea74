"""Command of the planner: prints a plan, or a ranking of layouts."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import compiled, hardware, layouts, text
from instructgpt_jax.planner.plan import make_plan
from instructgpt_jax.training import inheritance, stage_model


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> bool:
  """Prints a plan or a ranking of layouts; returns whether it fits.

  Args:
    arguments: parsed flags of the command.
    rest: flags of the experiment.

  Raises:
    UserError: a flag is wrong, or the experiment cannot be planned.
  """
  name = arguments.experiment
  if name not in layouts.MICROBATCH_FIELDS:
    raise UserError(
      f"{name!r} has no plan",
      field="--experiment",
      fix=configs.nearest(name, layouts.MICROBATCH_FIELDS)
      or f"give one of {', '.join(layouts.MICROBATCH_FIELDS)}",
      code="no_plan",
    )
  topology = hardware.parse_topology(arguments.topology)
  config, _ = flags.parse(
    rest,
    presets.EXPERIMENTS[name],
    experiment=name,
    default_preset=arguments.preset,
    presets=presets.NAMES,
    runs=False,
  )
  ranked = arguments.sweep_mesh
  config, reward_models = _resolve_networks(config, arguments, pad=not ranked)
  title = f"{name} {arguments.preset}"
  if ranked:
    plans = layouts.rank_layouts(config, topology, reward_models)
    unit = "iteration" if name.startswith("ppo") else "step"
    print(f"{title} on {topology}, estimated")
    print(text.format_layouts(plans, unit))
    return plans[0][1].fits
  has_compiler = compiled.can_compile(topology)
  if arguments.compile == "true" and not has_compiler:
    raise UserError(
      f"there is no compiler for {topology} here",
      field="--compile",
      fix="install the extra tpu for TPUs; costs of other chips are estimates",
      code="no_compiler",
    )
  compiling = has_compiler and arguments.compile != "false"
  plan = make_plan(
    config, topology, reward_models=reward_models, compiling=compiling
  )
  print(text.format_plan(plan, title, arguments.price))
  how = compiled.compiler_version() if compiling else "estimated, not compiled"
  print(f"costs: {how}")
  if not plan.fits:
    config, reward_models = _resolve_networks(config, arguments, pad=False)
    try:
      print(
        "try " + layouts.suggest_flags(config, name, topology, reward_models)
      )
    except UserError as error:
      print(f"no layout to try: {error}")
  return plan.fits


def _resolve_networks(
  config: Any, arguments: argparse.Namespace, *, pad: bool
) -> tuple[Any, Sequence[configs.Model]]:
  """Returns the config with the network of `init_from`, and the reward models.

  Only PPO has a reward model.

  Args:
    config: the experiment.
    arguments: parsed flags of the command.
    pad: whether heads and vocabulary are padded for the config's mesh, as
      a run pads an imported model.
  """
  if config.init_from and not hasattr(config, "reward"):
    stage_model.open_stage(
      config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
    )
  mesh = config.mesh if pad else configs.Mesh()
  inherited = inheritance.inherit_architecture(
    dataclasses.replace(config, mesh=mesh)
  )
  config = dataclasses.replace(inherited, mesh=config.mesh)
  if not hasattr(config, "ppo"):
    if arguments.reward_preset:
      raise UserError(
        f"{arguments.experiment} has no reward model",
        field="--reward_preset",
        fix="leave it out",
        code="no_reward_model",
      )
    return config, ()
  directories = config.ppo.reward_models
  if not directories:
    return config, [_reward_model(arguments.reward_preset, arguments.preset)]
  if arguments.reward_preset:
    raise UserError(
      "is set together with --ppo.reward_model",
      field="--reward_preset",
      fix="leave one of them out",
      code="two_reward_models",
    )
  stages = stage_model.open_reward_models(inherited)
  return config, [stage.model_config for stage in stages]


def _reward_model(name: str, preset: str) -> configs.Model:
  """Returns the reward model's network: by name, else 6B as in the paper.

  A preset below 125M parameters scores with its own network.
  """
  if name:
    return presets.model(name, "--reward_preset")
  preset_model, paper = presets.model(preset), presets.model("6b")
  return (
    preset_model
    if preset_model.d_model < presets.model("125m").d_model
    else paper
  )
