"""FLOPs of a program, counted in its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from instructgpt_jax.models.kernels import splash


class Flops(NamedTuple):
  """FLOPs of matmuls, on all chips together.

  Attributes:
    sharded: matmuls that are split over all chips.
    kernels: kernels, counted on each chip that runs them.
  """

  sharded: float
  kernels: float

  @property
  def total(self) -> float:
    """Returns the sum of both."""
    return self.sharded + self.kernels

  def __add__(self, other: Flops) -> Flops:  # type: ignore[override]
    return Flops(self.sharded + other.sharded, self.kernels + other.kernels)

  def scaled(self, number: float) -> Flops:
    """Returns the FLOPs of `number` runs."""
    return Flops(number * self.sharded, number * self.kernels)


_ZERO = Flops(0.0, 0.0)


def count_flops(
  program: Any, arguments: Any, platform: str, trips: int
) -> Flops:
  """Counts the FLOPs of a program's matmuls, on all chips together.

  Args:
    program: a jitted function.
    arguments: shapes of its arguments.
    platform: "cpu", "tpu" or "cuda"; selects among branches by platform.
    trips: trips of a loop whose condition has no constant bound.
  """
  return _count_jaxpr(program.trace(*arguments).jaxpr.jaxpr, platform, trips)


def _count_jaxpr(jaxpr: core.Jaxpr, platform: str, trips: int) -> Flops:
  total = _ZERO
  used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
  used |= {id(v) for v in jaxpr.outvars}
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      total += Flops(_dot_flops(eqn), 0.0)
    elif name == "cond":
      parts = [
        _count_jaxpr(b.jaxpr, platform, trips) for b in params["branches"]
      ]
      platforms = params.get("branches_platforms")
      largest = max(parts, key=lambda part: part.total)
      total += (
        parts[_branch_index(platforms, platform)] if platforms else largest
      )
    elif name == "scan":
      once = _count_jaxpr(params["jaxpr"].jaxpr, platform, trips)
      total += once.scaled(params["length"])
    elif name == "while":
      bound = _loop_bound(params["cond_jaxpr"].jaxpr) or trips
      total += _count_jaxpr(params["body_jaxpr"].jaxpr, platform, trips).scaled(
        bound
      )
    elif name == "shard_map":
      mesh, axes = params["mesh"], params["newly_manual_axes"]
      parts = math.prod(mesh.shape[axis] for axis in axes)
      total += _count_jaxpr(params["jaxpr"], platform, trips).scaled(parts)
    elif name == "pallas_call":
      # A gradient recomputes a saved output only if something reads it.
      if any(id(v) in used for v in eqn.outvars):
        queries = eqn.invars[splash.QUERIES].aval
        total += Flops(0.0, splash.flops(params["name"], *queries.shape))
    else:
      for value in params.values():
        for inner in _inner_jaxprs(value):
          total += _count_jaxpr(inner, platform, trips)
  return total


def _loop_bound(condition: core.Jaxpr) -> int | None:
  """Returns the constant that a loop's counter stays below, if there is one."""
  for eqn in condition.eqns:
    limit = eqn.invars[-1]
    is_bound = eqn.primitive.name == "lt" and limit.aval.dtype.kind == "i"
    if is_bound and isinstance(limit, core.Literal):
      return int(limit.val)
  return None


def _branch_index(
  platforms: Sequence[Sequence[str] | None], platform: str
) -> int:
  for i, names in enumerate(platforms):
    if names is None or platform in names:
      return i
  raise ValueError(f"no branch for {platform}")


def _inner_jaxprs(value: Any) -> list[core.Jaxpr]:
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  return [value] if isinstance(value, core.Jaxpr) else []


def _dot_flops(eqn: Any) -> float:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  inner = math.prod(left[axis] for axis in contracted)
  return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
