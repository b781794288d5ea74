"""The decoder itself: embedding, blocks and the final norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instructgpt_jax import configs, sharding
from instructgpt_jax.models import blocks, layers
from instructgpt_jax.models.layers import Norm, kernel_init
from instructgpt_jax.types import Array, AttentionSpan, pytree


@pytree
class Cache:
  """Keys and values of the tokens seen so far; one array a layer.

  With `scan_layers` the tuples hold one array with a leading layer axis.
  """

  keys: tuple[Array, ...]  # L × [B, K, S, D / H]
  values: tuple[Array, ...]  # L × [B, K, S, D / H]
  valid: Array  # [B, S] bool, True where a real token is stored
  index: Array  # [] int32, tokens are written at column index mod S


def _positions(c: configs.Model) -> Any:
  """Half of GPT-2's kernel noise, or sines and cosines of amplitude init_std.

  A shift by one position is then a rotation from the start, which attention to
  "the token after this one's last occurrence" is made of.
  """
  axes = ("position", "embed")
  if c.position_init == "normal":
    return kernel_init(c.init_std / 2, *axes)

  def sinusoid(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    del key
    length, width = shape
    half = -(-width // 2)
    rates = jnp.pi / 2 * c.max_seq_len ** -(jnp.arange(half) / half)
    angles = jnp.arange(length)[:, None] * rates
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return (c.init_std * waves[:, :width]).astype(dtype)

  return nn.with_logical_partitioning(sinusoid, axes)


class Transformer(nn.Module):
  """Embedding, blocks and the final norm; the heads sit on top."""

  config: configs.Model

  def setup(self):
    c = self.config
    self.embedding = nn.Embed(
      c.padded_vocab_size,
      c.d_model,
      dtype=jnp.dtype(c.dtype),
      embedding_init=kernel_init(c.init_std, "vocab", "embed"),
    )
    if c.pos_emb == "learned":
      self.position_embedding = nn.Embed(
        c.max_seq_len + c.position_offset,
        c.d_model,
        dtype=jnp.dtype(c.dtype),
        embedding_init=_positions(c),
      )
    self.final_norm = Norm(c.d_model, c.norm, c.norm_eps)
    if c.scan_layers:
      self.blocks = nn.scan(
        _rematerialised(c, static_argnums=(4,)),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0, nn.broadcast),
        length=c.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
        methods=None,
      )(c)
    else:
      block = _rematerialised(c, static_argnums=(3, 4))
      self.blocks = [block(c) for _ in range(c.num_layers)]

  def _embed(self, tokens: Array, positions: Array) -> Array:
    c = self.config
    found = self.embedding(tokens)
    if c.scale_embeddings:
      found *= jnp.asarray(c.d_model**0.5, found.dtype)
    if c.pos_emb == "learned":
      found += self.position_embedding(positions + c.position_offset)
    return found

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
    reach: AttentionSpan | None = None,
    wanted: Array | None = None,
  ) -> tuple[Array, tuple[Sequence[Array], Sequence[Array]]]:
    """Runs whole rows.

    Args:
      tokens: [B, T] int32.
      segments: [B, T] int32, 0 is padding.
      positions: [B, T] int32 within the segment.
      deterministic: False turns residual dropout on.
      reach: how far tokens look at most; None is anywhere behind them.
      wanted: [B, R] int32, columns to be had, which the last layer alone is run
        for unless layers are scanned; None is all.

    Returns:
      [B, T, D] or [B, R, D] after the final norm; and the layers' keys and
      values, of all columns.
    """
    c = self.config
    x = sharding.shard(self._embed(tokens, positions), "batch", None, None)
    seen = blocks.layer_inputs(
      c,
      blocks.attention_mask(segments),
      lambda: positions[:, :, None] - positions[:, None, :],
      positions,
      reach,
    )
    kinds = blocks.layer_types(c)
    if c.scan_layers:
      x, (keys, values) = self.blocks(x, seen, jnp.array(kinds), deterministic)
      if wanted is not None:
        x = blocks.columns(x, wanted, 1)
      return self.final_norm(x), ((keys,), (values,))
    stored = []
    for block, kind in zip(self.blocks[:-1], kinds, strict=False):
      x, key_value = block(x, seen, kind, deterministic)
      stored.append(key_value)
    x, key_value = self.blocks[-1](x, seen, kinds[-1], deterministic, wanted)
    stored.append(key_value)
    keys, values = zip(*stored, strict=True)
    return self.final_norm(x), (keys, values)

  def decode(
    self, token: Array, position: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """One token a row: token [B], position [B] → [D, B] and the next cache."""
    c = self.config
    x = sharding.shard(self._embed(token, position).T, "embed", "decode_batch")
    columns = cache.valid.shape[1]
    column = cache.index % columns
    places = jnp.arange(columns)
    valid = cache.valid | (places == column)[None]
    # A row's tokens stand side by side and end at this column.
    seen = blocks.layer_inputs(
      c,
      valid[:, None, :],
      lambda: (column - places) % columns,
      position[:, None],
    )
    kinds = blocks.layer_types(c)
    if c.scan_layers:
      x, keys, values = self._decode_scanned(x, seen, kinds, cache, column)
    else:
      stored = []
      for block, kind, k, v in zip(
        self.blocks, kinds, cache.keys, cache.values, strict=True
      ):
        x, key_value = block.decode(x, (k, v), seen, kind, column)
        stored.append(key_value)
      keys, values = zip(*stored, strict=True)
    cache = Cache(keys=keys, values=values, valid=valid, index=cache.index + 1)
    return self.final_norm.columns(x), cache

  def _decode_scanned(
    self,
    x: Array,
    seen: blocks.Views,
    kinds: Sequence[int],
    cache: Cache,
    column: Array,
  ) -> Any:
    block = blocks.Block(self.config, parent=None)
    params = self.blocks.variables["params"]

    def body(carry, layer):
      weights, kind, index = layer
      carry = block.apply(
        {"params": weights}, *carry, seen, kind, column, index, method="decode"
      )
      return carry, None

    stored = (cache.keys[0], cache.values[0])
    (x, (keys, values)), _ = jax.lax.scan(
      body, (x, stored), (params, jnp.array(kinds), jnp.arange(len(kinds)))
    )
    return x, (keys,), (values,)


def _rematerialised(c: configs.Model, static_argnums: Any) -> Any:
  if c.remat == "none":
    return blocks.Block
  policy = (
    jax.checkpoint_policies.save_only_these_names(layers.CHECKPOINT_NAME)
    if c.remat == "dots"
    else None
  )
  return nn.remat(
    blocks.Block,
    policy=policy,
    static_argnums=static_argnums,
    prevent_cse=not c.scan_layers,
  )
