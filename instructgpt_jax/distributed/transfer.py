"""Moves batches from hosts to devices, and results back.

A batch has one batch shard for each (data, fsdp) index, `sharding.batch_shards`
in all. A process shard is the batch shards of one process's devices, which the
process reads. Processes whose devices differ only along the tensor axis read
the same process shard.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from instructgpt_jax.distributed.mesh import check_divisible
from instructgpt_jax.errors import UserError
from instructgpt_jax.sharding import batch_sharding, batch_shards, replicated


@functools.lru_cache
def _process_shard(mesh: Mesh) -> tuple[int, int]:
  """Returns the index of this process's shard, and the number of shards.

  Raises:
    UserError: `overlapping_rows`, two processes have some batch shards in
      common, but not all.
  """
  num_batch_shards = batch_shards(mesh)
  shards_of_processes: dict[int, set[int]] = {}  # batch shards, by process
  # An array with one element for each batch shard shows which is on a device.
  shard_of_devices = batch_sharding(mesh).devices_indices_map(
    (num_batch_shards,)
  )
  for device, (shard,) in shard_of_devices.items():
    shards = shards_of_processes.setdefault(device.process_index, set())
    shards.add(shard.start or 0)
  process_shards = sorted(
    {tuple(sorted(shards)) for shards in shards_of_processes.values()}
  )
  sizes = [len(shard) for shard in process_shards]
  if len(set(sizes)) > 1 or sum(sizes) != num_batch_shards:
    raise UserError(
      "processes share some of their rows of a batch, but not all",
      field="mesh",
      fix="choose a --mesh.tensor that divides the number of devices of a"
      " process, or is a multiple of it",
      code="overlapping_rows",
    )
  local = tuple(sorted(shards_of_processes[jax.process_index()]))
  return process_shards.index(local), len(process_shards)


def get_process_shard(size: int, mesh: Mesh) -> dict[str, int]:
  """Returns which shard of each global batch this process reads.

  Args:
    size: rows of a global batch.
    mesh: the mesh.

  Returns:
    `shard_index` and `shard_count`, arguments of `BatchSpec`.

  Raises:
    UserError: `uneven_batch` or `overlapping_rows`, the rows do not divide
      evenly among the batch shards or the processes.
  """
  check_divisible(size, mesh)
  index, count = _process_shard(mesh)
  return dict(shard_index=index, shard_count=count)


def put_full_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts a batch, which every process has in full, onto the mesh.

  Args:
    batch: tree of numpy arrays [B, …]; scalars are replicated.
    mesh: the mesh.

  Returns:
    The tree as global arrays, split over axis 0.
  """

  def put(array):
    sharding = batch_sharding(mesh) if array.ndim else replicated(mesh)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(put, batch)


def put_local_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts this process's shard of a batch onto the mesh.

  Args:
    batch: tree of numpy arrays, the shard that `get_process_shard` names;
      scalars are replicated.
    mesh: the mesh.

  Returns:
    The tree as global arrays [B, …], split over axis 0.
  """
  row_sharding, scalar_sharding = batch_sharding(mesh), replicated(mesh)
  _, num_process_shards = _process_shard(mesh)

  def put(array):
    if array.ndim == 0:
      return jax.make_array_from_process_local_data(scalar_sharding, array)
    check_divisible(array.shape[0] * num_process_shards, mesh)
    return jax.make_array_from_process_local_data(row_sharding, array)

  return jax.tree.map(put, batch)


def allgather(tree: Any) -> Any:
  """Returns global arrays as numpy arrays, in full in every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
