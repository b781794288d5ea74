"""Sharding: the table of logical axes, and the functions that read it.

Models and losses name the axes of their arrays logically ("vocab", "embed", …).
`RULES` maps each name to axes of the mesh: change it to change the layout.

While a step is traced, `sharding_context` holds the mesh. `shard` and the other
functions that constrain arrays read it; without a mesh they do nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from instructgpt_jax.types import Array, PyTree

AnyMesh = Mesh | AbstractMesh
Rules = Mapping[str, tuple[str, ...]]

AXES = ("data", "fsdp", "tensor")  # of the mesh

# Logical axis → mesh axes that it is split over, outermost first.
RULES: dict[str, tuple[str, ...]] = {
  # activations
  "batch": ("data", "fsdp"),  # sequences of a batch, or all their tokens
  "decode_batch": ("data",),  # the batch of decode activations [D, B]
  # parameters, and activations of the same widths
  "vocab": ("tensor",),
  "decode_vocab": ("tensor", "fsdp"),  # the vocabulary, while decoding
  "embed": ("fsdp",),
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "position": (),
  "layers": (),
}


def partition_spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: AnyMesh,
  rules: Rules = RULES,
) -> PartitionSpec:
  """Computes the PartitionSpec of an array from its logical axes.

  Each mesh axis is used at most once, by the first dimension that lists it;
  axes of size 1 are ignored. A dimension is sharded over the longest prefix of
  its remaining mesh axes whose total size divides it.

  Args:
    names: logical axis of each dimension; None is not split.
    shape: size of each dimension.
    mesh: the mesh.
    rules: logical → mesh axes.

  Raises:
    ValueError: `names` and `shape` differ in length.
    KeyError: a name is not in `rules`.
  """
  if len(names) != len(shape):
    raise ValueError(f"axes {tuple(names)} do not name shape {tuple(shape)}")
  used: set[str] = set()
  spec: list[Any] = []
  for name, size in zip(names, shape, strict=True):
    if name is not None and name not in rules:
      raise KeyError(f"logical axis {name!r} is not in the rules")
    axes = [
      axis
      for axis in (rules[name] if name is not None else ())
      if axis not in used and mesh.shape[axis] > 1
    ]
    while axes and size % math.prod(mesh.shape[a] for a in axes):
      axes.pop()
    if axes:
      used.update(axes)
      spec.append(tuple(axes) if len(axes) > 1 else axes[0])
    else:
      spec.append(None)
  while spec and spec[-1] is None:
    spec.pop()
  return PartitionSpec(*spec)


# Shardings of whole trees, for `jax.jit` and `jax.device_put`.


def _is_boxed(leaf: Any) -> bool:
  return isinstance(leaf, nn.Partitioned)


def unbox(tree: PyTree) -> PyTree:
  """Replaces `flax.linen.Partitioned` boxes by the arrays in them."""
  return jax.tree.map(
    lambda leaf: leaf.value if _is_boxed(leaf) else leaf,
    tree,
    is_leaf=_is_boxed,
  )


def logical_axes(boxed: PyTree) -> dict[str, tuple[str | None, ...]]:
  """Maps the path of each boxed leaf of a tree to its logical axes."""
  flat, _ = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_boxed)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.names)
    for path, leaf in flat
    if _is_boxed(leaf)
  }


def state_shardings(
  abstract: PyTree,
  mesh: AnyMesh,
  axes: Mapping[str, tuple[str | None, ...]] | None = None,
  rules: Rules = RULES,
) -> PyTree:
  """Computes a NamedSharding for each array of a train state.

  Args:
    abstract: tree of arrays or ShapeDtypeStructs. Leaves may be boxed with
      their logical axes (`flax.linen.with_logical_partitioning`).
    mesh: the mesh.
    axes: path → logical axes of the parameters, from `logical_axes`. A leaf
      whose path ends in one of these paths takes its axes, so that Adam's
      moments and averaged weights are sharded like their parameters.
    rules: logical → mesh axes.

  Returns:
    The unboxed tree with a sharding in each leaf; leaves without known axes are
    replicated.
  """
  axes = axes or {}

  def leaf_sharding(path, leaf):
    if _is_boxed(leaf):
      names, leaf = leaf.names, leaf.value
    else:
      parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
      suffixes = ("/".join(parts[i:]) for i in range(len(parts)))
      names = next((axes[s] for s in suffixes if s in axes), None)
    if names is None or len(names) != len(leaf.shape):
      return replicated(mesh)
    return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules))

  return jax.tree_util.tree_map_with_path(
    leaf_sharding, abstract, is_leaf=_is_boxed
  )


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of an array that every device has in full."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of an array [B, …] split over its first axis."""
  return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_shards(mesh: AnyMesh) -> int:
  """Returns the number of shards that a batch is split into."""
  return math.prod(mesh.shape[axis] for axis in RULES["batch"])


# Constraints on arrays inside a step that is being traced.


class ShardingContext(NamedTuple):
  """The mesh that a step is traced for, and the rules on it."""

  mesh: AnyMesh
  rules: Rules = RULES

  def spec(
    self, names: Sequence[str | None], shape: Sequence[int]
  ) -> PartitionSpec:
    """Returns `partition_spec` on this mesh."""
    return partition_spec(names, shape, self.mesh, self.rules)


_CONTEXT: contextvars.ContextVar[ShardingContext | None] = (
  contextvars.ContextVar("sharding", default=None)
)


@contextlib.contextmanager
def sharding_context(context: ShardingContext) -> Iterator[None]:
  """Sets the mesh and rules that are used during tracing."""
  token = _CONTEXT.set(context)
  try:
    yield
  finally:
    _CONTEXT.reset(token)


def shard(x: Array, *names: str | None) -> Array:
  """Constrains an array to be split as its logical axes say."""
  context = _CONTEXT.get()
  if context is None or context.mesh.size == 1:
    return x
  sharding = NamedSharding(context.mesh, context.spec(names, x.shape))
  return jax.lax.with_sharding_constraint(x, sharding)


def _mesh_axes(spec: PartitionSpec) -> tuple[str, ...]:
  """Returns the mesh axes of a spec's first dimension."""
  return spec[0] if isinstance(spec[0], tuple) else (spec[0],)


def num_shards(name: str | None, size: int) -> int:
  """Returns the number of shards of an axis under the current context.

  It is 1 without a context, or where no mesh axis divides `size`.
  """
  context = _CONTEXT.get()
  spec = None if context is None else context.spec([name], [size])
  if context is None or not spec:
    return 1
  return math.prod(context.mesh.shape[axis] for axis in _mesh_axes(spec))


def platform() -> str:
  """Returns the platform of the mesh being traced, such as "tpu"."""
  context = _CONTEXT.get()
  if context is None:
    return jax.default_backend()
  if isinstance(context.mesh, Mesh):
    return context.mesh.devices.flat[0].platform
  device = context.mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def map_shards(
  function: Callable[..., Array],
  arrays: Sequence[Array],
  names: Sequence[Sequence[str | None]],
) -> Array:
  """Applies a function to each device's shards of all arrays.

  Args:
    function: (*arrays) → an array with the axes of the first one.
    arrays: its arguments.
    names: logical axes of each array.
  """
  context = _CONTEXT.get()
  if context is None or context.mesh.size == 1:
    return function(*arrays)
  specs = tuple(
    context.spec(axes, x.shape) for axes, x in zip(names, arrays, strict=True)
  )
  mapped: Callable[..., Array] = jax.shard_map(
    function,
    mesh=context.mesh,
    in_specs=specs,
    out_specs=specs[0],
    check_vma=False,
  )
  return mapped(*arrays)


def psum_over_batch(
  function: Callable[..., tuple[PyTree, PyTree]],
  sharded: PyTree,
  replicated: PyTree,
) -> tuple[PyTree, PyTree]:
  """Applies a function to each batch shard, and all-reduces its first result.

  Args:
    function: (sharded, replicated) → (tree of sums over the shard, tree of
      values for each of its elements).
    sharded: tree of [M, …] arrays, split over axis 0.
    replicated: tree of arrays that each shard gets in full.

  Returns:
    The sums over all shards, and the values for each element.
  """
  context = _CONTEXT.get()
  count = len(jax.tree.leaves(sharded)[0])
  spec = (
    PartitionSpec() if context is None else context.spec(["batch"], [count])
  )
  if context is None or not spec:
    return function(sharded, replicated)
  axes = _mesh_axes(spec)

  def shard_sums(sharded: PyTree, replicated: PyTree) -> Any:
    sums, values = function(sharded, replicated)
    return jax.lax.psum(sums, axes), values

  mapped: Callable[..., Any] = jax.shard_map(
    shard_sums,
    mesh=context.mesh,
    in_specs=(spec, PartitionSpec()),
    out_specs=(PartitionSpec(), spec),
    axis_names=set(axes),
    check_vma=False,
  )
  return mapped(sharded, replicated)
