"""One named mesh, and the one table from logical to physical axes.

Models name the axes of their arrays logically ("vocab", "embed", …); RULES says
over which mesh axes each is split. A new parallel layout is a new table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import linen as nn
from jax.experimental import mesh_utils, multihost_utils
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
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"  # for which products
_NARROW = 256  # the widest model that decodes faster without that library
_SCHEDULE = "xla_cpu_scheduler_type"
_LEAST_MEMORY = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
_AUTO = (AxisType.Auto,) * len(AXES)

RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "columns": ("data",),  # rows of a batch, where a width is split as well
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
  """The (data, fsdp, tensor) mesh over all devices, axes of type Auto."""
  devices = jax.devices() if devices is None else list(devices)
  # An axis of the mesh may end amid a side of a TPU's torus.
  placed = mesh_utils.create_device_mesh(
    mesh_sizes(mesh, len(devices)), devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=_AUTO)


def abstract_mesh(
  mesh: configs.Mesh, count: int, platform: str
) -> AbstractMesh:
  """The same mesh of so many devices that are not here, "tpu" or "gpu"."""
  return AbstractMesh(
    mesh_sizes(mesh, count),
    AXES,
    axis_types=_AUTO,
    abstract_device=AbstractDevice(
      device_kind=platform, num_cores=None, platform=platform
    ),
  )


def mesh_sizes(mesh: configs.Mesh, count: int) -> tuple[int, int, int]:
  """Sizes of the axes of a mesh of so many devices."""
  inner = mesh.fsdp * mesh.tensor
  data = count // inner if mesh.data == -1 else mesh.data
  if data < 1 or data * inner != count:
    raise UserError(
      f"data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not make"
      f" {count} device{'s' if count != 1 else ''}",
      field="mesh",
      fix="give --mesh.data, .fsdp and .tensor whose product is the number"
      " of devices; --mesh.data=-1 takes what is left",
    )
  return data, mesh.fsdp, mesh.tensor


def partition_spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: AnyMesh,
  rules: Mapping[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
  """The physical axes of an array with these logical axes.

  A mesh axis is used once, by the first dimension that asks for it. Of several
  axes a dimension takes as many of the first ones as divide it.
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
  """The function, whose arrays lie on the mesh as RULES say; to be jitted."""
  places = sharding.ShardingContext(
    mesh, functools.partial(partition_spec, mesh=mesh)
  )

  @functools.wraps(function)
  def placed(*args: Any, **kwargs: Any) -> Any:
    with sharding.sharding_context(places):
      return function(*args, **kwargs)

  # A partial has no name, by which profiles and logs call a program.
  placed.__name__ = getattr(function, "func", function).__name__
  found: Any = placed
  return found


def jit_per_mesh(
  function: Callable[..., Any], **options: Any
) -> Callable[[Mesh], Any]:
  """mesh → the function, jitted for it; once for each mesh."""

  @functools.cache
  def of_mesh(mesh: Mesh) -> Any:
    return jax.jit(with_mesh(mesh, function), **options)

  return of_mesh


def decode_compiler_options(
  width: int, mesh: AnyMesh | None = None
) -> dict[str, Any]:
  """Compiler options of programs that decode, on a mesh or the usual device.

  On a CPU XLA leaves products to a library that is quick at large ones, and
  takes longer to begin than a product of a few rows with a small matrix does
  (docs/speed.md).

  Args:
    width: D, of the model.
    mesh: where the program runs.
  """
  return {_LIBRARY: ""} if width <= _NARROW and _on_cpu(mesh) else {}


def init_compiler_options(mesh: AnyMesh | None = None) -> dict[str, Any]:
  """Compiler options of programs that draw parameters.

  On a CPU XLA would have all of them in the making at once, and hold three
  times their size.
  """
  return {_SCHEDULE: _LEAST_MEMORY} if _on_cpu(mesh) else {}


def _on_cpu(mesh: AnyMesh | None) -> bool:
  if mesh is None:
    return jax.default_backend() == "cpu"
  return isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"


def _boxed(leaf: Any) -> bool:
  return isinstance(leaf, nn.Partitioned)


def logical_axes(boxed: Any) -> dict[str, tuple[str | None, ...]]:
  """Path → logical axis names of every boxed leaf of a tree."""
  flat, _ = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_boxed)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.names)
    for path, leaf in flat
    if _boxed(leaf)
  }


def unbox(tree: Any) -> Any:
  """The tree with plain arrays in place of flax's boxed ones."""
  return jax.tree.map(
    lambda leaf: leaf.value if _boxed(leaf) else leaf, tree, is_leaf=_boxed
  )


def state_shardings(
  abstract: Any,
  mesh: AnyMesh,
  axes: Mapping[str, tuple[str | None, ...]] | None = None,
  rules: Mapping[str, tuple[str, ...]] = RULES,
) -> Any:
  """A NamedSharding for each array of a state.

  Args:
    abstract: tree of arrays or ShapeDtypeStructs, some of which may be boxed
      with their logical axes (`flax.linen.with_logical_partitioning`).
    mesh: the mesh.
    axes: path → logical axes of the parameters, from `logical_axes`. A leaf
      whose path ends in one of these paths takes its axes, so optimiser moments
      and averaged weights lie like the parameters they belong to.
    rules: logical → physical axes.

  Returns:
    The unboxed tree with a sharding in each leaf; leaves without known axes are
    replicated.
  """
  axes = axes or {}

  def sharding(path, leaf):
    if _boxed(leaf):
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

  return jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=_boxed)


def replicated(mesh: AnyMesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
  """The sharding of an array [B, …] split over its rows."""
  return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_shards(mesh: AnyMesh) -> int:
  """Over how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def round_up_to_shards(size: int, mesh: AnyMesh) -> int:
  """The least number of rows, `size` or more, that splits evenly."""
  shards = batch_shards(mesh)
  return -(-size // shards) * shards


def check_divisible(size: int, mesh: AnyMesh) -> None:
  """Refuses a batch whose rows do not split evenly."""
  shards = batch_shards(mesh)
  if size % shards:
    raise UserError(
      f"a batch of {size} rows cannot be split over {shards} devices",
      field="mesh",
      fix=f"give batch sizes that are multiples of {shards}",
      code="uneven_batch",
    )


@functools.lru_cache
def _local_shards(mesh: Mesh) -> tuple[int, int]:
  """Which of how many distinct parts of a batch this process's devices hold.

  Processes that only a tensor axis sets apart hold the same rows.
  """
  shards = batch_shards(mesh)
  rows: dict[int, set[int]] = {}
  places = batch_sharding(mesh).devices_indices_map((shards,))
  for device, (shard,) in places.items():
    rows.setdefault(device.process_index, set()).add(shard.start or 0)
  parts = sorted({tuple(sorted(held)) for held in rows.values()})
  if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != shards:
    raise UserError(
      "processes share some of their rows of a batch, but not all",
      field="mesh",
      fix="give a --mesh.tensor that divides the devices of a process, or is"
      " a multiple of them",
    )
  mine = tuple(sorted(rows[jax.process_index()]))
  return parts.index(mine), len(parts)


def process_shard(size: int, mesh: Mesh) -> dict[str, int]:
  """Which part of each batch of `size` rows this process reads.

  Raises:
    UserError: rows do not split evenly over devices, or processes.
  """
  check_divisible(size, mesh)
  index, count = _local_shards(mesh)
  return dict(shard_index=index, shard_count=count)


def put_replicated_batch(batch: Any, mesh: Mesh) -> Any:
  """Rows that every process holds, as global arrays split over axis 0."""

  def put(array):
    place = batch_sharding(mesh) if array.ndim else replicated(mesh)
    return jax.make_array_from_callback(array.shape, place, lambda i: array[i])

  return jax.tree.map(put, batch)


def allgather(tree: Any) -> Any:
  """Arrays as numpy's, whole in every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def put_local_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows as global arrays, split over axis 0.

  Args:
    batch: tree of numpy arrays, the part of B rows that `shard` tells; scalars
      are replicated.
    mesh: the mesh.
  """
  whole, split = replicated(mesh), batch_sharding(mesh)
  _, parts = _local_shards(mesh)

  def put(array):
    if array.ndim == 0:
      return jax.make_array_from_process_local_data(whole, array)
    check_divisible(array.shape[0] * parts, mesh)
    return jax.make_array_from_process_local_data(split, array)

  return jax.tree.map(put, batch)
