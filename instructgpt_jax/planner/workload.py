"""Workloads: the programs that an experiment runs, by shapes of arrays."""

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
  """One kind of pass of a network inside a program.

  Attributes:
    kind: "train", "forward", or "decode" (one token per row).
    model: the network.
    rows: batch size of one pass.
    length: tokens per row; slots of the KV cache when decoding.
    count: passes per run of the program.
    logits: tokens per row whose logits may be computed.
    trained_params: number of parameters with a gradient.
    span: limits of attention, if there are any.
  """

  kind: str
  model: configs.Model
  rows: int
  length: int
  count: int = 1
  logits: int = 0
  trained_params: int = 0
  span: AttentionSpan | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One compiled program.

  Attributes:
    name: name in the table of costs.
    build: returns the jitted function and its arguments' shapes.
    runs: runs of the program per step or iteration.
    loop_trips: trips of a loop whose end depends on data.
    passes: network passes of one run.
  """

  name: str
  build: Callable[[], tuple[Any, tuple[Any, ...]]]
  runs: int
  loop_trips: int
  passes: tuple[Pass, ...]

  @functools.cached_property
  def _built(self) -> tuple[Any, tuple[Any, ...]]:
    return self.build()

  @property
  def function(self) -> Any:
    """Returns the jitted function."""
    return self._built[0]

  @property
  def arguments(self) -> tuple[Any, ...]:
    """Returns the shapes of its arguments, with shardings."""
    return self._built[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """Work of one step or iteration of an experiment.

  Attributes:
    unit: "step" or "iteration".
    examples: examples per unit.
    example_name: plural noun for the examples.
    episodes: episodes of the whole run; 0 outside of PPO.
    tokens: tokens trained on per unit, padding included.
    parameters: number of parameters of the trained network.
    resident: name → arrays that stay on the chips between programs.
    state: the arrays among them that a checkpoint holds.
    programs: programs of one unit.
    model: the trained network.
  """

  unit: str
  examples: int
  example_name: str
  episodes: int = 0
  tokens: int
  parameters: int
  resident: Mapping[str, PyTree]
  state: PyTree
  programs: tuple[Program, ...]
  model: configs.Model

  @property
  def checkpoint_bytes(self) -> int:
    """Returns the bytes of a checkpoint, over all chips."""
    leaves = jax.tree.leaves(self.state)
    return sum(x.size * x.dtype.itemsize for x in leaves)


def bytes_per_chip(tree: PyTree) -> int:
  """Returns the bytes per chip of a tree of shapes with shardings."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape
    if isinstance(sharding, NamedSharding):
      shape = _shard_shape(sharding.mesh, sharding.spec, shape)
    total += math.prod(shape) * leaf.dtype.itemsize
  return total


def _shard_shape(
  mesh: Any, spec: PartitionSpec, shape: tuple[int, ...]
) -> tuple[int, ...]:
  sizes = list(shape)
  for i, axes in enumerate(spec):
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      sizes[i] = -(-sizes[i] // mesh.shape[axis])
  return tuple(sizes)
