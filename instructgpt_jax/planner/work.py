"""What an experiment does over and over, by programs and by passes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from instructgpt_jax import configs
from instructgpt_jax.types import AttentionSpan, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """A network's pass over some rows, so many times in a program."""

  kind: str  # "train", "forward", or "decode" one token a row
  model: configs.Model
  rows: int  # at a time
  length: int  # tokens a row; of a cache, when decoding
  times: int = 1
  logits: int = 0  # tokens a row whose logits may be wanted
  trained: int = 0  # parameters that have a gradient
  reach: AttentionSpan | None = None  # how far its tokens look at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One compiled program."""

  name: str
  make: Callable[[], tuple[Any, tuple[Any, ...]]]  # → function, arguments
  times: int  # that it runs in a step or iteration
  trips: int  # of a loop whose end only the data tell
  passes: tuple[Pass, ...]  # that it consists of

  @functools.cached_property
  def _made(self) -> tuple[Any, tuple[Any, ...]]:
    return self.make()

  @property
  def function(self) -> Any:
    """Jitted."""
    return self._made[0]

  @property
  def arguments(self) -> tuple[Any, ...]:
    """Shapes with shardings."""
    return self._made[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What an experiment does over and over."""

  unit: str  # "step" or "iteration"
  examples: int  # of a unit
  what: str  # the examples are
  episodes: int = 0  # of the whole run, where examples are episodes
  tokens: int  # that are trained on in a unit, padding included
  parameters: int  # of the trained network
  held: Mapping[str, PyTree]  # on the chips all the time
  state: PyTree  # of it, what a checkpoint has
  programs: tuple[Program, ...]
  model: configs.Model

  @property
  def saved(self) -> int:
    """Bytes of a checkpoint."""
    leaves = jax.tree.leaves(self.state)
    return sum(x.size * x.dtype.itemsize for x in leaves)


def bytes_here(tree: PyTree) -> int:
  """Bytes that one chip holds of a tree of shapes with shardings."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    place = getattr(leaf, "sharding", None)
    shape = leaf.shape
    if isinstance(place, NamedSharding):
      shape = _part(place.mesh, place.spec, shape)
    total += math.prod(shape) * leaf.dtype.itemsize
  return total


def _part(
  mesh: Any, spec: PartitionSpec, shape: tuple[int, ...]
) -> tuple[int, ...]:
  found = list(shape)
  for i, axes in enumerate(spec):
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      found[i] = -(-found[i] // mesh.shape[axis])
  return tuple(found)
