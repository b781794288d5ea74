"""The decoder-only transformer: embed → blocks → final norm.

`Block` is attention and MLP on the residual stream. `Transformer` applies the
blocks. `heads.py` adds what reads its output: the unembedding or a scalar.

Both modules have two methods, which lay activations out differently:

  __call__   whole sequences, to train, to score, and to read a prompt. The
             residual stream is [B, T, D]. Dense layers get it flat, [B · T, D],
             since CPUs are slow at gradients of three axes.
  decode     one token of each sequence, with a KV cache. The residual stream is
             feature-major, [D, B], because a CPU then reads each kernel in the
             order in which it is stored; see `kernels/feature_major.py`. It
             needs the parameters of `heads.decoding_params`.

Functions for both layouts take `axis`, the position of the feature axis: −1 in
[B · T, D], and `feature_major.AXIS`, which is 0, in [D, B]. Queries, keys and
values are [B, heads, T, A] in both; T is 1 while decoding.

A prologue is a norm or activation fused into a dense layer, which computes
prologue(x) · kernel and stores only x for the backward pass.

Shape letters:

  B  sequences                       T  tokens of each
  D  model width                     F  width of the MLP
  H  query heads                     K  key-value heads
  A  head size, `Model.head_size`    S  slots of the cache
  R  positions whose output is       M  tokens of all sequences, B · T or B · R
     computed

H and K count heads of padding too (`Model.padded_heads`, `padded_kv_heads`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from instructgpt_jax.models.layer_inputs import (
  InputsByType,
  LayerInputs,
  layer_types,
  make_layer_inputs,
  select_layer_inputs,
)
from instructgpt_jax.models.layers import Dense, Norm, kernel_init
from instructgpt_jax.models.rope import apply_rope
from instructgpt_jax.types import Array, AttentionSpan

KeysValues = tuple[Array, Array]


class Block(nn.Module):
  """Attention and MLP, each after a norm and added to the residual stream.

  `configs.Model.block` says in which order:

    sequential         x += attention(norm(x)), then x += mlp(norm(x))
    sandwich           x += norm(attention(norm(x))), then
                       x += norm(mlp(norm(x)))
    parallel           x += attention(norm(x)) + mlp(norm(x)), two norms
    parallel_one_norm  the same with one norm for both

  The names of a block's attributes are those of parameters in checkpoints.
  """

  config: configs.Model

  def setup(self):
    c = self.config
    dense = functools.partial(
      Dense, dtype=jnp.dtype(c.dtype), stddev=c.init_std, alpha=c.lora_alpha
    )
    norm = functools.partial(Norm, kind=c.norm, epsilon=c.norm_eps)
    # Layers that write to the residual stream start smaller, as in GPT-2.
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
    """Makes the layers of attention, as a part of `setup`."""
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
    # Attention's output projection; those to heads are in `_qkv_layers`.
    self.project = dense(
      (*heads, c.d_model),
      ("heads", None, "embed"),
      inputs=2,
      stddev=output_std,
      use_bias=c.out_bias,
      zeros=c.padded_heads - c.num_heads,
    )
    if c.block == "sandwich":
      # The norm after attention (post-norm), as in Gemma 2.
      self.norm_attended = norm(c.d_model)

  @nn.nowrap
  def _setup_mlp(self, dense: Any, norm: Any, output_std: float) -> None:
    """Makes the layers of the MLP, as a part of `setup`."""
    c = self.config
    if c.block != "parallel_one_norm":
      self.norm_mlp = norm(c.d_model)
    if c.block == "sandwich":
      self.norm_mixed = norm(c.d_model)  # the norm after the MLP
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
  ) -> tuple[Array, KeysValues]:
    """Applies the block to whole sequences.

    Args:
      x: [B, T, D], the residual stream.
      inputs: mask and RoPE angles of each layer type, full and windowed.
      layer_type: index into `inputs`.
      deterministic: False turns residual dropout on.
      query_positions: [B, R] int32, positions to compute; None is all.

    Returns:
      The next residual stream, [B, T, D] or [B, R, D]; and the keys (after
      RoPE) and values of all positions, [B, K, T, A].
    """
    layer = select_layer_inputs(inputs, layer_type)
    query, key, value = self._project_heads(x)
    query, key = self._transform_query_key(query, key, layer)
    query, key, value = map(_shard_heads, (query, key, value))
    repeated = self._repeat_kv_heads(key, value)
    if query_positions is not None:
      x = _take_positions(x, query_positions, axis=1)
    attended = self._attend(query, *repeated, layer, query_positions)
    flat = x.reshape(-1, x.shape[-1])
    attended = attended.reshape(len(flat), -1)
    flat = self._add_attention_and_mlp(flat, attended, deterministic, axis=-1)
    return flat.reshape(x.shape), (key, value)

  def decode(
    self,
    x: Array,
    inputs: InputsByType,
    layer_type: int | Array,
    cache: LayerCache,
  ) -> tuple[Array, KeysValues]:
    """Applies the block to one token of each sequence.

    It needs the parameters of `feature_major.transpose_kernels`, which
    `heads.decoding_params` calls.

    Args:
      x: [D, B], the residual stream.
      inputs: mask and RoPE angles of each layer type, full and windowed.
      layer_type: index into `inputs`.
      cache: keys and values of earlier tokens.

    Returns:
      The next residual stream, [D, B]; and the updated arrays of `cache`, see
      `LayerCache`.
    """
    layer = select_layer_inputs(inputs, layer_type)
    query, key, value = self._project_token_heads(x)
    query, key = self._transform_query_key(query, key, layer)
    query, key, value = map(_shard_heads, (query, key, value))
    cache = cache.write(key, value)
    attended = self._attend_cache(query, cache, layer)
    x = self._add_attention_and_mlp(
      x, attended, deterministic=True, axis=feature_major.AXIS
    )
    return x, (cache.keys, cache.values)

  def _qkv_layers(self) -> Sequence[tuple[Dense, int]]:
    """Returns the projections to heads, each with its number of parts.

    The parts of all are query, key and value, in this order.
    """
    c = self.config
    if c.kv_heads == c.num_heads:
      return ((self.qkv, 3),)
    return (self.query, 1), (self.key_value, 2)

  def _project_heads(self, x: Array) -> list[Array]:
    """Projects norm(x) to query, key and value; x is [B, T, D].

    The norm is a prologue of the dense layer, which then stores only x for the
    backward pass.
    """
    norm = self.norm_attention
    flat = x.reshape(-1, x.shape[-1])
    return [
      output.reshape(*x.shape[:2], -1, self.config.head_size).swapaxes(1, 2)
      for dense, count in self._qkv_layers()
      for output in dense.split(
        flat, count, prologue=norm.function, weights=norm.weights()
      )
    ]

  def _project_token_heads(self, x: Array) -> list[Array]:
    """Projects norm(x) to query, key and value; x is [D, B]."""
    axis = feature_major.AXIS
    normed = self.norm_attention(x, axis)
    outputs = [
      feature_major.split_heads(
        dense.split(normed, count, axis=axis), self.config.head_size
      )
      for dense, count in self._qkv_layers()
    ]
    return [heads for output in outputs for heads in output]

  def _transform_query_key(
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
      # Attention divides by √head_size; this makes it √query_pre_attn_scalar.
      query *= (c.head_size / c.query_pre_attn_scalar) ** 0.5
    return query, key

  def _repeat_kv_heads(self, key: Array, value: Array) -> KeysValues:
    """Repeats keys and values for each query head of their group."""
    c = self.config
    if c.kv_heads == c.num_heads:
      return key, value
    # With padding the ratio is the same.
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
    """Attends within whole sequences.

    Few query positions are selected before attention, which then needs no
    kernel; many are selected after it.

    Args:
      query: [B, H, T, A].
      key: [B, H, T, A].
      value: [B, H, T, A].
      layer: the layer's inputs.
      query_positions: [B, R] int32, or None for all positions.

    Returns:
      [B, T, H, A], or [B, R, H, A] at the query positions.
    """
    cap, mask = self.config.attn_logit_softcap, layer.mask
    if query_positions is not None and blocked.fits_one_block(
      query_positions.shape[1], mask.shape[1]
    ):
      query = _take_positions(query, query_positions, axis=2)
      mask = _take_positions(mask, query_positions, axis=1)
      attended, _ = attend_dense(query, key, value, mask, cap)
      return _shard_heads(attended).swapaxes(1, 2)
    attended = attend(query, key, value, mask, cap, layer.span)
    attended = _shard_heads(attended).swapaxes(1, 2)
    if query_positions is not None:
      attended = _take_positions(attended, query_positions, axis=1)
    return attended

  def _attend_cache(
    self, query: Array, cache: LayerCache, layer: LayerInputs
  ) -> Array:
    """Attends from one token, query [B, H, 1, A], to the cache.

    Returns:
      [H · A, B], the input of `project`.
    """
    c = self.config
    keys, values = cache.read()
    # Query heads that share a key-value head become queries of that head,
    # [B, K, H / K, A], so that the cache is not repeated. The mask of the
    # one token applies to all of them.
    query = query.reshape(len(query), c.padded_kv_heads, -1, c.head_size)
    attended, _ = attend_dense(
      query, keys, values, layer.mask, c.attn_logit_softcap
    )
    return feature_major.merge_heads(attended)

  def _add_attention_and_mlp(
    self, x: Array, attended: Array, deterministic: bool, axis: int
  ) -> Array:
    """Adds the outputs of attention and of the MLP to the residual stream.

    Args:
      x: [M, D], the residual stream before the block; or [D, B] with axis 0.
      attended: [M, H · A], attention's weighted values; or [H · A, B].
      deterministic: False turns residual dropout on.
      axis: the feature axis.
    """
    sandwich = self.config.block == "sandwich"
    attention_output = self.project(attended, axis=axis)
    if sandwich:
      attention_output = self.norm_attended(attention_output, axis)
    after_attention = x + self.drop(
      attention_output, deterministic=deterministic
    )
    hidden = self._mlp_hidden(x, after_attention, axis)
    mlp_output = self.down(hidden, prologue=self.act, axis=axis)
    if sandwich:
      mlp_output = self.norm_mixed(mlp_output, axis)
    return after_attention + self.drop(mlp_output, deterministic=deterministic)

  def _mlp_hidden(
    self, before_attention: Array, after_attention: Array, axis: int
  ) -> Array:
    """Computes the MLP's hidden layer, before its activation.

    Args:
      before_attention: the residual stream that parallel blocks read.
      after_attention: the residual stream that all other blocks read.
      axis: the feature axis.

    Returns:
      [M, F], or gate and values of a gated MLP, [M, 2 F], or [M, 2, F] where
      the mesh splits F. With axis 0, B is the last axis instead of M the first:
      [F, B], [2 F, B] or [2, F, B].
    """
    c = self.config
    parallel = c.block in ("parallel", "parallel_one_norm")
    x = before_attention if parallel else after_attention
    one_norm = c.block == "parallel_one_norm"
    norm = self.norm_attention if one_norm else self.norm_mlp
    prologue, weights = norm.function, norm.weights()
    if c.gated_mlp and sharding.num_shards("mlp", c.mlp_dim) > 1:
      # The mesh splits gate and values alike, so they have an axis of their own
      # in the hidden layer. With axis 0 `split` returns [2, F, B], else a list.
      halves = self.up.split(
        x, 2, prologue=prologue, weights=weights, axis=axis
      )
      return halves if axis == feature_major.AXIS else jnp.stack(halves, axis=1)
    return self.up(x, prologue=prologue, weights=weights, axis=axis)


def _shard_heads(x: Array) -> Array:
  """Shards [B, H, T, A] by sequences and heads."""
  return sharding.shard(x, "batch", "heads", None, None)


def _take_positions(x: Array, positions: Array, axis: int) -> Array:
  """Selects [B, R] positions of an axis: [B, …, T, …] → [B, …, R, …]."""
  shape = [1] * x.ndim
  shape[0], shape[axis] = positions.shape
  return jnp.take_along_axis(x, positions.reshape(shape), axis=axis)


class Transformer(nn.Module):
  """Token embedding, blocks and the final norm; `heads.py` adds the heads.

  With `scan_layers` one block is compiled and run for all layers, whose
  parameters are stacked. Otherwise each layer is a block of its own.
  """

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
    # Static arguments are counted from self, which is 0: 3 is the layer type,
    # which a scan has to trace, and 4 is `deterministic`.
    if c.scan_layers:
      self.blocks = nn.scan(
        _remat_block(c, static_argnums=(4,)),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        # Of the arguments after x: inputs, layer type, deterministic.
        in_axes=(nn.broadcast, 0, nn.broadcast),
        length=c.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(c)
    else:
      block = _remat_block(c, static_argnums=(3, 4))
      self.blocks = [block(c) for _ in range(c.num_layers)]

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
      segments: [B, T] int32, 0 is padding; see `types`.
      positions: [B, T] int32; see `types`.
      deterministic: False turns residual dropout on.
      span: how far tokens attend; None is no limit.
      query_positions: [B, R] int32, positions to return; None is all. Without
        `scan_layers` the last layer computes its output projection and MLP only
        for these.

    Returns:
      [B, T, D] or [B, R, D] after the final norm; and the layers' keys (after
      RoPE) and values at all positions, as in `Cache`.
    """
    c = self.config
    x = sharding.shard(self._embed(tokens, positions), "batch", None, None)
    inputs = make_layer_inputs(
      c,
      attention_mask(segments),
      distance=lambda: positions[:, :, None] - positions[:, None, :],
      positions=positions,
      span=span,
    )
    type_of_layer = layer_types(c)
    if c.scan_layers:
      x, (keys, values) = self.blocks(
        x, inputs, jnp.array(type_of_layer), deterministic
      )
      if query_positions is not None:
        x = _take_positions(x, query_positions, axis=1)
      return self.final_norm(x), ((keys,), (values,))
    keys_values = []
    for i, block in enumerate(self.blocks):
      is_last = i == c.num_layers - 1
      x, key_value = block(
        x,
        inputs,
        type_of_layer[i],
        deterministic,
        query_positions if is_last else None,
      )
      keys_values.append(key_value)
    keys, values = zip(*keys_values, strict=True)
    return self.final_norm(x), (keys, values)

  def decode(
    self, token: Array, position: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """Applies the transformer to one token of each sequence.

    It needs the parameters of `feature_major.transpose_kernels`, which
    `heads.decoding_params` calls.

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
    # The cache is a ring buffer: all sequences write to the same slot, which
    # goes up by one at each step and returns to 0 after the last slot. The
    # tokens of a sequence are in adjacent slots of the ring, up to this one, so
    # a key is as far back in positions as in slots.
    num_slots = cache.valid.shape[1]
    slot = cache.index % num_slots
    slots = jnp.arange(num_slots)
    valid = cache.valid | (slots == slot)[None]
    inputs = make_layer_inputs(
      c,
      valid[:, None, :],
      distance=lambda: (slot - slots) % num_slots,
      positions=position[:, None],
    )
    if c.scan_layers:
      x, keys, values = self._decode_scanned(x, inputs, cache, slot)
    else:
      keys_values = []
      for block, layer_type, layer_keys, layer_values in zip(
        self.blocks, layer_types(c), cache.keys, cache.values, strict=True
      ):
        layer_cache = LayerCache(layer_keys, layer_values, slot)
        x, key_value = block.decode(x, inputs, layer_type, layer_cache)
        keys_values.append(key_value)
      keys, values = zip(*keys_values, strict=True)
    cache = Cache(keys=keys, values=values, valid=valid, index=cache.index + 1)
    return self.final_norm(x, feature_major.AXIS), cache

  def _decode_scanned(
    self, x: Array, inputs: InputsByType, cache: Cache, slot: Array
  ) -> tuple[Array, tuple[Array], tuple[Array]]:
    """Scans `Block.decode` over layers, and updates their cache in place.

    The whole cache is a carry of the scan, and each layer writes one slot of
    it. `nn.scan` would slice each layer's keys and values, and stack the
    results.

    Returns:
      The residual stream [D, B], and the stacked keys and values.
    """
    block = Block(self.config, parent=None)
    params = self.blocks.variables["params"]

    def decode_layer(carry, layer):
      x, (keys, values) = carry
      layer_params, layer_type, index = layer
      carry = block.apply(
        {"params": layer_params},
        x,
        inputs,
        layer_type,
        LayerCache(keys, values, slot, index),
        method="decode",
      )
      return carry, None

    type_of_layer = jnp.array(layer_types(self.config))
    indices = jnp.arange(len(type_of_layer))
    (x, (keys, values)), _ = jax.lax.scan(
      decode_layer,
      (x, (cache.keys[0], cache.values[0])),
      (params, type_of_layer, indices),
    )
    return x, (keys,), (values,)

  def _embed(self, tokens: Array, positions: Array) -> Array:
    """Embeds [B, T] or [B] tokens; a new last axis is D."""
    c = self.config
    x = self.embedding(tokens)
    if c.scale_embeddings:
      x *= jnp.asarray(c.d_model**0.5, x.dtype)
    if c.pos_emb == "learned":
      x += self.position_embedding(positions + c.position_offset)
    return x


def _remat_block(c: configs.Model, static_argnums: tuple[int, ...]) -> Any:
  """Returns `Block`, recomputed in the backward pass as `config.remat` says.

  "dots" stores the outputs of dense layers, and "full" stores nothing.
  """
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
    prevent_cse=not c.scan_layers,  # a scan needs no protection against CSE
  )


def _position_init(c: configs.Model) -> Any:
  """Returns the initializer of learned position embeddings.

  "normal" is noise of standard deviation init_std / 2. "sinusoid" is sines and
  cosines of amplitude init_std. A shift by one position is then a rotation, as
  attention to "the token after the last occurrence of this one" needs it.
  """
  axes = ("position", "embed")
  if c.position_init == "normal":
    return kernel_init(c.init_std / 2, *axes)

  def sinusoid(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    del key  # nothing is random
    length, width = shape
    half = -(-width // 2)
    frequencies = jnp.pi / 2 * c.max_seq_len ** -(jnp.arange(half) / half)
    angles = jnp.arange(length)[:, None] * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return (c.init_std * waves[:, :width]).astype(dtype)

  return nn.with_logical_partitioning(sinusoid, axes)
