"""A decoder block: attention and MLP, each added to the residual."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instructgpt_jax import configs, sharding
from instructgpt_jax.models import attention, layers, rope
from instructgpt_jax.models.layers import Dense, Norm
from instructgpt_jax.types import Array, AttentionSpan, pytree, static_field


@pytree
class LayerInputs:
  """What the tokens of a layer see, and how their heads are turned."""

  mask: Array  # [B, T, S] bool
  turns: rope.RopeCosSin | None  # None with learned positions
  reach: AttentionSpan | None = static_field(
    None
  )  # the mask is False beyond it


Views = tuple[
  LayerInputs, ...
]  # one, or that of full layers and of windowed ones


def attention_mask(segments: Array) -> Array:
  """[B, T] segments → [B, T, T]: causal, within a segment or to its prefix.

  Padding is segment 0, and what it attends to is read by nothing real.
  """
  length = segments.shape[1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  newest = jax.lax.cummin(segments, axis=1)  # prefixes count down
  prefix = jnp.where(newest < 0, newest, segments)
  query, key = segments[:, :, None], segments[:, None, :]
  return causal & ((query == key) | (prefix[:, :, None] == key))


def layer_inputs(
  c: configs.Model,
  mask: Array,
  age: Callable[[], Array],
  positions: Array,
  reach: AttentionSpan | None = None,
) -> Views:
  """The views that a model's layers have.

  Args:
    c: the model.
    mask: [B, T, S] bool, what a layer without a window sees.
    age: gives [B, T, S] int32, how far a key stands behind a query.
    positions: [B, T] int32 of the queries.
    reach: the mask is False beyond it.

  Returns:
    One view where all layers see alike, else the full and the windowed one.
  """
  kinds = sorted({c.has_sliding_window(i) for i in range(c.num_layers)})

  def view(windowed: bool) -> LayerInputs:
    seen = mask & (age() < c.sliding_window) if windowed else mask
    turns = None
    if c.pos_emb == "rope":
      turns = rope.rope_cos_sin(c, positions, windowed)
    return LayerInputs(mask=seen, turns=turns, reach=reach)

  return tuple(map(view, kinds))


def layer_types(c: configs.Model) -> list[int]:
  """Which of the model's views each layer has."""
  windowed = [c.has_sliding_window(i) for i in range(c.num_layers)]
  mixed = len(set(windowed)) > 1
  return [int(mixed and w) for w in windowed]


def _chosen(seen: Views, kind: Any) -> LayerInputs:
  if len(seen) == 1:
    return seen[0]
  if isinstance(kind, int):
    return seen[kind]
  return jax.tree.map(lambda *x: jnp.where(kind, x[1], x[0]), *seen)


def _by_heads(x: Array) -> Array:
  """[B, H, T, D / H], placed."""
  return sharding.shard(x, "batch", "heads", None, None)


def columns(x: Array, wanted: Array, axis: int) -> Array:
  """Those of [B, …, T, …] that are wanted, [B, R]."""
  shape = [1] * x.ndim
  shape[0], shape[axis] = wanted.shape
  return jnp.take_along_axis(x, wanted.reshape(shape), axis=axis)


def _written(
  old: Array, one: Array, column: Array, layer: Array | None
) -> Array:
  """[B, K, S, ·], of all layers if one is named, with [B, K, 1, ·] put in."""
  one = one.astype(old.dtype)
  if layer is None:
    found = jax.lax.dynamic_update_slice_in_dim(old, one, column, axis=2)
    return _by_heads(found)
  found = jax.lax.dynamic_update_slice(old, one[None], (layer, 0, 0, column, 0))
  return sharding.shard(found, None, "batch", "heads", None, None)


class Block(nn.Module):
  """Attention and MLP behind a norm each, or as `config.Model.block` says."""

  config: configs.Model

  def setup(self):
    c = self.config
    heads, groups = (
      (c.padded_heads, c.head_size),
      (c.padded_kv_heads, c.head_size),
    )
    layer = functools.partial(
      Dense, dtype=jnp.dtype(c.dtype), stddev=c.init_std, alpha=c.lora_alpha
    )
    attending = functools.partial(layer, rank=c.adapter_rank("attention"))
    mixing = functools.partial(layer, rank=c.adapter_rank("mlp"))
    small = (
      c.init_std / (2 * c.num_layers) ** 0.5
    )  # of what the residual is given
    norm = functools.partial(Norm, kind=c.norm, epsilon=c.norm_eps)
    axes = ("embed", None, "heads", None)
    self.norm_attention = norm(c.d_model)
    if c.kv_heads == c.num_heads:
      self.qkv = attending((c.d_model, 3, *heads), axes, use_bias=c.qkv_bias)
    else:
      self.query = attending(
        (c.d_model, *heads), ("embed", "heads", None), use_bias=c.qkv_bias
      )
      self.key_value = attending(
        (c.d_model, 2, *groups), axes, use_bias=c.qkv_bias
      )
    if c.qk_norm:
      self.norm_query, self.norm_key = (
        norm(c.head_size, axis=None) for _ in range(2)
      )
    self.project = attending(
      (*heads, c.d_model),
      ("heads", None, "embed"),
      inputs=2,
      stddev=small,
      use_bias=c.out_bias,
      zeros=c.padded_heads - c.num_heads,
    )
    if c.block != "parallel_one_norm":
      self.norm_mlp = norm(c.d_model)
    if c.block == "sandwich":
      self.norm_attended, self.norm_mixed = norm(c.d_model), norm(c.d_model)
    self.up = mixing(
      (c.d_model, 2, c.mlp_dim) if c.gated_mlp else (c.d_model, c.mlp_dim),
      ("embed", None, "mlp") if c.gated_mlp else ("embed", "mlp"),
      use_bias=c.mlp_bias,
    )
    self.down = mixing(
      (c.mlp_dim, c.d_model),
      ("mlp", "embed"),
      stddev=small,
      use_bias=c.mlp_bias,
    )
    self.drop = nn.Dropout(c.dropout)
    self.act = layers.activation(c.activation, c.gated_mlp)

  def _placed(self, query: Array, key: Array, view: LayerInputs) -> list[Array]:
    """Query and key, normalised, turned and scaled, [B, ·, T, D / H]."""
    c = self.config
    both = [query, key]
    if c.qk_norm:
      both = [self.norm_query(query), self.norm_key(key)]
    if view.turns is not None:
      both = [rope.apply_rope(x, view.turns, c.rope_interleaved) for x in both]
    if c.query_pre_attn_scalar:
      both[0] *= (c.head_size / c.query_pre_attn_scalar) ** 0.5
    return both

  def _heads(self, x: Array, shape: tuple[int, ...]) -> list[Array]:
    """Query, key and value of [M, D] rows, 3 × [B, ·, T, D / H]."""
    c = self.config
    norm = self.norm_attention

    def split(layer: Dense, parts: int) -> list[Array]:
      found = layer.split(x, parts, norm.function, norm.weights())
      return [
        part.reshape(*shape, -1, c.head_size).swapaxes(1, 2) for part in found
      ]

    if c.kv_heads == c.num_heads:
      return split(self.qkv, 3)
    return split(self.query, 1) + split(self.key_value, 2)

  def _join(self, x: Array, attended: Array, deterministic: bool) -> Array:
    """Adds what was attended to, [B, T, H, D / H], and the MLP's part."""
    found = self.project(attended.reshape(len(x), -1))
    if self.config.block == "sandwich":
      found = self.norm_attended(found)
    after = x + self.drop(found, deterministic=deterministic)
    read, norm = self._mlp_input(x, after)
    found = self.down(self._up(read, norm), self.act)
    if self.config.block == "sandwich":
      found = self.norm_mixed(found)
    return after + self.drop(found, deterministic=deterministic)

  @property
  def _halves(self) -> bool:
    """Whether the mesh splits each half of a gated MLP."""
    c = self.config
    return c.gated_mlp and sharding.num_shards("mlp", c.mlp_dim) > 1

  def _up(self, read: Array, norm: Norm) -> Array:
    """[M, F], or what a gated activation is of."""
    weights = norm.function, norm.weights()
    if self._halves:
      return jnp.stack(self.up.split(read, 2, *weights), axis=1)
    return self.up(read, *weights)

  def _mlp_input(self, x: Array, after: Array) -> tuple[Array, Norm]:
    """What the MLP reads: the block's input, or what attention made of it."""
    if self.config.block == "parallel_one_norm":
      return x, self.norm_attention
    return x if self.config.block == "parallel" else after, self.norm_mlp

  def __call__(
    self,
    x: Array,
    seen: Views,
    kind: Any,
    deterministic: bool,
    wanted: Array | None = None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """x [B, T, D] → the next x, and its keys and values.

    Args:
      x: the residual.
      seen: the model's views.
      kind: which of them is this layer's, a number or an array.
      deterministic: False turns residual dropout on.
      wanted: [B, R] int32, columns whose next x is to be had; None is all.
    """
    c = self.config
    view = _chosen(seen, kind)
    query, key, value = self._heads(x.reshape(-1, x.shape[-1]), x.shape[:2])
    query, key = self._placed(query, key, view)
    query, key, value = map(_by_heads, (query, key, value))
    stored = key, value
    if c.kv_heads != c.num_heads:
      key, value = (
        jnp.repeat(y, c.num_heads // c.kv_heads, axis=1) for y in stored
      )
    mask, few = view.mask, False
    if wanted is not None:
      x = columns(x, wanted, 1)
      few = attention.fits_one_block(wanted.shape[1], mask.shape[1])
    if few:
      query, mask = columns(query, wanted, 2), columns(mask, wanted, 1)
      attended, _ = attention.attend_dense(
        query, key, value, mask, c.attn_logit_softcap
      )
    else:
      attended = attention.attend(
        query, key, value, mask, c.attn_logit_softcap, view.reach
      )
    attended = _by_heads(attended).swapaxes(1, 2)
    if wanted is not None and not few:
      attended = columns(attended, wanted, 1)
    flat = self._join(x.reshape(-1, x.shape[-1]), attended, deterministic)
    return flat.reshape(x.shape), stored

  def _column_heads(self, x: Array) -> tuple[Array, Array, Array]:
    """Query, key and value of one token a row, x [D, B], [B, ·, 1, D / H]."""
    c = self.config
    x = self.norm_attention.columns(x)

    def split(layer: Dense, parts: int) -> Array:
      heads = (parts, -1, 1, c.head_size, x.shape[1])
      found = layer.split_columns(x, parts).reshape(heads)
      return found.transpose(0, 4, 1, 2, 3)

    if c.kv_heads == c.num_heads:
      query, key, value = split(self.qkv, 3)
    else:
      (query,), (key, value) = split(self.query, 1), split(self.key_value, 2)
    return query, key, value

  def decode(
    self,
    x: Array,
    stored: tuple[Array, Array],
    seen: Views,
    kind: Any,
    column: Array,
    layer: Array | None = None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """One token: x [D, B], stored 2 × [B, K, S, D / H], a mask of T = 1.

    With its layer's number, stored is that of all layers, and written in place.
    """
    c = self.config
    view = _chosen(seen, kind)
    query, key, value = self._column_heads(x)
    query, key = self._placed(query, key, view)
    query, key, value = map(_by_heads, (query, key, value))
    keys, values = (
      _written(old, one, column, layer)
      for old, one in zip(stored, (key, value), strict=True)
    )
    stored = keys, values
    if layer is not None:
      keys, values = (
        jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in stored
      )
    # The heads of a group are as many queries of its keys.
    query = query.reshape(len(query), c.padded_kv_heads, -1, c.head_size)
    attended, _ = attention.attend_dense(
      query, keys, values, view.mask, c.attn_logit_softcap
    )
    attended = attended.transpose(1, 2, 3, 0).reshape(-1, x.shape[1])
    attended = sharding.shard(attended, "heads", "decode_batch")
    found = self.project.columns(attended)
    if c.block == "sandwich":
      found = self.norm_attended.columns(found)
    after = x + found
    read, norm = self._mlp_input(x, after)
    read = norm.columns(read)
    hidden = (
      self.up.split_columns(read, 2) if self._halves else self.up.columns(read)
    )
    found = self.down.columns(self.act(hidden, axis=0))
    if c.block == "sandwich":
      found = self.norm_mixed.columns(found)
    return after + found, stored
