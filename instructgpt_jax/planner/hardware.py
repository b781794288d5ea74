"""Chips and how they are connected, by their makers' data sheets."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What one chip does, at the most."""

  name: str
  flops: float  # dense bfloat16, a second
  memory: float  # bytes
  bandwidth: float  # of that memory, bytes a second
  link: float  # bytes a second, one way, of a link of the torus or to a switch
  torus: int = 0  # dimensions of the torus; 0 is a host's switch
  host: int = 4  # chips of a host
  between: float = 0.0  # bytes a second, one way, from a chip to other hosts

  @property
  def platform(self) -> str:
    """As JAX calls it."""
    return "tpu" if self.torus else "cuda"


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4", flops=275e12, memory=32 * 2**30, bandwidth=1228e9,
      link=50e9, torus=3,
    ),
    Chip(
      name="v5e", flops=197e12, memory=16 * 2**30, bandwidth=819e9,
      link=50e9, torus=2,
    ),
    Chip(
      name="v5p", flops=459e12, memory=95 * 2**30, bandwidth=2765e9,
      link=100e9, torus=3,
    ),
    Chip(
      name="v6e", flops=918e12, memory=32 * 2**30, bandwidth=1640e9,
      link=112e9, torus=2,
    ),
    Chip(
      name="a100", flops=312e12, memory=80e9, bandwidth=2039e9,
      link=300e9, host=8, between=25e9,
    ),
    Chip(
      name="h100", flops=989e12, memory=80e9, bandwidth=3350e9,
      link=450e9, host=8, between=50e9,
    ),
    Chip(
      name="h200", flops=989e12, memory=141e9, bandwidth=4800e9,
      link=450e9, host=8, between=50e9,
    ),
  )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """So many of a chip: 8 × 8 × 8 of a torus, or a number behind switches."""

  chip: Chip
  shape: tuple[int, ...]

  @property
  def count(self) -> int:
    """Chips in all."""
    return math.prod(self.shape)

  def __str__(self) -> str:
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  def bandwidths(self, sizes: Sequence[int]) -> list[float]:
    """Bytes a second, one way, that a chip sends along each axis of a mesh.

    The last axis lies innermost. On a torus a ring along one dimension uses two
    links, and an axis that takes several dimensions all of theirs; one that
    does not fill a dimension has no ring and one link.

    Args:
      sizes: of the mesh's axes, outermost first.
    """
    if not self.chip.torus:
      return self._switched(sizes)
    left = sorted(n for n in self.shape if n > 1)
    found = []
    for size in reversed(sizes):
      links = 0
      while size > 1 and left:
        part = math.gcd(size, left[0])
        if part == left[0]:
          # Two links make a ring of more than two chips.
          links += 2 if left[0] > 2 else 1
          left.pop(0)
        else:
          links += not links
          left[0] //= part
          if part == 1:
            break
        size //= part
      found.append(max(links, 1) * self.chip.link)
    return found[::-1]

  def _switched(self, sizes: Sequence[int]) -> list[float]:
    found, inner = [], 1
    for size in reversed(sizes):
      inner *= size
      inside = inner <= self.chip.host or size == 1
      found.append(self.chip.link if inside else self.chip.between)
    return found[::-1]


def topology(text: str) -> Topology:
  """Reads v5p:8x8x8 or h100:64.

  Raises:
    UserError: it says something else.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if match is None:
    raise UserError(
      f"{text!r} is not CHIP:SHAPE",
      field="--topology",
      fix="give v5p:8x8x8, or h100:64",
    )
  name, shape = match[1].lower(), tuple(map(int, match[2].split("x")))
  if name not in CHIPS:
    raise UserError(
      f"there is no chip {name!r}",
      field="--topology",
      fix=configs.nearest(name, CHIPS) or f"give one of {', '.join(CHIPS)}",
    )
  chip = CHIPS[name]
  dimensions = chip.torus or 1
  if len(shape) != dimensions or not all(shape):
    example = "x".join("4" * dimensions) if chip.torus else "64"
    raise UserError(
      f"{match[2]!r} is not {dimensions} number{'s' * (dimensions > 1)}",
      field="--topology",
      fix=f"give {name}:{example}",
    )
  return Topology(chip, shape)
