"""A pre-LayerNorm decoder with learned positions (the GPT family)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instructgpt_jax import config as config_lib
from instructgpt_jax.models import attention, layers
from instructgpt_jax.models.layers import Dense, Norm, kernel_init, vector_init
from instructgpt_jax.types import Array, PyTree, pytree


@pytree
class Cache:
  """Keys and values of the tokens seen so far; one array a layer.

  With `scan_layers` the tuples hold one array with a leading layer axis.
  """

  keys: tuple[Array, ...]  # L × [B, H, S, D / H]
  values: tuple[Array, ...]  # L × [B, H, S, D / H]
  valid: Array  # [B, S] bool, True where a real token is stored
  index: Array  # [] int32, tokens are written at column index mod S


def _positions(c: config_lib.Model) -> Any:
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
    rates = jnp.pi / 2 * c.context ** -(jnp.arange(half) / half)
    angles = jnp.arange(length)[:, None] * rates
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return (c.init_std * waves[:, :width]).astype(dtype)

  return nn.with_logical_partitioning(sinusoid, axes)


class Block(nn.Module):
  """Attention and MLP, each behind a LayerNorm and added to the residual."""

  config: config_lib.Model

  def setup(self):
    c = self.config
    heads = (c.heads, c.width // c.heads)
    hidden = c.mlp_ratio * c.width
    layer = functools.partial(
      Dense, dtype=jnp.dtype(c.dtype), stddev=c.init_std
    )
    residual = functools.partial(
      layer, stddev=c.init_std / (2 * c.layers) ** 0.5
    )
    self.norm_attention = Norm(c.width)
    self.qkv = layer((c.width, 3, *heads), ("embed", None, "heads", None))
    self.project = residual(
      (*heads, c.width), ("heads", None, "embed"), inputs=2
    )
    self.norm_mlp = Norm(c.width)
    self.up = layer((c.width, hidden), ("embed", "mlp"))
    self.down = residual((hidden, c.width), ("mlp", "embed"))
    self.drop = nn.Dropout(c.dropout)

  def _heads(self, x: Array, shape: tuple[int, ...]) -> list[Array]:
    """Query, key and value of [M, D] rows, 3 × [B, H, T, D / H]."""
    c = self.config
    heads = (*shape, c.heads, c.width // c.heads)
    found = self.qkv(x, layers.normalized, self.norm_attention.weights())
    return [
      part.reshape(heads).swapaxes(1, 2) for part in jnp.split(found, 3, axis=1)
    ]

  def _join(self, x: Array, attended: Array, deterministic: bool) -> Array:
    """Adds what was attended to, [B, H, T, D / H], and the MLP of that."""
    found = self.project(attended.swapaxes(1, 2).reshape(x.shape))
    x = x + self.drop(found, deterministic=deterministic)
    hidden = self.up(x, layers.normalized, self.norm_mlp.weights())
    found = self.down(hidden, layers.gelu)
    return x + self.drop(found, deterministic=deterministic)

  def __call__(
    self, x: Array, mask: Array, deterministic: bool
  ) -> tuple[Array, tuple[Array, Array]]:
    """x [B, T, D], mask [B, T, T] → the next x, and its keys and values."""
    flat = x.reshape(-1, x.shape[-1])
    query, key, value = self._heads(flat, x.shape[:2])
    attended = attention.attend(query, key, value, mask)
    flat = self._join(flat, attended, deterministic)
    return flat.reshape(x.shape), (key, value)

  def decode(
    self, x: Array, stored: tuple[Array, Array], mask: Array, column: Array
  ) -> tuple[Array, tuple[Array, Array]]:
    """One token: x [D, B], stored 2 × [B, H, S, D / H], mask [B, 1, S]."""
    heads = (3, self.config.heads, 1, -1, x.shape[1])
    found = self.qkv.columns(self.norm_attention.columns(x)).reshape(heads)
    query, *new = found.transpose(0, 4, 1, 2, 3)
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(
        old, one.astype(old.dtype), column, axis=2
      )
      for old, one in zip(stored, new, strict=True)
    )
    attended, _ = attention.read(query, keys, values, mask)
    x += self.project.columns(attended.transpose(1, 2, 3, 0).reshape(x.shape))
    hidden = layers.gelu(self.up.columns(self.norm_mlp.columns(x)))
    return x + self.down.columns(hidden), (keys, values)


def attention_mask(segments: Array) -> Array:
  """[B, T] segments → [B, T, T]: causal, within a segment or to a prefix.

  Padding is segment 0, and what it attends to is read by nothing real.
  """
  length = segments.shape[1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  query, key = segments[:, :, None], segments[:, None, :]
  return causal & ((query == key) | (key < 0))


class Transformer(nn.Module):
  """Embedding, blocks and the final LayerNorm; the heads sit on top."""

  config: config_lib.Model

  def setup(self):
    c = self.config
    self.embedding = nn.Embed(
      c.vocab_size,
      c.width,
      dtype=jnp.dtype(c.dtype),
      embedding_init=kernel_init(c.init_std, "vocab", "embed"),
    )
    self.position_embedding = nn.Embed(
      c.context,
      c.width,
      dtype=jnp.dtype(c.dtype),
      embedding_init=_positions(c),
    )
    self.final_norm = Norm(c.width)
    if c.scan_layers:
      self.blocks = nn.scan(
        _rematerialised(c, static_argnum=3),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=c.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
        methods=None,
      )(c)
    else:
      block = _rematerialised(c, static_argnum=3)
      self.blocks = [block(c) for _ in range(c.layers)]

  def _embed(self, tokens: Array, positions: Array) -> Array:
    return self.embedding(tokens) + self.position_embedding(positions)

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
  ) -> tuple[Array, tuple[Sequence[Array], Sequence[Array]]]:
    """Runs whole rows.

    Args:
      tokens: [B, T] int32.
      segments: [B, T] int32, 0 is padding.
      positions: [B, T] int32 within the segment.
      deterministic: False turns residual dropout on.

    Returns:
      [B, T, D] after the final norm; and the layers' keys and values.
    """
    x = self._embed(tokens, positions)
    mask = attention_mask(segments)
    if self.config.scan_layers:
      x, (keys, values) = self.blocks(x, mask, deterministic)
      return self.final_norm(x), ((keys,), (values,))
    stored = []
    for block in self.blocks:
      x, key_value = block(x, mask, deterministic)
      stored.append(key_value)
    keys, values = zip(*stored, strict=True)
    return self.final_norm(x), (keys, values)

  def decode(
    self, token: Array, position: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """One token a row: token [B], position [B] → [D, B] and the next cache."""
    x = self._embed(token, position).T
    columns = cache.valid.shape[1]
    column = cache.index % columns
    valid = cache.valid | (jnp.arange(columns) == column)[None]
    mask = valid[:, None, :]
    if self.config.scan_layers:
      x, keys, values = self._decode_scanned(x, mask, cache, column)
    else:
      stored = []
      for block, k, v in zip(
        self.blocks, cache.keys, cache.values, strict=True
      ):
        x, key_value = block.decode(x, (k, v), mask, column)
        stored.append(key_value)
      keys, values = zip(*stored, strict=True)
    cache = Cache(keys=keys, values=values, valid=valid, index=cache.index + 1)
    return self.final_norm.columns(x), cache

  def _decode_scanned(
    self, x: Array, mask: Array, cache: Cache, column: Array
  ) -> Any:
    block = Block(self.config, parent=None)
    params = self.blocks.variables["params"]

    def body(x, layer):
      weights, stored = layer
      return block.apply(
        {"params": weights}, x, stored, mask, column, method="decode"
      )

    x, (keys, values) = jax.lax.scan(
      body, x, (params, (cache.keys[0], cache.values[0]))
    )
    return x, (keys,), (values,)


def _rematerialised(c: config_lib.Model, static_argnum: int) -> Any:
  if c.remat == "none":
    return Block
  policy = (
    jax.checkpoint_policies.save_only_these_names(layers.PRODUCT)
    if c.remat == "dots"
    else None
  )
  return nn.remat(
    Block,
    policy=policy,
    static_argnums=(static_argnum,),
    prevent_cse=not c.scan_layers,
  )


class LanguageModel(nn.Module):
  """The decoder with an unembedding."""

  config: config_lib.Model

  def setup(self):
    self.transformer = Transformer(self.config)
    if not self.config.tie_embeddings:
      self.unembedding = nn.Dense(
        self.config.vocab_size,
        use_bias=False,
        dtype=jnp.dtype(self.config.dtype),
        kernel_init=kernel_init(self.config.init_std, "embed", "vocab"),
      )

  def hidden(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """[B, T] rows → [B, T, D], ready for `unembed`."""
    return self.transformer(
      tokens, segments, positions, deterministic=deterministic
    )[0]

  def unembed(self, hidden: Array) -> Array:
    """[..., D] → [..., V] float32 logits."""
    if self.config.tie_embeddings:
      logits = self.transformer.embedding.attend(hidden)
    else:
      logits = self.unembedding(hidden)
    return logits.astype(jnp.float32)

  def unembed_columns(self, hidden: Array) -> Array:
    """[D, B] → [V, B] float32 logits, by what `decoding_params` gives."""
    if self.config.tie_embeddings:
      matrix = self.transformer.embedding.embedding
    else:
      matrix = self.unembedding.variables["params"]["kernel"]
    return (matrix.astype(hidden.dtype) @ hidden).astype(jnp.float32)

  def unembedding_matrix(self) -> Array:
    """[V, D] float32, the rows that `unembed` takes products with."""
    if self.config.tie_embeddings:
      return self.transformer.embedding.embedding
    return self.unembedding.variables["params"]["kernel"].T

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """[B, T] rows → [B, T, V] float32 logits of the next token."""
    return self.unembed(
      self.hidden(tokens, segments, positions, deterministic=deterministic)
    )

  def prefill(
    self, tokens: Array, segments: Array, positions: Array, slots: int
  ) -> tuple[Array, Cache]:
    """Runs left-padded prompts and stores their keys and values.

    Args:
      tokens: [B, P] int32, left-padded.
      segments: [B, P] int32.
      positions: [B, P] int32.
      slots: S >= P, room for the prompt and the response.

    Returns:
      [V, B] logits after the last column, and the cache.
    """
    hidden, (keys, values) = self.transformer(tokens, segments, positions)
    room = slots - tokens.shape[1]
    axis = 3 if self.config.scan_layers else 2

    def widen(x: Array) -> Array:
      pad = [(0, 0)] * x.ndim
      pad[axis] = (0, room)
      return jnp.pad(x, pad)

    cache = Cache(
      keys=tuple(map(widen, keys)),
      values=tuple(map(widen, values)),
      valid=jnp.pad(segments > 0, ((0, 0), (0, room))),
      index=jnp.asarray(tokens.shape[1], jnp.int32),
    )
    return self.unembed(hidden[:, -1]).T, cache

  def decode(
    self, token: Array, position: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """token [B], position [B] → [V, B] logits and the next cache.

    To be applied to `decoding_params`.
    """
    hidden, cache = self.transformer.decode(token, position, cache)
    return self.unembed_columns(hidden), cache


class ScalarModel(nn.Module):
  """The decoder with a scalar head: reward model and value network.

  The head is N(0, 1 / (D + 1)) with bias 0 (summarize-from-feedback), and is
  computed in float32.
  """

  config: config_lib.Model

  def setup(self):
    self.transformer = Transformer(self.config)
    self.head = nn.Dense(
      1,
      dtype=jnp.float32,
      kernel_init=kernel_init((self.config.width + 1) ** -0.5, "embed", None),
      bias_init=vector_init(0.0, None),
    )

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """[B, T] rows → [B, T] float32, a scalar at every token."""
    hidden, _ = self.transformer(
      tokens, segments, positions, deterministic=deterministic
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    return self.head(flat.astype(jnp.float32)).reshape(tokens.shape)


def positions_of(mask: Array) -> Array:
  """cumsum(mask) − mask: [B, T] positions of a padded row (int32)."""
  mask = mask.astype(jnp.int32)
  return jnp.cumsum(mask, axis=1) - mask


def init_params(
  model: LanguageModel | ScalarModel, key: Array
) -> dict[str, Any]:
  """Fresh float32 parameters, without their axis names."""
  return nn.unbox(_boxed_init(model, key))


def decoding_params(model: LanguageModel, params: dict[str, Any]) -> PyTree:
  """The weights as `decode` reads them: kernels' outputs first, one type.

  A product of a whole kernel with a few columns reads the kernel as it lies; a
  product of a few rows with it would rearrange the kernel for every token.
  """
  dtype = jnp.dtype(model.config.dtype)

  def turned(tree: dict[str, Any], first: int) -> dict[str, Any]:
    found = {
      name: turned(x, first + (name == "blocks" and model.config.scan_layers))
      if isinstance(x, dict)
      else x
      for name, x in tree.items()
    }
    if "kernel" in tree:
      kernel = tree["kernel"]
      outputs = tree["bias"].ndim - first if "bias" in tree else 1
      inputs = kernel.ndim - first - outputs
      ahead = range(first, first + inputs)
      kernel = jnp.moveaxis(kernel, ahead, range(-inputs, 0))
      found["kernel"] = kernel.astype(dtype)
    if "embedding" in tree and not isinstance(tree["embedding"], dict):
      found["embedding"] = tree["embedding"].astype(dtype)
    return found

  return turned(params, 0)


def abstract_params(model: LanguageModel | ScalarModel) -> PyTree:
  """Shapes of the parameters, boxed with their logical axis names."""
  return jax.eval_shape(lambda: _boxed_init(model, jax.random.key(0)))


def _boxed_init(model: Any, key: Array) -> PyTree:
  row = jnp.ones((1, 2), jnp.int32)
  return model.init(key, row, row, jnp.zeros_like(row))["params"]


def scalar_from_language(
  language_params: dict[str, Any], scalar_params: dict[str, Any]
) -> dict[str, Any]:
  """A language model's decoder under a fresh scalar head."""
  return {**scalar_params, "transformer": language_params["transformer"]}
