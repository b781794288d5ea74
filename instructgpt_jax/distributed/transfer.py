"""Moves batches from hosts to devices, and results back.

Each process reads its shard of every batch. Processes whose devices differ only
along the tensor axis read the same shard.
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
def _local_shards(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count): which of `count` shards this process reads.

  Raises:
    UserError: the rows of two processes overlap without being the same.
  """
  num_shards = batch_shards(mesh)
  rows_by_process: dict[int, set[int]] = {}
  indices = batch_sharding(mesh).devices_indices_map((num_shards,))
  for device, (rows,) in indices.items():
    rows_by_process.setdefault(device.process_index, set()).add(rows.start or 0)
  shards = sorted({tuple(sorted(rows)) for rows in rows_by_process.values()})
  sizes = [len(shard) for shard in shards]
  if len(set(sizes)) > 1 or sum(sizes) != num_shards:
    raise UserError(
      "processes share some of their rows of a batch, but not all",
      field="mesh",
      fix="choose a --mesh.tensor that divides the number of devices of a"
      " process, or is a multiple of it",
      code="overlapping_rows",
    )
  local = tuple(sorted(rows_by_process[jax.process_index()]))
  return shards.index(local), len(shards)


def process_shard(size: int, mesh: Mesh) -> dict[str, int]:
  """Returns `shard_index` and `shard_count` of this process's data reader.

  Args:
    size: rows of a global batch.
    mesh: the mesh.

  Raises:
    UserError: the rows do not divide evenly among devices or processes.
  """
  check_divisible(size, mesh)
  index, count = _local_shards(mesh)
  return dict(shard_index=index, shard_count=count)


def put_replicated_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts a batch that every process has in full onto the mesh.

  Args:
    batch: tree of numpy arrays [B, …]; scalars are replicated.
    mesh: the mesh.

  Returns:
    The tree as global arrays, sharded over axis 0.
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
    batch: tree of numpy arrays, the rows that `process_shard` assigns to this
      process; scalars are replicated.
    mesh: the mesh.

  Returns:
    The tree as global arrays [B, …], sharded over axis 0.
  """
  row_sharding, scalar_sharding = batch_sharding(mesh), replicated(mesh)
  _, num_shards = _local_shards(mesh)

  def put(array):
    if array.ndim == 0:
      return jax.make_array_from_process_local_data(scalar_sharding, array)
    check_divisible(array.shape[0] * num_shards, mesh)
    return jax.make_array_from_process_local_data(row_sharding, array)

  return jax.tree.map(put, batch)


def allgather(tree: Any) -> Any:
  """Returns global arrays as numpy arrays, in full in every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
