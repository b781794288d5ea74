"""Operations of a program, counted in what JAX traces of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from instructgpt_jax.models.kernels import splash


class Flops(NamedTuple):
  """FLOPs of matmuls, on all chips together."""

  split: float  # as if each product were split over all chips
  kernels: float  # of kernels, as often as each chip runs them

  @property
  def total(self) -> float:
    """Returns the sum of both."""
    return self.split + self.kernels

  def __add__(self, other: Flops) -> Flops:  # type: ignore[override]
    return Flops(self.split + other.split, self.kernels + other.kernels)

  def times(self, number: float) -> Flops:
    """Returns the FLOPs of `number` runs."""
    return Flops(number * self.split, number * self.kernels)


_NONE = Flops(0.0, 0.0)


def flops(program: Any, arguments: Any, platform: str, trips: int) -> Flops:
  """Floating-point operations of matrix products, on all chips together.

  Args:
    program: jitted.
    arguments: its arguments' shapes.
    platform: "cpu", "tpu" or "cuda": of what is written for several, its part
      counts.
    trips: of a loop whose condition names no number.
  """
  return _of(program.trace(*arguments).jaxpr.jaxpr, platform, trips)


def _of(jaxpr: core.Jaxpr, platform: str, trips: int) -> Flops:
  total = _NONE
  used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
  used |= {id(v) for v in jaxpr.outvars}
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      total += Flops(_of_product(eqn), 0.0)
    elif name == "cond":
      parts = [_of(b.jaxpr, platform, trips) for b in params["branches"]]
      written_for = params.get("branches_platforms")
      dearest = max(parts, key=lambda part: part.total)
      total += parts[_index(written_for, platform)] if written_for else dearest
    elif name == "scan":
      once = _of(params["jaxpr"].jaxpr, platform, trips)
      total += once.times(params["length"])
    elif name == "while":
      most = _most(params["cond_jaxpr"].jaxpr) or trips
      total += _of(params["body_jaxpr"].jaxpr, platform, trips).times(most)
    elif name == "shard_map":
      mesh, axes = params["mesh"], params["newly_manual_axes"]
      parts = math.prod(mesh.shape[axis] for axis in axes)
      total += _of(params["jaxpr"], platform, trips).times(parts)
    elif name == "pallas_call":
      # What a gradient makes anew of a kept array's program is not run.
      if any(id(v) in used for v in eqn.outvars):
        queries = eqn.invars[splash.QUERIES].aval
        total += Flops(0.0, splash.flops(params["name"], *queries.shape))
    else:
      for value in params.values():
        for inner in _jaxprs(value):
          total += _of(inner, platform, trips)
  return total


def _most(condition: core.Jaxpr) -> int | None:
  """What a loop's condition says its counter to be less than, if a number."""
  for eqn in condition.eqns:
    limit = eqn.invars[-1]
    counts = eqn.primitive.name == "lt" and limit.aval.dtype.kind == "i"
    if counts and isinstance(limit, core.Literal):
      return int(limit.val)
  return None


def _index(written_for: Sequence[Sequence[str] | None], platform: str) -> int:
  for i, names in enumerate(written_for):
    if names is None or platform in names:
      return i
  raise ValueError(f"nothing is written for {platform}")


def _jaxprs(value: Any) -> list[core.Jaxpr]:
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  return [value] if isinstance(value, core.Jaxpr) else []


def _of_product(eqn: Any) -> float:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  inner = math.prod(left[axis] for axis in contracted)
  return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
