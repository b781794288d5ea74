"""The device mesh (data, fsdp, tensor) and the table of sharding rules.

Models name the axes of their arrays logically ("vocab", "embed", …). RULES maps
each logical axis to mesh axes; change it to change the parallel layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from instructgpt_jax import configs, sharding
from instructgpt_jax.errors import UserError

AnyMesh = Mesh | AbstractMesh
F = TypeVar("F", bound=Callable[..., Any])

AXES = ("data", "fsdp", "tensor")
_AUTO = (AxisType.Auto,) * len(AXES)

RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "columns": ("data",),  # batch rows, where fsdp shards another dimension
  "vocab": ("tensor",),
  "embed": ("fsdp",),
  "classes": ("tensor", "fsdp"),  # the vocabulary, while decoding
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "kv": (),
  "position": (),
  "layers": (),
  "score": (),
}


def make_mesh(mesh: configs.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
  """Makes the (data, fsdp, tensor) mesh, with axes of type Auto.

  Args:
    mesh: sizes of its axes.
    devices: devices of the mesh; None means all.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  # A mesh axis may cover part of a physical axis of a TPU's torus.
  device_array = mesh_utils.create_device_mesh(
    mesh_sizes(mesh, len(devices)), devices, allow_split_physical_axes=True
  )
  return Mesh(device_array, AXES, axis_types=_AUTO)


def abstract_mesh(
  mesh: configs.Mesh, count: int, platform: str
) -> AbstractMesh:
  """Makes a mesh of devices that this host does not have.

  Args:
    mesh: sizes of its axes.
    count: number of devices.
    platform: "tpu" or "gpu".
  """
  return AbstractMesh(
    mesh_sizes(mesh, count),
    AXES,
    axis_types=_AUTO,
    abstract_device=AbstractDevice(
      device_kind=platform, num_cores=None, platform=platform
    ),
  )


def mesh_sizes(mesh: configs.Mesh, count: int) -> tuple[int, int, int]:
  """Returns the sizes of the mesh axes for `count` devices.

  Raises:
    UserError: the sizes do not multiply to `count`.
  """
  inner = mesh.fsdp * mesh.tensor
  data = count // inner if mesh.data == -1 else mesh.data
  if data < 1 or data * inner != count:
    raise UserError(
      f"data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not make"
      f" {count} device{'s' if count != 1 else ''}",
      field="mesh",
      fix="choose --mesh.data, .fsdp and .tensor so that their product is the"
      " number of devices; --mesh.data=-1 uses all remaining devices",
      code="mesh_size",
    )
  return data, mesh.fsdp, mesh.tensor


def partition_spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: AnyMesh,
  rules: Mapping[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
  """Maps the logical axes of an array to mesh axes.

  A mesh axis shards the first dimension whose rule names it. A dimension is
  sharded over the longest prefix of its mesh axes whose size divides it.

  Args:
    names: logical axis of each dimension; None is replicated.
    shape: shape of the array.
    mesh: the mesh.
    rules: logical → mesh axes.
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


def with_mesh(mesh: AnyMesh, function: F) -> F:
  """Wraps a function so that it shards activations by RULES when traced.

  The result is to be jitted.
  """
  context = sharding.ShardingContext(
    mesh, functools.partial(partition_spec, mesh=mesh)
  )

  @functools.wraps(function)
  def wrapped(*args: Any, **kwargs: Any) -> Any:
    with sharding.sharding_context(context):
      return function(*args, **kwargs)

  # JAX names the program after the function, and a partial has no name.
  wrapped.__name__ = getattr(function, "func", function).__name__
  result: Any = wrapped
  return result


def jit_per_mesh(
  function: Callable[..., Any], **options: Any
) -> Callable[[Mesh], Any]:
  """Returns a function from a mesh to the program jitted for that mesh.

  Args:
    function: function to jit.
    options: options of `jax.jit`.
  """

  @functools.cache
  def jit_for_mesh(mesh: Mesh) -> Any:
    return jax.jit(with_mesh(mesh, function), **options)

  return jit_for_mesh


def _is_boxed(leaf: Any) -> bool:
  return isinstance(leaf, nn.Partitioned)


def logical_axes(boxed: Any) -> dict[str, tuple[str | None, ...]]:
  """Returns path → logical axes of the boxed leaves of a tree."""
  flat, _ = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_boxed)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.names)
    for path, leaf in flat
    if _is_boxed(leaf)
  }


def unbox(tree: Any) -> Any:
  """Replaces Flax's boxed leaves of a tree by their arrays."""
  return jax.tree.map(
    lambda leaf: leaf.value if _is_boxed(leaf) else leaf,
    tree,
    is_leaf=_is_boxed,
  )


def state_shardings(
  abstract: Any,
  mesh: AnyMesh,
  axes: Mapping[str, tuple[str | None, ...]] | None = None,
  rules: Mapping[str, tuple[str, ...]] = RULES,
) -> Any:
  """Returns a NamedSharding for each array of a train state.

  Args:
    abstract: tree of arrays or ShapeDtypeStructs. Leaves may be boxed with
      their logical axes (`flax.linen.with_logical_partitioning`).
    mesh: the mesh.
    axes: path → logical axes of the parameters, from `logical_axes`. They apply
      to each leaf whose path ends in one of these paths, so optimizer moments
      and averaged weights are sharded like their parameters.
    rules: logical → mesh axes.

  Returns:
    The unboxed tree with a sharding in each leaf; leaves without logical axes
    are replicated.
  """
  axes = axes or {}

  def sharding(path, leaf):
    if _is_boxed(leaf):
      names, leaf = leaf.names, leaf.value
    else:
      parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
      names = next(
        (
          axes["/".join(parts[i:])]
          for i in range(len(parts))
          if "/".join(parts[i:]) in axes
        ),
        None,
      )
    if names is None or len(names) != len(leaf.shape):
      return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules))

  return jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=_is_boxed)


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of an array that is replicated on all devices."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of an array [B, …] over its rows."""
  return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_shards(mesh: AnyMesh) -> int:
  """Returns the number of shards of a batch."""
  return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def round_up_to_shards(size: int, mesh: AnyMesh) -> int:
  """Rounds a batch size up to a multiple of the number of shards."""
  shards = batch_shards(mesh)
  return -(-size // shards) * shards


def check_divisible(size: int, mesh: AnyMesh) -> None:
  """Checks that the rows of a batch divide evenly among the shards.

  Raises:
    UserError: they do not.
  """
  shards = batch_shards(mesh)
  if size % shards:
    raise UserError(
      f"a batch of {size} rows cannot be sharded over {shards} devices",
      field="mesh",
      fix=f"choose batch sizes that are multiples of {shards}",
      code="uneven_batch",
    )
