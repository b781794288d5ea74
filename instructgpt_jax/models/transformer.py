"""The decoder-only transformer: embed → blocks → final norm.

`LayerInputs` holds the mask and RoPE angles of a layer. `Block` is attention
and MLP on the residual stream. `Transformer` applies the blocks to whole
sequences (`__call__`), or to one token of each with a cache (`decode`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instructgpt_jax import configs, sharding
from instructgpt_jax.models import layers
from instructgpt_jax.models.attention import attend_dense, attention_mask
from instructgpt_jax.models.cache import Cache, LayerCache
from instructgpt_jax.models.kernels import blocked, feature_major
from instructgpt_jax.models.kernels.attention import attend
from instructgpt_jax.models.layers import Dense, Norm, kernel_init
from instructgpt_jax.models.rope import RopeCosSin, apply_rope, rope_cos_sin
from instructgpt_jax.types import Array, AttentionSpan, pytree, static_field

KeysValues = tuple[Array, Array]


@pytree
class LayerInputs:
  """Inputs that layers of the same type share."""

  mask: Array  # [B, T, S] bool, True where a query may attend to a key
  rope: RopeCosSin | None  # None with learned positions
  span: AttentionSpan | None = static_field(None)  # the mask is False outside


# One entry if all layers attend alike; else of full and of windowed layers.
InputsByType = tuple[LayerInputs, ...]


def layer_inputs(
  c: configs.Model,
  mask: Array,
  distance: Callable[[], Array],
  positions: Array,
  span: AttentionSpan | None = None,
) -> InputsByType:
  """Makes the inputs of each layer type.

  Args:
    c: the model.
    mask: [B, T, S] bool, the mask of layers without a window.
    distance: returns [B, T, S] int32, positions from a key to a query.
    positions: [B, T] int32 of the queries.
    span: the mask is False outside it.
  """
  types = sorted({c.has_sliding_window(i) for i in range(c.num_layers)})

  def inputs_of(windowed: bool) -> LayerInputs:
    cos_sin = None
    window = c.sliding_window if windowed else None
    layer_mask = mask & (distance() < window) if window else mask
    if c.pos_emb == "rope":
      cos_sin = rope_cos_sin(c, positions, windowed)
    return LayerInputs(mask=layer_mask, rope=cos_sin, span=span)

  return tuple(map(inputs_of, types))


def layer_types(c: configs.Model) -> list[int]:
  """Returns the index into `layer_inputs` for each layer."""
  windowed = [c.has_sliding_window(i) for i in range(c.num_layers)]
  mixed = len(set(windowed)) > 1
  return [int(mixed and w) for w in windowed]


def _select(inputs: InputsByType, layer_type: int | Array) -> LayerInputs:
  if len(inputs) == 1:
    return inputs[0]
  if isinstance(layer_type, int):
    return inputs[layer_type]
  return jax.tree.map(lambda *x: jnp.where(layer_type, x[1], x[0]), *inputs)


def _shard_heads(x: Array) -> Array:
  return sharding.shard(x, "batch", "heads", None, None)  # [B, H, T, D / H]


def _take_positions(x: Array, positions: Array, axis: int) -> Array:
  """Gathers [B, R] positions of [B, …, T, …]."""
  shape = [1] * x.ndim
  shape[0], shape[axis] = positions.shape
  return jnp.take_along_axis(x, positions.reshape(shape), axis=axis)


class Block(nn.Module):
  """Attention and MLP, each after a norm and added to the residual stream.

  `config.Model.block` may put both in parallel, or norms after them as well.
  """

  config: configs.Model

  def setup(self):
    c = self.config
    dense = functools.partial(
      Dense, dtype=jnp.dtype(c.dtype), stddev=c.init_std, alpha=c.lora_alpha
    )
    norm = functools.partial(Norm, kind=c.norm, epsilon=c.norm_eps)
    # Smaller at the start: layers that write to the residual stream.
    output_std = c.init_std / (2 * c.num_layers) ** 0.5
    self._setup_attention(
      functools.partial(dense, rank=c.adapter_rank("attention")),
      norm,
      output_std,
    )
    self._setup_mlp(
      functools.partial(dense, rank=c.adapter_rank("mlp")), norm, output_std
    )
    self.drop = nn.Dropout(c.dropout)
    self.act = layers.activation(c.activation, c.gated_mlp)

  @nn.nowrap
  def _setup_attention(self, dense: Any, norm: Any, output_std: float) -> None:
    c = self.config
    heads = (c.padded_heads, c.head_size)
    kv_heads = (c.padded_kv_heads, c.head_size)
    axes = ("embed", None, "heads", None)
    self.norm_attention = norm(c.d_model)
    if c.kv_heads == c.num_heads:
      self.qkv = dense((c.d_model, 3, *heads), axes, use_bias=c.qkv_bias)
    else:
      self.query = dense(
        (c.d_model, *heads), ("embed", "heads", None), use_bias=c.qkv_bias
      )
      self.key_value = dense(
        (c.d_model, 2, *kv_heads), axes, use_bias=c.qkv_bias
      )
    if c.qk_norm:
      self.norm_query = norm(c.head_size, axis_name=None)
      self.norm_key = norm(c.head_size, axis_name=None)
    self.project = dense(
      (*heads, c.d_model),
      ("heads", None, "embed"),
      inputs=2,
      stddev=output_std,
      use_bias=c.out_bias,
      zeros=c.padded_heads - c.num_heads,
    )
    if c.block == "sandwich":
      self.norm_attended = norm(c.d_model)

  @nn.nowrap
  def _setup_mlp(self, dense: Any, norm: Any, output_std: float) -> None:
    c = self.config
    if c.block != "parallel_one_norm":
      self.norm_mlp = norm(c.d_model)
    if c.block == "sandwich":
      self.norm_mixed = norm(c.d_model)
    self.up = dense(
      (c.d_model, 2, c.mlp_dim) if c.gated_mlp else (c.d_model, c.mlp_dim),
      ("embed", None, "mlp") if c.gated_mlp else ("embed", "mlp"),
      use_bias=c.mlp_bias,
    )
    self.down = dense(
      (c.mlp_dim, c.d_model),
      ("mlp", "embed"),
      stddev=output_std,
      use_bias=c.mlp_bias,
    )

  def __call__(
    self,
    x: Array,
    inputs: InputsByType,
    layer_type: int | Array,
    deterministic: bool,
    query_positions: Array | None = None,
    cache: LayerCache | None = None,
  ) -> tuple[Array, KeysValues]:
    """Applies the block to whole sequences, or to one token with a cache.

    Args:
      x: the residual stream, [B, T, D]; with a cache [D, B].
      inputs: of each layer type.
      layer_type: index into `inputs`.
      deterministic: False turns residual dropout on.
      query_positions: [B, R] int32, positions to compute; None is all.
      cache: keys and values of earlier tokens; T is then 1.

    Returns:
      The next residual stream [B, T, D], [B, R, D] or [D, B]; and the keys and
      values [B, K, T, D / H], or the updated ones of the cache.
    """
    layer = _select(inputs, layer_type)
    axis = -1 if cache is None else feature_major.AXIS
    query, key, value = self._heads(x, axis)
    query, key = self._position(query, key, layer)
    query, key, value = map(_shard_heads, (query, key, value))
    if cache is None:
      keys_values = self._repeat_kv_heads(key, value)
      if query_positions is not None:
        x = _take_positions(x, query_positions, 1)
      attended = self._attend(query, *keys_values, layer, query_positions)
      flat = x.reshape(-1, x.shape[-1])
      attended = attended.reshape(len(flat), -1)
      flat = self._add_outputs(flat, attended, deterministic, axis)
      return flat.reshape(x.shape), (key, value)
    cache = cache.write(key, value)
    attended = self._attend_cache(query, cache, layer)
    x = self._add_outputs(x, attended, deterministic, axis)
    return x, (cache.keys, cache.values)

  def _heads(self, x: Array, axis: int) -> list[Array]:
    """Computes query, key and value of norm(x), each [B, ·, T, D / H]."""
    c = self.config
    if c.kv_heads == c.num_heads:
      projections = ((self.qkv, 3),)
    else:
      projections = ((self.query, 1), (self.key_value, 2))
    norm = self.norm_attention
    if axis == feature_major.AXIS:
      x = norm(x, axis)
      split = [
        feature_major.split_heads(dense.split(x, parts, axis=axis), c.head_size)
        for dense, parts in projections
      ]
      return [heads for parts in split for heads in parts]
    flat = x.reshape(-1, x.shape[-1])
    return [
      part.reshape(*x.shape[:2], -1, c.head_size).swapaxes(1, 2)
      for dense, parts in projections
      for part in dense.split(flat, parts, norm.function, norm.weights())
    ]

  def _position(
    self, query: Array, key: Array, layer: LayerInputs
  ) -> tuple[Array, Array]:
    """Normalises, rotates and scales query and key, where configured."""
    c = self.config
    if c.qk_norm:
      query, key = self.norm_query(query), self.norm_key(key)
    if layer.rope is not None:
      query = apply_rope(query, layer.rope, c.rope_interleaved)
      key = apply_rope(key, layer.rope, c.rope_interleaved)
    if c.query_pre_attn_scalar:
      query *= (c.head_size / c.query_pre_attn_scalar) ** 0.5
    return query, key

  def _repeat_kv_heads(self, key: Array, value: Array) -> KeysValues:
    """Repeats keys and values for each query head of their group."""
    c = self.config
    if c.kv_heads == c.num_heads:
      return key, value
    repeats = c.num_heads // c.kv_heads
    return jnp.repeat(key, repeats, axis=1), jnp.repeat(value, repeats, axis=1)

  def _attend(
    self,
    query: Array,
    key: Array,
    value: Array,
    layer: LayerInputs,
    query_positions: Array | None,
  ) -> Array:
    """Attends in whole sequences; returns [B, T, H, D / H] or [B, R, …]."""
    c = self.config
    cap, mask = c.attn_logit_softcap, layer.mask
    if query_positions is not None and blocked.fits_one_block(
      query_positions.shape[1], mask.shape[1]
    ):
      query = _take_positions(query, query_positions, 2)
      mask = _take_positions(mask, query_positions, 1)
      attended, _ = attend_dense(query, key, value, mask, cap)
      return _shard_heads(attended).swapaxes(1, 2)
    attended = attend(query, key, value, mask, cap, layer.span)
    attended = _shard_heads(attended).swapaxes(1, 2)
    if query_positions is not None:
      attended = _take_positions(attended, query_positions, 1)
    return attended

  def _attend_cache(
    self, query: Array, cache: LayerCache, layer: LayerInputs
  ) -> Array:
    """Attends from one token to the cache; returns [D, B]."""
    c = self.config
    keys, values = cache.read()
    # The query heads of a group are queries of the same keys.
    query = query.reshape(len(query), c.padded_kv_heads, -1, c.head_size)
    attended, _ = attend_dense(
      query, keys, values, layer.mask, c.attn_logit_softcap
    )
    return feature_major.merge_heads(attended)

  def _add_outputs(
    self, x: Array, attended: Array, deterministic: bool, axis: int
  ) -> Array:
    """Adds attention's output and then the MLP's to the residual stream."""
    sandwich = self.config.block == "sandwich"
    y = self.project(attended, axis=axis)
    if sandwich:
      y = self.norm_attended(y, axis)
    after = x + self.drop(y, deterministic=deterministic)
    y = self.down(self._mlp_hidden(x, after, axis), self.act, axis=axis)
    if sandwich:
      y = self.norm_mixed(y, axis)
    return after + self.drop(y, deterministic=deterministic)

  def _mlp_hidden(self, x: Array, after: Array, axis: int) -> Array:
    """Computes the MLP's hidden layer, before its activation.

    Args:
      x: the residual stream before attention, which parallel blocks read.
      after: the residual stream after attention.
      axis: the feature axis.
    """
    c = self.config
    parallel = c.block in ("parallel", "parallel_one_norm")
    read = x if parallel else after
    one_norm = c.block == "parallel_one_norm"
    norm = self.norm_attention if one_norm else self.norm_mlp
    if axis == feature_major.AXIS:
      read, prologue = norm(read, axis), ()
    else:
      prologue = norm.function, norm.weights()
    if c.gated_mlp and sharding.num_shards("mlp", c.mlp_dim) > 1:
      # The mesh splits each half of the gated MLP.
      halves = self.up.split(read, 2, *prologue, axis=axis)
      return halves if axis == feature_major.AXIS else jnp.stack(halves, axis=1)
    return self.up(read, *prologue, axis=axis)


def _position_init(c: configs.Model) -> Any:
  """Returns noise of half GPT-2's amplitude, or sinusoids of init_std.

  With sinusoids a shift by one position is a rotation from the start, which
  attention to "the token after the last occurrence of this one" uses.
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
  """Token embedding, blocks and the final norm; `heads.py` adds the heads."""

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
        embedding_init=_position_init(c),
      )
    self.final_norm = Norm(c.d_model, c.norm, c.norm_eps)
    if c.scan_layers:
      self.blocks = nn.scan(
        _remat_block(c, static_argnums=(4,)),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0, nn.broadcast),
        length=c.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
        methods=None,
      )(c)
    else:
      block = _remat_block(c, static_argnums=(3, 4))
      self.blocks = [block(c) for _ in range(c.num_layers)]

  def _embed(self, tokens: Array, positions: Array) -> Array:
    c = self.config
    x = self.embedding(tokens)
    if c.scale_embeddings:
      x *= jnp.asarray(c.d_model**0.5, x.dtype)
    if c.pos_emb == "learned":
      x += self.position_embedding(positions + c.position_offset)
    return x

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
    span: AttentionSpan | None = None,
    query_positions: Array | None = None,
  ) -> tuple[Array, tuple[Sequence[Array], Sequence[Array]]]:
    """Applies the transformer to whole sequences.

    Args:
      tokens: [B, T] int32.
      segments: [B, T] int32, 0 is padding.
      positions: [B, T] int32 within the segment.
      deterministic: False turns residual dropout on.
      span: how far tokens attend; None is no limit.
      query_positions: [B, R] int32, positions to return; None is all. Without
        `scan_layers` the last layer computes only these.

    Returns:
      [B, T, D] or [B, R, D] after the final norm; and the layers' keys and
      values at all positions.
    """
    c = self.config
    x = sharding.shard(self._embed(tokens, positions), "batch", None, None)
    inputs = layer_inputs(
      c,
      attention_mask(segments),
      lambda: positions[:, :, None] - positions[:, None, :],
      positions,
      span,
    )
    types = layer_types(c)
    if c.scan_layers:
      x, (keys, values) = self.blocks(
        x, inputs, jnp.array(types), deterministic
      )
      if query_positions is not None:
        x = _take_positions(x, query_positions, 1)
      return self.final_norm(x), ((keys,), (values,))
    keys_values = []
    for block, layer_type in zip(self.blocks[:-1], types, strict=False):
      x, key_value = block(x, inputs, layer_type, deterministic)
      keys_values.append(key_value)
    x, key_value = self.blocks[-1](
      x, inputs, types[-1], deterministic, query_positions
    )
    keys_values.append(key_value)
    keys, values = zip(*keys_values, strict=True)
    return self.final_norm(x), (keys, values)

  def decode(
    self, token: Array, position: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """Applies the transformer to one token of each sequence.

    Args:
      token: [B] int32.
      position: [B] int32 within the sequence.
      cache: keys and values of earlier tokens.

    Returns:
      [D, B] after the final norm, and the next cache.
    """
    c = self.config
    x = self._embed(token, position).T
    x = sharding.shard(x, "embed", "decode_batch")
    num_slots = cache.valid.shape[1]
    slot = cache.index % num_slots
    slots = jnp.arange(num_slots)
    valid = cache.valid | (slots == slot)[None]
    # A sequence's tokens are in adjacent slots that end at this one.
    inputs = layer_inputs(
      c,
      valid[:, None, :],
      lambda: (slot - slots) % num_slots,
      position[:, None],
    )
    types = layer_types(c)
    if c.scan_layers:
      x, keys, values = self._decode_scanned(x, inputs, types, cache, slot)
    else:
      keys_values = []
      for block, layer_type, k, v in zip(
        self.blocks, types, cache.keys, cache.values, strict=True
      ):
        x, key_value = block(
          x, inputs, layer_type, True, None, LayerCache(k, v, slot)
        )
        keys_values.append(key_value)
      keys, values = zip(*keys_values, strict=True)
    cache = Cache(keys=keys, values=values, valid=valid, index=cache.index + 1)
    return self.final_norm(x, feature_major.AXIS), cache

  def _decode_scanned(
    self,
    x: Array,
    inputs: InputsByType,
    types: Sequence[int],
    cache: Cache,
    slot: Array,
  ) -> Any:
    """Scans over layers, and updates the cache of all layers in place."""
    block = Block(self.config, parent=None)
    params = self.blocks.variables["params"]

    def body(carry, layer):
      x, (keys, values) = carry
      weights, layer_type, index = layer
      layer_cache = LayerCache(keys, values, slot, index)
      carry = block.apply(
        {"params": weights}, x, inputs, layer_type, True, None, layer_cache
      )
      return carry, None

    keys_values = (cache.keys[0], cache.values[0])
    (x, (keys, values)), _ = jax.lax.scan(
      body, (x, keys_values), (params, jnp.array(types), jnp.arange(len(types)))
    )
    return x, (keys,), (values,)


def _remat_block(c: configs.Model, static_argnums: Any) -> Any:
  """Returns `Block`, recomputed in the backward pass as `config.remat` says."""
  if c.remat == "none":
    return Block
  policy = (
    jax.checkpoint_policies.save_only_these_names(layers.CHECKPOINT_NAME)
    if c.remat == "dots"
    else None
  )
  return nn.remat(
    Block,
    policy=policy,
    static_argnums=static_argnums,
    prevent_cse=not c.scan_layers,
  )
