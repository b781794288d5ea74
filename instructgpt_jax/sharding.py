"""Where the arrays of a step lie on a mesh, by the names of their axes.

Models and losses name the axes of what they compute; `runtime.mesh` says, while
a step is traced, what the names mean. Without a mesh nothing is said.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from instructgpt_jax.types import Array, PyTree


class ShardingContext(NamedTuple):
  """A mesh, and what names of axes mean on it.

  Attributes:
    mesh: the mesh.
    spec: names and shape → over which axes of the mesh an array is split.
  """

  mesh: Mesh | AbstractMesh
  spec: Callable[[Sequence[str | None], Sequence[int]], PartitionSpec]


_PLACES: contextvars.ContextVar[ShardingContext | None] = (
  contextvars.ContextVar("places", default=None)
)


@contextlib.contextmanager
def sharding_context(places: ShardingContext) -> Iterator[None]:
  """What is traced inside is placed so."""
  token = _PLACES.set(places)
  try:
    yield
  finally:
    _PLACES.reset(token)


def shard(x: Array, *names: str | None) -> Array:
  """The same array, split over the mesh as its axes' names say."""
  places = _PLACES.get()
  if places is None or places.mesh.size == 1:
    return x
  spec = places.spec(names, x.shape)
  sharding = jax.sharding.NamedSharding(places.mesh, spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def num_shards(name: str | None, size: int) -> int:
  """Into how many parts the mesh splits an axis of this name and size."""
  places = _PLACES.get()
  spec = None if places is None else places.spec([name], [size])
  if places is None or not spec:
    return 1
  axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
  return math.prod(places.mesh.shape[axis] for axis in axes)


def platform() -> str:
  """What is traced for, "tpu" say: the mesh's devices, or those of JAX."""
  places = _PLACES.get()
  if places is None:
    return jax.default_backend()
  if isinstance(places.mesh, Mesh):
    return places.mesh.devices.flat[0].platform
  device = places.mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def map_shards(
  function: Callable[..., Array],
  arrays: Sequence[Array],
  names: Sequence[Sequence[str | None]],
) -> Array:
  """function(*arrays), by each part of the mesh on its part of all of them.

  Args:
    function: → an array with the axes of the first one.
    arrays: what it is given.
    names: of each array's axes.
  """
  places = _PLACES.get()
  if places is None or places.mesh.size == 1:
    return function(*arrays)
  specs = tuple(
    places.spec(axes, x.shape) for axes, x in zip(names, arrays, strict=True)
  )
  found: Any = jax.shard_map(
    function,
    mesh=places.mesh,
    in_specs=specs,
    out_specs=specs[0],
    check_vma=False,
  )(*arrays)
  return found


def psum_over_batch(
  function: Callable[..., tuple[PyTree, PyTree]], rows: PyTree, whole: PyTree
) -> tuple[PyTree, PyTree]:
  """function(rows, whole), by each part of the mesh on its own rows.

  Args:
    function: → (sums over the rows, something for each row).
    rows: tree of [M, …] arrays, split by rows.
    whole: tree of arrays that each part is given whole.

  Returns:
    The sums over all rows, and what there is for each row.
  """
  places = _PLACES.get()
  count = len(jax.tree.leaves(rows)[0])
  spec = PartitionSpec() if places is None else places.spec(["batch"], [count])
  if places is None or not spec:
    return function(rows, whole)
  axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)

  def of_part(rows: PyTree, whole: PyTree) -> Any:
    sums, by_row = function(rows, whole)
    return jax.lax.psum(sums, axes), by_row

  found: Any = jax.shard_map(
    of_part,
    mesh=places.mesh,
    in_specs=(spec, PartitionSpec()),
    out_specs=(PartitionSpec(), spec),
    axis_names=set(axes),
    check_vma=False,
  )(rows, whole)
  return found
