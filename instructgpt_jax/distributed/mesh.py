"""The device mesh (data, fsdp, tensor), and functions traced for it.

`sharding.RULES` maps the logical axes of arrays to axes of the mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  Mesh,
)

from instructgpt_jax import configs, sharding
from instructgpt_jax.errors import UserError
from instructgpt_jax.sharding import AXES, AnyMesh, batch_shards

F = TypeVar("F", bound=Callable[..., Any])

_AUTO = (AxisType.Auto,) * len(AXES)


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


def with_mesh(mesh: AnyMesh, function: F) -> F:
  """Wraps a function so that it applies `sharding.RULES` when traced.

  The result is to be jitted.
  """
  context = sharding.ShardingContext(mesh)

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
