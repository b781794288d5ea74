"""Resumes on a mesh: `python -m tests.training.meshes DIR F T`.

Prints the number of devices, into how many pieces an array is split at most,
and a digest of the state that was restored.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import jax
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.training import networks


def _digest(tree: Any) -> str:
  sums = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    sums.update(np.asarray(leaf).tobytes())
  return sums.hexdigest()


def _pieces(array: jax.Array) -> int:
  return len({str(shard.index) for shard in array.addressable_shards})


def main(directory: str, fsdp: int, tensor: int) -> None:
  """Saves the restored state; the first call saves initial state."""
  mesh = mesh_lib.make_mesh(configs.Mesh(fsdp=fsdp, tensor=tensor))
  model = LanguageModel(
    configs.Model(
      vocab_size=64, max_seq_len=16, num_layers=1, d_model=16, num_heads=4
    )
  )

  def state(seed: int) -> Any:
    params = networks.init_params(model, jax.random.key(seed), mesh)
    optimizer = optimizer_lib.make_optimizer(configs.Optimizer(), 10)
    return networks.train_state(model, params, optimizer, mesh)

  like = state(1)
  with checkpoints.Checkpointer(directory) as saver:
    result = saver.restore_latest(like)
    step, tree, _ = result or (0, state(0), {})
    saver.save(step + 1, tree, {})
  checkpoints.save_model(directory, tree.params, {})
  params = checkpoints.load_model(directory, like.params)
  assert _digest(params) == _digest(tree.params)
  leaves = jax.tree.leaves(tree)
  for a, b in zip(leaves, jax.tree.leaves(like), strict=True):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
  print(len(jax.devices()), max(map(_pieces, leaves)), _digest(tree))


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
