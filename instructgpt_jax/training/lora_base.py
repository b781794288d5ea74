"""The base model of LoRA adapters, identified by path and checksum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from instructgpt_jax.steps import diagnostics

_add_to_checksum = jax.jit(diagnostics.add_to_checksum)


class LoraBase(NamedTuple):
  """The model that adapters belong to."""

  path: str
  checksum: int
  blocks_only: bool = False  # whether the checksum is of the blocks alone


def base_checksum(
  leaves: Mapping[str, Any], vocab_size: int, *, blocks_only: bool = False
) -> int:
  """Computes a checksum of a model that adapters belong to.

  Args:
    leaves: path → array. Arrays are read one after another.
    vocab_size: number of vocabulary rows that count; the others are padding
      for a mesh.
    blocks_only: whether only the blocks count, as in checkpoints of earlier
      versions.
  """
  checksum = np.uint32(0)
  for path in sorted(leaves):
    if blocks_only and not path.startswith("transformer/blocks"):
      continue
    leaf = leaves[path]
    if path == "transformer/embedding/embedding":
      leaf = leaf[:vocab_size]
    elif path.startswith("unembedding/"):
      leaf = leaf[..., :vocab_size]
    checksum = _add_to_checksum(checksum, leaf)
  return int(checksum)
