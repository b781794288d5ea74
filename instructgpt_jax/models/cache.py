"""The KV cache: a ring buffer that all sequences of a batch share.

Each decode step writes the keys and values of all sequences at the same slot.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.types import Array, pytree


@pytree
class Cache:
  """Keys and values of the tokens so far; one array for each layer.

  With `scan_layers` each tuple has one array with a leading layer axis. Shapes
  are those of `transformer`: K key-value heads, A head size, S slots.
  """

  keys: tuple[Array, ...]  # L × [B, K, S, A]
  values: tuple[Array, ...]  # L × [B, K, S, A]
  valid: Array  # [B, S] bool, True on slots of real tokens
  index: Array  # [] int32, the next token is written at slot index mod S


def make_cache(
  keys: tuple[Array, ...],
  values: tuple[Array, ...],
  segments: Array,
  slots: int,
) -> Cache:
  """Makes a cache with room for later tokens.

  Args:
    keys: of each layer, or of all layers with a leading axis, [B, K, P, A];
      after RoPE.
    values: as the keys.
    segments: [B, P] int32, 0 is padding.
    slots: S >= P.
  """
  length = segments.shape[1]

  def pad(x: Array) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[-2] = (0, slots - length)
    return jnp.pad(x, widths)

  return Cache(
    keys=tuple(map(pad, keys)),
    values=tuple(map(pad, values)),
    valid=jnp.pad(segments > 0, ((0, 0), (0, slots - length))),
    index=jnp.asarray(length, jnp.int32),
  )


class LayerCache(NamedTuple):
  """Keys and values of one layer, and the slot of the token to be written.

  With a layer index, the arrays are those of all layers; a scan over layers
  updates them in place.
  """

  keys: Array  # [B, K, S, A], or [L, B, K, S, A]
  values: Array  # as the keys
  slot: Array  # [] int32
  layer: Array | None = None  # [] int32

  def write(self, key: Array, value: Array) -> LayerCache:
    """Writes a token's [B, K, 1, A] key and value at the slot."""
    keys, values = (
      self._write(old, new)
      for old, new in ((self.keys, key), (self.values, value))
    )
    return self._replace(keys=keys, values=values)

  def read(self) -> tuple[Array, Array]:
    """Returns this layer's [B, K, S, A] keys and values."""
    if self.layer is None:
      return self.keys, self.values
    keys, values = (
      jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False)
      for x in (self.keys, self.values)
    )
    return keys, values

  def _write(self, old: Array, new: Array) -> Array:
    new = new.astype(old.dtype)
    if self.layer is None:
      updated = jax.lax.dynamic_update_slice_in_dim(old, new, self.slot, axis=2)
      return sharding.shard(updated, "batch", "heads", None, None)
    updated = jax.lax.dynamic_update_slice(
      old, new[None], (self.layer, 0, 0, self.slot, 0)
    )
    return sharding.shard(updated, None, "batch", "heads", None, None)
