"""Cost of a program on one chip, and the time that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from instructgpt_jax.planner.hardware import Topology

# The next matmul needs the result of an all-reduce over these axes. Weights and
# gradients, which travel over the other axes, can overlap with matmuls.
_BLOCKING_AXES = ("tensor",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Cost of one run of a program on one chip.

  Attributes:
    flops: FLOPs of matmuls.
    hbm_bytes: bytes of main memory read and written.
    seconds: time without communication, each operation bound by FLOPs or by
      memory.
    sent: mesh axes joined by "+" → bytes sent.
    temporary_bytes: memory beside arguments and resident arrays.
    compile_seconds: time to compile; None if the cost is an estimate.
  """

  flops: float
  hbm_bytes: float
  seconds: float
  sent: Mapping[str, float]
  temporary_bytes: float
  compile_seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
  """Time of one run of a program, in seconds.

  Attributes:
    compute: all FLOPs at the chip's peak.
    memory: all bytes at the bandwidth of its main memory.
    network: mesh axis → time of its communication.
    overlapped: total if communication overlaps wherever it can.
    serial: total if nothing overlaps.
  """

  compute: float
  memory: float
  network: Mapping[str, float]
  overlapped: float
  serial: float

  @property
  def bound(self) -> str:
    """Returns what takes the longest: compute, memory or network."""
    seconds = {"compute": self.compute, "memory": self.memory}
    seconds["network"] = max(self.network.values(), default=0.0)
    return max(seconds, key=lambda name: seconds[name])


def compute_times(
  cost: Cost, topology: Topology, axes: Sequence[str], sizes: Sequence[int]
) -> Times:
  """Computes how long a program takes.

  Args:
    cost: cost of the program on one chip.
    topology: chips that run it.
    axes: names of the mesh's axes, outermost first.
    sizes: sizes of these axes.
  """
  chip = topology.chip
  speed = dict(zip(axes, topology.axis_bandwidths(sizes), strict=True))
  network = dict.fromkeys(axes, 0.0)
  for names, sent in cost.sent.items():
    # Communication over several axes is as slow as on the slowest.
    used = [n for n in names.split("+") if n in speed] or list(axes)
    slowest = min(used, key=lambda name: speed[name])
    network[slowest] += sent / speed[slowest]
  blocking = sum(network[n] for n in _BLOCKING_AXES if n in network)
  concurrent = (s for n, s in network.items() if n not in _BLOCKING_AXES)
  return Times(
    compute=cost.flops / chip.flops,
    memory=cost.hbm_bytes / chip.bandwidth,
    network=network,
    overlapped=max(cost.seconds + blocking, *concurrent),
    serial=cost.seconds + sum(network.values()),
  )
