"""Parts of a network that a mesh's tensor axis does not divide.

Each chip holds and computes the whole of such a part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from instructgpt_jax import configs


def shard_size(size: int, shards: int) -> float:
  """Returns the size of an axis on one chip; all if shards do not divide it."""
  return size if size % shards else size / shards


def largest_tensor_axis(models: Sequence[configs.Model], chips: int) -> int:
  """Returns the largest tensor axis that divides all parts of all networks."""
  sizes = [size for c in models for size in (c.padded_kv_heads, c.mlp_dim)]
  return math.gcd(chips, *sizes)


class LargerModel(NamedTuple):
  """A network with more of one part.

  Attributes:
    model: the network.
    share: the part's FLOPs over those that the larger network adds.
  """

  model: configs.Model
  share: float


def larger_models(model: configs.Model, tensor: int) -> Iterator[LargerModel]:
  """Yields a larger network for each part that is whole on each chip.

  The FLOPs of attention grow with the width of a head, those of the MLP
  with its width, and those that make keys and values with their heads.
  """
  if model.padded_heads % tensor:
    wider = dataclasses.replace(model, head_dim=2 * model.head_size)
    yield LargerModel(wider, 1.0)
  elif model.padded_kv_heads % tensor:
    # Fewer than heads, which are divided.
    more = dataclasses.replace(
      model, num_kv_heads=model.num_heads, head_padding=0
    )
    yield LargerModel(more, 1.0 / (model.num_heads / model.kv_heads - 1))
  if model.mlp_dim % tensor:
    yield LargerModel(dataclasses.replace(model, d_ff=2 * model.mlp_dim), 1.0)
