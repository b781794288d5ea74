"""An experiment's plan: what it holds, what it does, whether it fits."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import (
  compiled,
  count,
  estimate,
  hardware,
  memory,
  table,
  undivided,
)
from instructgpt_jax.planner.cost import Cost, Times, times
from instructgpt_jax.planner.hardware import Topology
from instructgpt_jax.planner.programs import work
from instructgpt_jax.planner.work import Program, Work, bytes_here
from instructgpt_jax.training import inheritance, stage_model

_HOUR = 3600.0
_SHOWN = 12  # layouts of a sweep
_PART = {
  "pretrain": ("pretrain.microbatch",),
  "sft": ("sft.microbatch",),
  "policy_init": ("sft.microbatch",),
  "reward": ("reward.microbatch",),
  "ppo": ("ppo.microbatch",),
  "ppo_ptx": ("ppo.microbatch", "ppo.ptx_microbatch"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What an experiment costs on a mesh."""

  topology: Topology
  sizes: tuple[int, ...]  # of the mesh
  work: Work
  held: dict[str, float]  # bytes on a chip
  kept_within: dict[str, float]  # worked out, of what is temporary
  costs: dict[str, tuple[int, Cost, Times]]  # of each program
  compiled: bool  # else worked out

  @property
  def kept(self) -> float:
    """Bytes that a chip holds all the time."""
    return sum(self.held.values())

  @property
  def peak(self) -> float:
    """Returns the most bytes that a chip holds."""
    return self.kept + max(c.temporary for _, c, _ in self.costs.values())

  @property
  def usable(self) -> float:
    """Returns the bytes of a chip that JAX reserves."""
    chip = self.topology.chip
    return chip.memory * memory.fraction(chip)

  @property
  def fits(self) -> bool:
    """Whether `usable` holds the peak, with a margin if it is estimated."""
    margin = 0.0 if self.compiled else memory.MARGIN
    return self.peak <= self.usable * (1 - margin)

  def seconds(self, most: bool = False) -> float:
    """Of a step or iteration."""
    return sum(
      n * (t.most if most else t.least) for n, _, t in self.costs.values()
    )

  def utilisation(self, most: bool = False) -> float:
    """Share of the chips' peak that 6 operations a parameter and token are."""
    wanted = 6.0 * self.work.parameters * self.work.tokens
    peak = self.topology.count * self.topology.chip.flops
    return wanted / (self.seconds(most) * peak)


def make(
  config: configs.Experiment,
  topology: Topology,
  *,
  reward_model: configs.Model | None = None,
  compiling: bool,
  counted: dict[str, float] | None = None,
) -> Plan:
  """Plans an experiment.

  Args:
    config: the experiment; its mesh is taken.
    topology: where it would run.
    reward_model: of PPO.
    compiling: whether costs are the compiler's, or estimated.
    counted: name of a program → FLOPs on all chips where the mesh divides all
      parts; programs that are missing are counted and added.
  """
  sizes = mesh_lib.mesh_sizes(config.mesh, topology.count)
  axes = dict(zip(mesh_lib.AXES, sizes, strict=True))
  mesh: Any = mesh_lib.abstract_mesh(
    config.mesh, topology.count, topology.chip.platform
  )
  if compiling:
    mesh = compiled.mesh(topology, config.mesh)
  platform = topology.chip.platform
  planned = work(config, mesh, platform, reward_model)
  counted = {} if counted is None else counted
  whole = {}
  if not compiling:
    for program in planned.programs:
      if program.name not in counted:
        counted[program.name] = _count(program, platform).total
    whole = _whole(config, mesh, platform, reward_model, planned)
  costs = {}
  for program in planned.programs:
    if compiling:
      say(f"compiling {program.name} for {topology}")
      cost = compiled.compile_program(program, mesh, topology.chip)
    else:
      flops = counted[program.name] + whole.get(program.name, 0.0)
      cost = estimate.estimate(program, topology.chip, axes, flops)
    took = times(cost, topology, mesh_lib.AXES, sizes)
    costs[program.name] = (program.times, cost, took)
  return Plan(
    topology=topology,
    sizes=sizes,
    work=planned,
    held={name: bytes_here(tree) for name, tree in planned.held.items()},
    kept_within=estimate.kept(planned.programs, axes, platform),
    costs=costs,
    compiled=compiling,
  )


def _count(program: Program, platform: str) -> count.Flops:
  return count.flops(
    program.function, program.arguments, platform, program.trips
  )


def _whole(
  config: configs.Experiment,
  mesh: mesh_lib.AnyMesh,
  platform: str,
  reward_model: configs.Model | None,
  planned: Work,
) -> dict[str, float]:
  """Counts the further FLOPs of parts that are whole on each chip.

  Returns:
    Name of a program → FLOPs of all chips together.
  """
  tensor = mesh.shape["tensor"]
  others = [
    (dataclasses.replace(config, model=model), reward_model, share)
    for model, share in undivided.larger(config.model, tensor)
  ]
  if reward_model is not None and isinstance(config, configs.PpoExperiment):
    others += [
      (config, model, share)
      for model, share in undivided.larger(reward_model, tensor)
    ]
  extra: dict[str, float] = {}
  if not others:
    return extra
  counts = {p.name: _count(p, platform).split for p in planned.programs}
  for other, scores, share in others:
    for program in work(other, mesh, platform, scores).programs:
      added = _count(program, platform).split - counts[program.name]
      extra[program.name] = (
        extra.get(program.name, 0.0) + (tensor - 1) * share * added
      )
  return extra


def say(text: str) -> None:
  """Tells what goes on."""
  print(text, file=sys.stderr, flush=True)


def text(plan: Plan, name: str, price: float) -> str:
  """The plan for people."""
  topology, found = plan.topology, plan.work
  layout = ", ".join(
    f"{a} {n}" for a, n in zip(mesh_lib.AXES, plan.sizes, strict=True)
  )
  model = found.model
  lines = [
    f"{name} on {topology}: {topology.count:,} chips as {layout}",
    f"{table.number(found.parameters)} parameters,"
    f" vocabulary {model.padded_vocab_size:,};"
    f" each {found.unit}: {found.examples:,} {found.what},"
    f" {found.tokens:,} tokens trained on",
    "",
    "GB on each chip",
    *table.held(plan.held),
    *(
      f"  and in the course of it {name}: {table.gigabytes(size)}"
      for name, size in plan.kept_within.items()
    ),
    f"  restored from a checkpoint of {table.gigabytes(found.saved)} in all:"
    f" {table.gigabytes(bytes_here(found.state))}",
    "",
    "each run of a program on each chip, GB",
    *table.programs(plan.costs, plan.kept, mesh_lib.AXES),
    "",
  ]
  least, most = plan.seconds(), plan.seconds(most=True)
  lines.append(
    f"each {found.unit}: {least:.3g} s if weights and gradients travel beside"
    f" the products, {most:.3g} s if nothing overlaps; model FLOP utilisation"
    f" {plan.utilisation():.0%} or {plan.utilisation(most=True):.0%}"
  )
  if found.episodes:
    units = math.ceil(found.episodes / found.examples)
    hours = [units * seconds / _HOUR for seconds in (least, most)]
    lines.append(
      f"{found.episodes:,} episodes: {hours[0]:.3g} to {hours[1]:.3g} hours"
      + _cost([h * topology.count for h in hours], price)
    )
  elif price:
    hours = [topology.count * s / _HOUR for s in (least, most)]
    lines.append(f"1,000 steps{_cost([1000 * h for h in hours], price)}")
  lines.append(_verdict(plan))
  return "\n".join(lines)


def _verdict(plan: Plan) -> str:
  """Says whether the plan fits into which memory, and the margin."""
  chip = plan.topology.chip
  parts = [
    f"{'fits' if plan.fits else 'does not fit'}: at most"
    f" {table.gigabytes(plan.peak)} of {table.gigabytes(plan.usable)} GB"
  ]
  share = memory.fraction(chip)
  if chip.platform == "cuda":
    parts.append(
      f"JAX reserves {share:.0%} of a GPU's {table.gigabytes(chip.memory)} GB"
      f" ({memory.FRACTION})"
    )
  if not plan.compiled:
    parts.append(f"{memory.MARGIN:.0%} are left for what arithmetic misses")
  return "; ".join(parts)


def _cost(hours: Sequence[float], price: float) -> str:
  found = f", {hours[0]:,.0f} to {hours[1]:,.0f} chip hours"
  if price:
    found += (
      f", {price * hours[0]:,.0f} to {price * hours[1]:,.0f} at {price:g}"
    )
  return found


def layouts(
  models: Sequence[configs.Model], chips: int
) -> Iterator[configs.Mesh]:
  """Yields meshes whose tensor axis divides all networks' heads and MLPs."""
  for tensor in _divisors(undivided.most(models, chips)):
    for fsdp in _divisors(chips // tensor):
      data = chips // tensor // fsdp
      yield configs.Mesh(data=data, fsdp=fsdp, tensor=tensor)


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def sweep(
  config: Any, topology: Topology, reward_model: configs.Model | None
) -> list[tuple[configs.Mesh, Plan]]:
  """Ranks layouts by arithmetic: those that fit first, then the faster.

  Raises:
    UserError: the experiment has no plan on any layout.
  """
  known: dict[str, float] = {}
  found = []
  errors = []
  models = [config.model, *([reward_model] if reward_model else [])]
  for mesh in layouts(models, topology.count):
    one = dataclasses.replace(config, mesh=mesh)
    try:
      plan = make(
        one,
        topology,
        reward_model=reward_model,
        compiling=False,
        counted=known,
      )
    except UserError as error:
      errors.append((mesh, error))
      continue
    found.append((mesh, plan))
  if not found:
    raise _no_layout(errors, topology)
  return sorted(found, key=lambda pair: (not pair[1].fits, pair[1].seconds()))


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


def ranking(found: Sequence[tuple[configs.Mesh, Plan]], unit: str) -> str:
  """Layouts for people, the best first."""
  head = (*mesh_lib.AXES, "peak GB", "fits", f"s/{unit}", "or", "MFU")
  rows = [head]
  for mesh, plan in found[:_SHOWN]:
    rows.append(
      (
        *(str(getattr(mesh, axis)) for axis in mesh_lib.AXES),
        table.gigabytes(plan.peak),
        "yes" if plan.fits else "no",
        f"{plan.seconds():.3g}",
        f"{plan.seconds(most=True):.3g}",
        f"{plan.utilisation():.0%}",
      )
    )
  return "\n".join(table.columns(rows))


def suggestion(
  config: Any,
  name: str,
  topology: Topology,
  reward_model: configs.Model | None,
) -> str:
  """Returns flags with which it would fit, by arithmetic.

  Args:
    config: the experiment.
    name: its name.
    topology: where it would run.
    reward_model: of PPO.

  Raises:
    UserError: no layout has a plan, whatever the microbatches.
  """
  fields = _PART[name]
  whole = [_rows(config, field) for field in fields]
  first_error, planned = None, False
  for part in itertools.count():
    sizes = [max(1, rows >> part) for rows in whole]
    given = dict(zip(fields, sizes, strict=True))
    try:
      best = sweep(flags.replace(config, given), topology, reward_model)
    except UserError as error:  # such as a microbatch that does not divide
      best, first_error = [], first_error or error
    planned = planned or bool(best)
    if best and best[0][1].fits:
      mesh = best[0][0]
      return " ".join(
        [f"--mesh.{a}={getattr(mesh, a)}" for a in mesh_lib.AXES]
        + [f"--{field}={size}" for field, size in given.items()]
      )
    if all(size == 1 for size in sizes):
      if first_error and not planned:
        raise first_error
      return "more chips, or chips with more memory"
  raise AssertionError


def _rows(config: Any, field: str) -> int:
  """Rows of an update, which a microbatch is a part of."""
  section, _, leaf = field.partition(".")
  values = getattr(config, section)
  if section == "ppo":
    rows = values.minibatch
    return rows * values.ptx_ratio if leaf == "ptx_microbatch" else rows
  return values.batch_size


def show(arguments: argparse.Namespace, rest: Sequence[str]) -> bool:
  """Prints what was asked for; whether it fits.

  Args:
    arguments: of the command.
    rest: flags of the experiment.

  Raises:
    UserError: anything wrong with them.
  """
  name = arguments.experiment
  if name not in _PART:
    raise UserError(
      f"{name!r} has no plan",
      field="--experiment",
      fix=configs.nearest(name, _PART) or f"give one of {', '.join(_PART)}",
    )
  topology = hardware.topology(arguments.topology)
  config, _ = flags.parse(
    rest,
    presets.EXPERIMENTS[name],
    experiment=name,
    default_preset=arguments.preset,
    presets=presets.NAMES,
    runs=False,
  )
  ranked = arguments.sweep_mesh
  config, reward_model = _networks(config, arguments, filled=not ranked)
  title = f"{name} {arguments.preset}"
  if ranked:
    found = sweep(config, topology, reward_model)
    unit = "iteration" if name.startswith("ppo") else "step"
    print(f"{title} on {topology}, by arithmetic")
    print(ranking(found, unit))
    return found[0][1].fits
  possible = compiled.possible(topology)
  if arguments.compile == "true" and not possible:
    raise UserError(
      f"there is no compiler for {topology} here",
      field="--compile",
      fix="install the extra tpu for a TPU's; others' costs are worked out",
    )
  compiling = possible and arguments.compile != "false"
  plan = make(config, topology, reward_model=reward_model, compiling=compiling)
  print(text(plan, title, arguments.price))
  how = compiled.version() if compiling else "worked out, not compiled"
  print(f"costs: {how}")
  if not plan.fits:
    config, reward_model = _networks(config, arguments, filled=False)
    try:
      print("try " + suggestion(config, name, topology, reward_model))
    except UserError as error:
      print(f"no layout to try: {error}")
  return plan.fits


def _networks(
  config: Any, arguments: argparse.Namespace, *, filled: bool
) -> tuple[Any, configs.Model | None]:
  """Returns the config with the network of `init_from`, and the reward model.

  Only PPO has a reward model.

  Args:
    config: the experiment.
    arguments: arguments of the command.
    filled: whether heads and vocabulary are padded for the config's mesh, as
      the run does with another library's model.
  """
  if config.init_from and not hasattr(config, "reward"):
    stage_model.open_stage(
      config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
    )
  mesh = config.mesh if filled else configs.Mesh()
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
    return config, None
  folder = config.ppo.reward_model
  if not folder:
    return config, _reward_model(arguments.reward_preset, arguments.preset)
  if arguments.reward_preset:
    raise UserError(
      "is given beside --ppo.reward_model",
      field="--reward_preset",
      fix="leave one of them out",
      code="two_reward_models",
    )
  stage = stage_model.open_stage(
    folder, kind=stage_model.SCALAR, field="ppo.reward_model", run=inherited
  )
  return config, stage.model_config


def _reward_model(asked: str, preset: str) -> configs.Model:
  """The paper scores every policy with a 6B reward model."""
  if asked:
    return presets.model(asked, "--reward_preset")
  preset_model, paper = presets.model(preset), presets.model("6b")
  return (
    preset_model
    if preset_model.d_model < presets.model("125m").d_model
    else paper
  )
