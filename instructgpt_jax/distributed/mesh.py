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


def make_mesh(
  axis_sizes: configs.Mesh, devices: Sequence[Any] | None = None
) -> Mesh:
  """Makes the (data, fsdp, tensor) mesh, with axes of type Auto.

  Args:
    axis_sizes: sizes of its axes; data=-1 uses all remaining devices.
    devices: devices of the mesh; None means all.

  Raises:
    UserError: the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  # A mesh axis may cover part of a physical axis of a TPU's torus.
  device_array = mesh_utils.create_device_mesh(
    resolve_axis_sizes(axis_sizes, len(devices)),
    devices,
    allow_split_physical_axes=True,
  )
  return Mesh(device_array, AXES, axis_types=_AUTO)


def abstract_mesh(
  axis_sizes: configs.Mesh, num_devices: int, platform: str
) -> AbstractMesh:
  """Makes a mesh of devices that this host does not have.

  Programs can be traced for it, but not run.

  Args:
    axis_sizes: see `make_mesh`.
    num_devices: number of devices.
    platform: "tpu" or "gpu".
  """
  return AbstractMesh(
    resolve_axis_sizes(axis_sizes, num_devices),
    AXES,
    axis_types=_AUTO,
    abstract_device=AbstractDevice(
      device_kind=platform, num_cores=None, platform=platform
    ),
  )


def resolve_axis_sizes(
  axis_sizes: configs.Mesh, num_devices: int
) -> tuple[int, int, int]:
  """Returns the sizes of (data, fsdp, tensor), with data=-1 resolved.

  Raises:
    UserError: the product of the sizes is not the number of devices.
  """
  data, fsdp, tensor = axis_sizes.data, axis_sizes.fsdp, axis_sizes.tensor
  if data == -1:
    data = num_devices // (fsdp * tensor)
  if data < 1 or data * fsdp * tensor != num_devices:
    raise UserError(
      f"data={axis_sizes.data} fsdp={fsdp} tensor={tensor} does not make"
      f" {num_devices} device{'s' if num_devices != 1 else ''}",
      field="mesh",
      fix="choose --mesh.data, .fsdp and .tensor so that their product is the"
      " number of devices; --mesh.data=-1 uses all remaining devices",
      code="mesh_size",
    )
  return data, fsdp, tensor


def with_mesh(mesh: AnyMesh, function: F) -> F:
  """Wraps a function so that tracing it applies `sharding.RULES` on a mesh.

  The caller jits the result.
  """
  context = sharding.ShardingContext(mesh)

  @functools.wraps(function)
  def wrapped(*args: Any, **kwargs: Any) -> Any:
    with sharding.sharding_context(context):
      return function(*args, **kwargs)

  # JAX names a program after its function, and a partial has no name.
  wrapped.__name__ = getattr(function, "func", function).__name__
  # The type checker cannot infer that `wrapped` has the signature F.
  result: Any = wrapped
  return result


def jit_per_mesh(
  function: Callable[..., Any], **options: Any
) -> Callable[[Mesh], Any]:
  """Returns a function from a mesh to the program jitted for that mesh.

  Programs are cached by mesh.

  Args:
    function: function to jit.
    options: options of `jax.jit`.
  """

  @functools.cache
  def jit_for_mesh(mesh: Mesh) -> Any:
    return jax.jit(with_mesh(mesh, function), **options)

  return jit_for_mesh


def round_up_to_shards(size: int, mesh: AnyMesh) -> int:
  """Rounds a batch size up to a multiple of the number of batch shards."""
  shards = batch_shards(mesh)
  return -(-size // shards) * shards


def check_divisible(size: int, mesh: AnyMesh) -> None:
  """Checks that a batch has the same number of rows in each shard.

  Args:
    size: rows of a global batch.
    mesh: the mesh; a batch is split over its data and fsdp axes.

  Raises:
    UserError: `uneven_batch`.
  """
  shards = batch_shards(mesh)
  if size % shards:
    raise UserError(
      f"a batch of {size} rows cannot be split into {shards} shards"
      " (data × fsdp)",
      field="mesh",
      fix=f"choose batch sizes that are multiples of {shards}",
      code="uneven_batch",
    )
