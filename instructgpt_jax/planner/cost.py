"""What a program costs on one chip, however that was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from instructgpt_jax.planner.hardware import Topology

# Sums over these are waited for: the next product is of them. What goes over
# the other axes, weights and gradients, can run beside products.
_WAITED_FOR = ("tensor",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Of one run of a program, on one chip."""

  flops: float  # of matrix products
  memory: float  # bytes read and written
  busy: float  # seconds, each part bound by operations or by memory
  network: Mapping[str, float]  # bytes sent, by axes of the mesh joined by +
  temporary: float  # bytes, beside what is held and given
  compiling: float | None = None  # seconds; None is an estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
  """Seconds of one run of a program."""

  compute: float  # all operations at the chip's peak
  memory: float  # all bytes at its bandwidth
  network: Mapping[str, float]  # of each axis
  least: float  # whatever can runs beside the products
  most: float  # nothing does

  @property
  def bound(self) -> str:
    """What takes the longest by itself."""
    found = {"compute": self.compute, "memory": self.memory}
    found["network"] = max(self.network.values(), default=0.0)
    return max(found, key=lambda name: found[name])


def times(
  cost: Cost, topology: Topology, axes: Sequence[str], sizes: Sequence[int]
) -> Times:
  """How long a program takes.

  Args:
    cost: of the program.
    topology: where it runs.
    axes: of the mesh.
    sizes: their sizes.
  """
  chip = topology.chip
  speed = dict(zip(axes, topology.bandwidths(sizes), strict=True))
  network = dict.fromkeys(axes, 0.0)
  for names, sent in cost.network.items():
    # What goes over several axes at once is as slow as the slowest.
    used = [n for n in names.split("+") if n in speed] or list(axes)
    slowest = min(used, key=lambda name: speed[name])
    network[slowest] += sent / speed[slowest]
  waited = sum(network[n] for n in _WAITED_FOR if n in network)
  beside = (s for n, s in network.items() if n not in _WAITED_FOR)
  return Times(
    compute=cost.flops / chip.flops,
    memory=cost.memory / chip.bandwidth,
    network=network,
    least=max(cost.busy + waited, *beside),
    most=cost.busy + sum(network.values()),
  )
