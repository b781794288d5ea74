"""Plans an experiment: memory and time on a topology, and whether it fits."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import (
  compiled,
  count,
  estimate,
  hardware,
  ppo,
  supervised,
  undivided,
)
from instructgpt_jax.planner.cost import Cost, Times, compute_times
from instructgpt_jax.planner.hardware import Topology
from instructgpt_jax.planner.workload import Program, Workload, bytes_per_chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Costs of an experiment on a mesh.

  Attributes:
    topology: the chips.
    mesh_sizes: sizes of the mesh's axes.
    workload: programs and arrays of the experiment.
    resident: name → bytes per chip of arrays that stay between programs.
    saved: estimates of saved activations and KV caches, in bytes per chip.
    costs: program → (runs per unit, cost, times).
    compiled: whether the costs are the compiler's or estimates.
  """

  topology: Topology
  mesh_sizes: tuple[int, ...]
  workload: Workload
  resident: dict[str, float]
  saved: dict[str, float]
  costs: dict[str, tuple[int, Cost, Times]]
  compiled: bool

  @property
  def resident_bytes(self) -> float:
    """Returns the bytes per chip of resident arrays."""
    return sum(self.resident.values())

  @property
  def peak_bytes(self) -> float:
    """Returns the peak memory of a chip in bytes."""
    return self.resident_bytes + max(
      c.temporary_bytes for _, c, _ in self.costs.values()
    )

  @property
  def usable_bytes(self) -> float:
    """Returns the bytes of a chip that JAX reserves."""
    chip = self.topology.chip
    return chip.memory * hardware.memory_fraction(chip)

  @property
  def fits(self) -> bool:
    """Returns whether the peak fits, with a margin if it is an estimate."""
    margin = 0.0 if self.compiled else hardware.MARGIN
    return self.peak_bytes <= self.usable_bytes * (1 - margin)

  def seconds(self, serial: bool = False) -> float:
    """Returns the time of a step or iteration.

    Args:
      serial: whether communication never overlaps with computing.
    """
    return sum(
      n * (t.serial if serial else t.overlapped)
      for n, _, t in self.costs.values()
    )

  def utilisation(self, serial: bool = False) -> float:
    """Returns model FLOP utilisation at 6 FLOPs per parameter and token."""
    flops = 6.0 * self.workload.parameters * self.workload.tokens
    peak = self.topology.num_chips * self.topology.chip.flops
    return flops / (self.seconds(serial) * peak)


def make_plan(
  config: configs.Experiment,
  topology: Topology,
  *,
  reward_models: Sequence[configs.Model] = (),
  compiling: bool,
  counted: dict[str, float] | None = None,
) -> Plan:
  """Plans an experiment.

  Args:
    config: the experiment and its mesh.
    topology: chips to plan for.
    reward_models: reward models of PPO; the policy's network if empty.
    compiling: whether to compile; costs are estimates otherwise.
    counted: name of a program → FLOPs on all chips where the mesh divides all
      parts; programs that are missing are counted and added.
  """
  sizes = mesh_lib.resolve_axis_sizes(config.mesh, topology.num_chips)
  axes = dict(zip(mesh_lib.AXES, sizes, strict=True))
  mesh: Any = mesh_lib.abstract_mesh(
    config.mesh, topology.num_chips, topology.chip.platform
  )
  if compiling:
    mesh = compiled.topology_mesh(topology, config.mesh)
  platform = topology.chip.platform
  workload = make_workload(config, mesh, platform, reward_models)
  counted = {} if counted is None else counted
  unsharded = {}
  if not compiling:
    for program in workload.programs:
      if program.name not in counted:
        counted[program.name] = _count(program, platform).total
    unsharded = _unsharded_flops(
      config, mesh, platform, reward_models, workload
    )
  costs = {}
  for program in workload.programs:
    if compiling:
      log_progress(f"compiling {program.name} for {topology}")
      cost = compiled.compile_program(program, mesh, topology.chip)
    else:
      flops = counted[program.name] + unsharded.get(program.name, 0.0)
      cost = estimate.estimate_cost(program, topology.chip, axes, flops)
    took = compute_times(cost, topology, mesh_lib.AXES, sizes)
    costs[program.name] = (program.runs, cost, took)
  return Plan(
    topology=topology,
    mesh_sizes=sizes,
    workload=workload,
    resident={
      name: bytes_per_chip(tree) for name, tree in workload.resident.items()
    },
    saved=estimate.saved_bytes(workload.programs, axes, platform),
    costs=costs,
    compiled=compiling,
  )


def estimate_peak(
  config: configs.Experiment,
  *,
  platform: str,
  devices: int,
  reward_models: Sequence[configs.Model] = (),
) -> float:
  """Estimates the peak memory of a device, without counting FLOPs.

  Args:
    config: the experiment and its mesh.
    platform: platform of the devices: "cpu", "tpu" or "cuda".
    devices: number of devices.
    reward_models: reward models of PPO; the policy's network if empty.

  Returns:
    Bytes, as `Plan.peak_bytes` of an estimate.
  """
  sizes = mesh_lib.resolve_axis_sizes(config.mesh, devices)
  axes = dict(zip(mesh_lib.AXES, sizes, strict=True))
  mesh = mesh_lib.abstract_mesh(config.mesh, devices, platform)
  workload = make_workload(config, mesh, platform, reward_models)
  resident = sum(bytes_per_chip(tree) for tree in workload.resident.values())
  return resident + max(
    estimate.temporary_bytes(program, axes, platform)
    for program in workload.programs
  )


def make_workload(
  config: configs.Experiment,
  mesh: mesh_lib.AnyMesh,
  platform: str,
  reward_models: Sequence[configs.Model] = (),
) -> Workload:
  """Returns the workload of an experiment on a mesh, which may be abstract.

  Args:
    config: the experiment.
    mesh: mesh of the devices.
    platform: platform of the devices: "cpu", "tpu" or "cuda".
    reward_models: reward models of PPO; the policy's network if empty.

  Raises:
    UserError: the experiment refuses its settings, or has no workload.
  """
  if isinstance(config, configs.PretrainExperiment):
    return supervised.pretrain_workload(config, mesh)
  if isinstance(config, configs.SftExperiment):
    return supervised.sft_workload(config, mesh)
  if isinstance(config, configs.RewardExperiment):
    return supervised.reward_workload(config, mesh, platform)
  if isinstance(config, configs.PpoExperiment):
    return ppo.ppo_workload(config, mesh, reward_models)
  raise UserError(
    "has no programs of its own",
    field="--experiment",
    fix="give pretrain, sft, policy_init, reward, ppo or ppo_ptx",
    code="no_plan",
  )


def _count(program: Program, platform: str) -> count.Flops:
  return count.count_flops(
    program.function, program.arguments, platform, program.loop_trips
  )


def _unsharded_flops(
  config: configs.Experiment,
  mesh: mesh_lib.AnyMesh,
  platform: str,
  reward_models: Sequence[configs.Model],
  workload: Workload,
) -> dict[str, float]:
  """Counts the extra FLOPs of parts that are not sharded over `tensor`.

  Returns:
    Name of a program → FLOPs of all chips together.
  """
  tensor = mesh.shape["tensor"]
  others = [
    (dataclasses.replace(config, model=model), reward_models, share)
    for model, share in undivided.larger_models(config.model, tensor)
  ]
  if isinstance(config, configs.PpoExperiment):
    others += [
      (config, [*reward_models[:i], model, *reward_models[i + 1 :]], share)
      for i, reward_model in enumerate(reward_models)
      for model, share in undivided.larger_models(reward_model, tensor)
    ]
  extra: dict[str, float] = {}
  if not others:
    return extra
  counts = {p.name: _count(p, platform).sharded for p in workload.programs}
  for other, scores, share in others:
    for program in make_workload(other, mesh, platform, scores).programs:
      added = _count(program, platform).sharded - counts[program.name]
      extra[program.name] = (
        extra.get(program.name, 0.0) + (tensor - 1) * share * added
      )
  return extra


def log_progress(text: str) -> None:
  """Prints a line to standard error."""
  print(text, file=sys.stderr, flush=True)
