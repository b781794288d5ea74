"""Ranks mesh layouts of an experiment, and suggests flags that fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import undivided
from instructgpt_jax.planner.hardware import Topology
from instructgpt_jax.planner.plan import Plan, make_plan

# Experiment → its fields of microbatch sizes.
MICROBATCH_FIELDS = {
  "pretrain": ("pretrain.microbatch",),
  "sft": ("sft.microbatch",),
  "policy_init": ("sft.microbatch",),
  "reward": ("reward.microbatch",),
  "ppo": ("ppo.microbatch",),
  "ppo_ptx": ("ppo.microbatch", "ppo.ptx_microbatch"),
}


def layouts(
  models: Sequence[configs.Model], chips: int
) -> Iterator[configs.Mesh]:
  """Yields meshes whose tensor axis divides all networks' heads and MLPs."""
  for tensor in _divisors(undivided.largest_tensor_axis(models, chips)):
    for fsdp in _divisors(chips // tensor):
      data = chips // tensor // fsdp
      yield configs.Mesh(data=data, fsdp=fsdp, tensor=tensor)


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def rank_layouts(
  config: Any, topology: Topology, reward_models: Sequence[configs.Model]
) -> list[tuple[configs.Mesh, Plan]]:
  """Ranks layouts by estimates: first those that fit, then the faster ones.

  Raises:
    UserError: the experiment has no plan on any layout.
  """
  counted: dict[str, float] = {}
  plans = []
  errors = []
  models = [config.model, *reward_models]
  for mesh in layouts(models, topology.num_chips):
    candidate = dataclasses.replace(config, mesh=mesh)
    try:
      plan = make_plan(
        candidate,
        topology,
        reward_models=reward_models,
        compiling=False,
        counted=counted,
      )
    except UserError as error:
      errors.append((mesh, error))
      continue
    plans.append((mesh, plan))
  if not plans:
    raise _no_layout(errors, topology)
  return sorted(plans, key=lambda pair: (not pair[1].fits, pair[1].seconds()))


def _no_layout(
  errors: Sequence[tuple[configs.Mesh, UserError]], topology: Topology
) -> UserError:
  """Returns the error of all layouts, or that of the last if they differ.

  The last layout has the largest tensor axis, and so the fewest shards.
  """
  mesh, last = errors[-1]
  if len({str(error) for _, error in errors}) == 1:
    return last
  axes = ", ".join(f"{axis} {getattr(mesh, axis)}" for axis in mesh_lib.AXES)
  return UserError(
    f"no layout of {topology} whose tensor axis divides heads and MLPs can be"
    f" planned; on {axes}: {last.problem}",
    field=last.field,
    fix=last.fix,
    code="no_layout",
  )


def suggest_flags(
  config: Any,
  name: str,
  topology: Topology,
  reward_models: Sequence[configs.Model],
) -> str:
  """Returns flags with which the experiment fits, by estimates.

  Args:
    config: the experiment.
    name: name of the experiment.
    topology: chips to plan for.
    reward_models: reward models of PPO.

  Raises:
    UserError: no layout has a plan, whatever the microbatches.
  """
  fields = MICROBATCH_FIELDS[name]
  rows = [_update_rows(config, field) for field in fields]
  first_error, has_plan = None, False
  for halvings in itertools.count():
    sizes = [max(1, count >> halvings) for count in rows]
    microbatches = dict(zip(fields, sizes, strict=True))
    try:
      best = rank_layouts(
        flags.replace(config, microbatches), topology, reward_models
      )
    except UserError as error:  # such as a microbatch that does not divide
      best, first_error = [], first_error or error
    has_plan = has_plan or bool(best)
    if best and best[0][1].fits:
      mesh = best[0][0]
      return " ".join(
        [f"--mesh.{a}={getattr(mesh, a)}" for a in mesh_lib.AXES]
        + [f"--{field}={size}" for field, size in microbatches.items()]
      )
    if all(size == 1 for size in sizes):
      if first_error and not has_plan:
        raise first_error
      return "more chips, or chips with more memory"
  raise AssertionError


def _update_rows(config: Any, field: str) -> int:
  """Returns the rows of an update, which microbatches split."""
  section, _, leaf = field.partition(".")
  values = getattr(config, section)
  if section == "ppo":
    rows = values.minibatch
    return rows * values.ptx_ratio if leaf == "ptx_microbatch" else rows
  return values.batch_size
