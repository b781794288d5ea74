"""Language and scalar models: the transformer with a head, and parameters."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instructgpt_jax import configs, precision, sharding
from instructgpt_jax.models import lora
from instructgpt_jax.models.attention import soft_cap
from instructgpt_jax.models.cache import Cache, make_cache
from instructgpt_jax.models.kernels import feature_major
from instructgpt_jax.models.layers import kernel_init, vector_init
from instructgpt_jax.models.transformer import Transformer
from instructgpt_jax.types import Array, AttentionSpan, PyTree

_MASKED_LOGIT = -1e30  # finite, so that its probability times it is 0


def postprocess_logits(
  c: configs.Model, logits: Array, axis: int = -1
) -> Array:
  """Applies the soft cap to logits, and masks the padded vocabulary."""
  logits = soft_cap(logits, c.final_logit_softcap)
  if not c.vocab_padding:
    return logits
  shape = [1] * logits.ndim
  shape[axis] = c.padded_vocab_size
  real = jnp.arange(c.padded_vocab_size) < c.vocab_size
  return jnp.where(real.reshape(shape), logits, _MASKED_LOGIT)


class LanguageModel(nn.Module):
  """The transformer with an unembedding."""

  config: configs.Model

  def setup(self):
    c = self.config
    self.transformer = Transformer(c)
    if not c.tie_embeddings:
      self.unembedding = nn.Dense(
        c.padded_vocab_size,
        use_bias=c.unembedding_bias,
        dtype=jnp.dtype(c.dtype),
        precision=precision.of(c.dtype),
        kernel_init=kernel_init(c.init_std, "embed", "vocab"),
        bias_init=vector_init(0.0, "vocab"),
      )

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Computes [B, T, V] float32 logits of the next token for [B, T] tokens."""
    return self.unembed(
      self.hidden(tokens, segments, positions, deterministic=deterministic)
    )

  def hidden(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
    query_positions: Array | None = None,
  ) -> Array:
    """Computes the hidden states that `unembed` reads.

    Args:
      tokens: see `Transformer`.
      segments: see `Transformer`.
      positions: see `Transformer`.
      deterministic: see `Transformer`.
      query_positions: see `Transformer`.

    Returns:
      [B, T, D], or [B, R, D] at the query positions. With an unembedding bias
      […, D + 1], whose last feature is 1.
    """
    return self._hidden_and_cache(
      tokens,
      segments,
      positions,
      deterministic=deterministic,
      query_positions=query_positions,
    )[0]

  def _hidden_and_cache(
    self,
    *sequences: Array,
    deterministic: bool = True,
    query_positions: Array | None = None,
  ) -> tuple[Any, ...]:
    hidden, keys_values = self.transformer(
      *sequences, deterministic=deterministic, query_positions=query_positions
    )
    if self.config.unembedding_bias:
      widths = [(0, 0)] * (hidden.ndim - 1) + [(0, 1)]
      hidden = jnp.pad(hidden, widths, constant_values=1)
    return hidden, keys_values

  def unembed(self, hidden: Array) -> Array:
    """Computes [..., V] float32 logits of hidden states."""
    c = self.config
    if c.tie_embeddings:
      with precision.context(hidden.dtype):
        logits = self.transformer.embedding.attend(hidden)
    else:
      logits = self.unembedding(hidden[..., : c.d_model])
    return postprocess_logits(c, logits.astype(jnp.float32))

  def unembed_feature_major(self, hidden: Array) -> Array:
    """Computes [V, B] float32 logits of [D, B], with `decoding_params`."""
    c = self.config
    if c.tie_embeddings:
      matrix = self.transformer.embedding.embedding
    else:
      matrix = self.unembedding.variables["params"][feature_major.TRANSPOSED]
    hidden = sharding.shard(hidden, None, "decode_batch")
    logits = precision.matmul(matrix.astype(hidden.dtype), hidden)
    logits = logits.astype(jnp.float32)
    logits = sharding.shard(logits, "decode_vocab", "decode_batch")
    if c.unembedding_bias:
      logits += self.unembedding.variables["params"]["bias"][:, None]
    return postprocess_logits(c, logits, axis=0)

  def unembedding_matrix(self) -> Array:
    """Returns the [V, D] float32 matrix whose matmul with `hidden` is logits.

    With an unembedding bias it is [V, D + 1]. The result of the matmul still
    needs `postprocess_logits`.
    """
    if self.config.tie_embeddings:
      return self.transformer.embedding.embedding
    weights = self.unembedding.variables["params"]
    if self.config.unembedding_bias:
      return jnp.vstack([weights["kernel"], weights["bias"]]).T
    return weights["kernel"].T

  def prefill(
    self, tokens: Array, segments: Array, positions: Array, slots: int
  ) -> tuple[Array, Cache]:
    """Computes the logits after left-padded prompts, and fills a cache.

    Applies to `decoding_params`.

    Args:
      tokens: [B, P] int32, left-padded.
      segments: [B, P] int32.
      positions: [B, P] int32.
      slots: S >= P, the cache's slots for prompt and response.

    Returns:
      [V, B] logits after the last position, and the cache.
    """
    last = jnp.full((len(tokens), 1), tokens.shape[1] - 1)
    hidden, (keys, values) = self._hidden_and_cache(
      tokens, segments, positions, query_positions=last
    )
    cache = make_cache(keys, values, segments, slots)
    last_hidden = hidden[:, 0, : self.config.d_model].T
    return self.unembed_feature_major(last_hidden), cache

  def decode(
    self, token: Array, position: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """Computes the logits after one more token of each sequence.

    Applies to `decoding_params`.

    Args:
      token: [B] int32.
      position: [B] int32.
      cache: keys and values of earlier tokens.

    Returns:
      [V, B] logits, and the next cache.
    """
    hidden, cache = self.transformer.decode(token, position, cache)
    return self.unembed_feature_major(hidden), cache


class ScalarModel(nn.Module):
  """The transformer with a scalar head: reward model or value network.

  The head is initialised to N(0, 1 / (D + 1)) with bias 0, as in
  summarize-from-feedback, and computed in float32.
  """

  config: configs.Model

  def setup(self):
    self.transformer = Transformer(self.config)
    self.head = nn.Dense(
      1,
      dtype=jnp.float32,
      precision=precision.of(jnp.float32),
      kernel_init=kernel_init((self.config.d_model + 1) ** -0.5, "embed", None),
      bias_init=vector_init(0.0, None),
    )

  def __call__(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
    span: AttentionSpan | None = None,
    query_positions: Array | None = None,
  ) -> Array:
    """Computes a float32 scalar at each token.

    Args:
      tokens: see `Transformer`.
      segments: see `Transformer`.
      positions: see `Transformer`.
      deterministic: see `Transformer`.
      span: see `Transformer`.
      query_positions: see `Transformer`.

    Returns:
      [B, T], or [B, R] at the query positions.
    """
    hidden, _ = self.transformer(
      tokens,
      segments,
      positions,
      deterministic=deterministic,
      span=span,
      query_positions=query_positions,
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    return self.head(flat.astype(jnp.float32)).reshape(hidden.shape[:2])


def positions_of(mask: Array) -> Array:
  """Returns the [B, T] int32 positions of real tokens: cumsum(mask) − mask."""
  mask = mask.astype(jnp.int32)
  return jnp.cumsum(mask, axis=1) - mask


def init_params(
  model: LanguageModel | ScalarModel, key: Array
) -> dict[str, Any]:
  """Initialises float32 parameters."""
  return nn.unbox(_init_boxed(model, key))


@functools.lru_cache(maxsize=64)
def abstract_params(model: LanguageModel | ScalarModel) -> PyTree:
  """Returns the parameters' shapes, boxed with their logical axes."""
  return jax.eval_shape(lambda: _init_boxed(model, jax.random.key(0)))


def _init_boxed(model: Any, key: Array) -> PyTree:
  tokens = jnp.ones((1, 2), jnp.int32)
  return model.init(key, tokens, tokens, jnp.zeros_like(tokens))["params"]


def prefill(
  model: LanguageModel, params: PyTree, tokens: Array, mask: Array, slots: int
) -> tuple[Array, Cache]:
  """Reads prompts, and returns the cache that `decode` continues.

  Args:
    model: the language model.
    params: its `decoding_params`.
    tokens: [B, T] int32, padded on the left.
    mask: [B, T] bool, which of them are real.
    slots: tokens that the cache has room for, those of the prompts included.

  Returns:
    [V, B] float32 logits after the prompts, and the cache.
  """
  result: Any = model.apply(
    {"params": params},
    tokens,
    mask.astype(jnp.int32),
    positions_of(mask),
    slots,
    method="prefill",
  )
  return result


def decoding_params(model: LanguageModel, params: dict[str, Any]) -> PyTree:
  """Converts parameters for `prefill` and `decode`.

  Kernels become feature-major (`kernels/feature_major.py`), kernels and
  embeddings get the model's dtype, and adapters are merged. Parameters that are
  already converted stay as they are.

  Args:
    model: the language model.
    params: its parameters.
  """
  c = model.config
  result = feature_major.transpose_kernels(
    lora.merge_lora(c, params), jnp.dtype(c.dtype), scanned=c.scan_layers
  )
  if c.tie_embeddings:
    layer, name = result["transformer"]["embedding"], "embedding"
  else:
    layer, name = result["unembedding"], feature_major.TRANSPOSED
  layer[name] = sharding.shard(layer[name], "decode_vocab", "embed")
  return result


def scalar_from_language(
  language_params: dict[str, Any], scalar_params: dict[str, Any]
) -> dict[str, Any]:
  """Combines a language model's transformer with a scalar model's head."""
  return {**scalar_params, "transformer": language_params["transformer"]}
