"""Chips and their networks, from the vendors' data sheets."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError

# Environment variable of JAX: the share of a GPU's memory that it reserves.
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_NEW_FRACTION = "XLA_CLIENT_MEM_FRACTION"
_DEFAULT_FRACTION = 0.75  # JAX's default
# Share of memory that stays free in an estimate (docs/planning.md).
MARGIN = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Peak figures of one chip.

  Attributes:
    name: name in --topology.
    flops: dense bfloat16 FLOP/s.
    memory: main memory in bytes.
    bandwidth: bandwidth of main memory in bytes/s.
    link_bandwidth: bytes/s, one way, of a torus link or of the link to the
      host's switch.
    torus_dims: dimensions of the torus; 0 for chips behind a switch.
    chips_per_host: chips of a host.
    host_bandwidth: bytes/s, one way, from a chip to other hosts.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link_bandwidth: float
  torus_dims: int = 0
  chips_per_host: int = 4
  host_bandwidth: float = 0.0

  @property
  def platform(self) -> str:
    """Returns JAX's name of the platform."""
    return "tpu" if self.torus_dims else "cuda"


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4", flops=275e12, memory=32 * 2**30, bandwidth=1228e9,
      link_bandwidth=50e9, torus_dims=3,
    ),
    Chip(
      name="v5e", flops=197e12, memory=16 * 2**30, bandwidth=819e9,
      link_bandwidth=50e9, torus_dims=2,
    ),
    Chip(
      name="v5p", flops=459e12, memory=95 * 2**30, bandwidth=2765e9,
      link_bandwidth=100e9, torus_dims=3,
    ),
    Chip(
      name="v6e", flops=918e12, memory=32 * 2**30, bandwidth=1640e9,
      link_bandwidth=112e9, torus_dims=2,
    ),
    Chip(
      name="a100", flops=312e12, memory=80e9, bandwidth=2039e9,
      link_bandwidth=300e9, chips_per_host=8, host_bandwidth=25e9,
    ),
    Chip(
      name="h100", flops=989e12, memory=80e9, bandwidth=3350e9,
      link_bandwidth=450e9, chips_per_host=8, host_bandwidth=50e9,
    ),
    Chip(
      name="h200", flops=989e12, memory=141e9, bandwidth=4800e9,
      link_bandwidth=450e9, chips_per_host=8, host_bandwidth=50e9,
    ),
  )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """Number of chips of one kind and their arrangement, such as v5p:8x8x8."""

  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """Returns the number of chips."""
    return math.prod(self.shape)

  def __str__(self) -> str:
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  def axis_bandwidths(self, sizes: Sequence[int]) -> list[float]:
    """Computes a chip's bandwidth along each axis of a mesh.

    On a torus, an axis that fills a dimension is a ring and uses two links; an
    axis over several dimensions uses the links of all of them. An axis that
    does not fill a dimension uses one link.

    Args:
      sizes: sizes of the mesh's axes, outermost first. The last axis is mapped
        to neighbouring chips.

    Returns:
      Bytes/s, one way, for each axis.
    """
    if not self.chip.torus_dims:
      return self._switched_bandwidths(sizes)
    dims = sorted(n for n in self.shape if n > 1)
    bandwidths = []
    for size in reversed(sizes):
      links = 0
      while size > 1 and dims:
        part = math.gcd(size, dims[0])
        if part == dims[0]:
          # Two links make a ring of more than two chips.
          links += 2 if dims[0] > 2 else 1
          dims.pop(0)
        else:
          links += not links
          dims[0] //= part
          if part == 1:
            break
        size //= part
      bandwidths.append(max(links, 1) * self.chip.link_bandwidth)
    return bandwidths[::-1]

  def _switched_bandwidths(self, sizes: Sequence[int]) -> list[float]:
    bandwidths, inner = [], 1
    for size in reversed(sizes):
      inner *= size
      inside = inner <= self.chip.chips_per_host or size == 1
      bandwidths.append(
        self.chip.link_bandwidth if inside else self.chip.host_bandwidth
      )
    return bandwidths[::-1]


def parse_topology(text: str) -> Topology:
  """Parses a topology, such as v5p:8x8x8 or h100:64.

  Raises:
    UserError: the chip is unknown or the shape is not one of its.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if match is None:
    raise UserError(
      f"{text!r} is not CHIP:SHAPE",
      field="--topology",
      fix="give v5p:8x8x8, or h100:64",
      code="bad_topology",
    )
  name, shape = match[1].lower(), tuple(map(int, match[2].split("x")))
  if name not in CHIPS:
    raise UserError(
      f"there is no chip {name!r}",
      field="--topology",
      fix=configs.nearest(name, CHIPS) or f"give one of {', '.join(CHIPS)}",
      code="unknown_chip",
    )
  chip = CHIPS[name]
  dimensions = chip.torus_dims or 1
  if len(shape) != dimensions or not all(shape):
    example = "x".join("4" * dimensions) if chip.torus_dims else "64"
    raise UserError(
      f"{match[2]!r} is not {dimensions} number{'s' * (dimensions > 1)}",
      field="--topology",
      fix=f"give {name}:{example}",
      code="bad_topology_shape",
    )
  return Topology(chip, shape)


def memory_fraction(chip: Chip, env: Mapping[str, str] = os.environ) -> float:
  """Returns the share of a chip's memory that JAX reserves; 1 on TPUs.

  Raises:
    UserError: the environment variable is not in (0, 1].
  """
  if chip.platform != "cuda":
    return 1.0
  text = env.get(_NEW_FRACTION) or env.get(FRACTION) or str(_DEFAULT_FRACTION)
  try:
    share = float(text)
  except ValueError:
    share = 0.0
  if not 0 < share <= 1:
    raise UserError(
      f"{text!r} is not a share of a GPU's memory",
      field=FRACTION,
      fix="give a number above 0, at most 1, or unset the variable",
      code="bad_memory_fraction",
    )
  return share
