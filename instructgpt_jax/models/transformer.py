"""Two heads on the decoder: logits, or a scalar at every token."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instructgpt_jax import configs, precision, sharding
from instructgpt_jax.models import lora
from instructgpt_jax.models.attention import soft_cap
from instructgpt_jax.models.decoder import Cache, Transformer
from instructgpt_jax.models.layers import TRANSPOSED, kernel_init, vector_init
from instructgpt_jax.types import Array, AttentionSpan, PyTree

_MASKED_LOGIT = -1e30  # a logit; finite, so that its probability times it is 0


def postprocess_logits(
  c: configs.Model, logits: Array, axis: int = -1
) -> Array:
  """Logits as they are predicted with: capped, and never of padding."""
  logits = soft_cap(logits, c.final_logit_softcap)
  if not c.vocab_padding:
    return logits
  shape = [1] * logits.ndim
  shape[axis] = c.padded_vocab_size
  real = jnp.arange(c.padded_vocab_size) < c.vocab_size
  return jnp.where(real.reshape(shape), logits, _MASKED_LOGIT)


class LanguageModel(nn.Module):
  """The decoder with an unembedding."""

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

  def hidden(
    self,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
    wanted: Array | None = None,
  ) -> Array:
    """[B, T] rows → [B, T, D], ready for `unembed`.

    Or [B, R, D], of the columns that are wanted. With an unembedding bias
    […, D + 1], whose last column is 1.
    """
    return self._hidden(
      tokens, segments, positions, deterministic=deterministic, wanted=wanted
    )[0]

  def _hidden(
    self,
    *rows: Array,
    deterministic: bool = True,
    wanted: Array | None = None,
  ) -> tuple[Any, ...]:
    found, stored = self.transformer(
      *rows, deterministic=deterministic, wanted=wanted
    )
    if self.config.unembedding_bias:
      room = [(0, 0)] * (found.ndim - 1) + [(0, 1)]
      found = jnp.pad(found, room, constant_values=1)
    return found, stored

  def unembed(self, hidden: Array) -> Array:
    """`hidden` → [..., V] float32 logits."""
    c = self.config
    if c.tie_embeddings:
      with precision.context(hidden.dtype):
        logits = self.transformer.embedding.attend(hidden)
    else:
      logits = self.unembedding(hidden[..., : c.d_model])
    return postprocess_logits(c, logits.astype(jnp.float32))

  def unembed_columns(self, hidden: Array) -> Array:
    """[D, B] → [V, B] float32 logits, by `decoding_params`."""
    c = self.config
    if c.tie_embeddings:
      matrix = self.transformer.embedding.embedding
    else:
      matrix = self.unembedding.variables["params"][TRANSPOSED]
    hidden = sharding.shard(hidden, None, "decode_batch")
    logits = precision.matmul(matrix.astype(hidden.dtype), hidden)
    logits = logits.astype(jnp.float32)
    logits = sharding.shard(logits, "decode_vocab", "decode_batch")
    if c.unembedding_bias:
      logits += self.unembedding.variables["params"]["bias"][:, None]
    return postprocess_logits(c, logits, axis=0)

  def unembedding_matrix(self) -> Array:
    """[V, D] float32, the rows that products with `hidden` are taken of.

    With an unembedding bias [V, D + 1]. Logits are these products `adjusted`.
    """
    if self.config.tie_embeddings:
      return self.transformer.embedding.embedding
    weights = self.unembedding.variables["params"]
    if self.config.unembedding_bias:
      return jnp.vstack([weights["kernel"], weights["bias"]]).T
    return weights["kernel"].T

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

    To be applied to `decoding_params`.

    Args:
      tokens: [B, P] int32, left-padded.
      segments: [B, P] int32.
      positions: [B, P] int32.
      slots: S >= P, room for the prompt and the response.

    Returns:
      [V, B] logits after the last column, and the cache.
    """
    last = jnp.full((len(tokens), 1), tokens.shape[1] - 1)
    hidden, (keys, values) = self._hidden(
      tokens, segments, positions, wanted=last
    )
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
    return self.unembed_columns(hidden[:, 0, : self.config.d_model].T), cache

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
    reach: AttentionSpan | None = None,
    wanted: Array | None = None,
  ) -> Array:
    """[B, T] rows → [B, T] float32, a scalar at every token.

    Or [B, R], at the columns that are wanted.
    """
    hidden, _ = self.transformer(
      tokens,
      segments,
      positions,
      deterministic=deterministic,
      reach=reach,
      wanted=wanted,
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    return self.head(flat.astype(jnp.float32)).reshape(hidden.shape[:2])


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
  """The weights as `prefill` and `decode` read them: transposed, one type.

  A product of a whole kernel with a few columns reads the kernel as it lies; a
  product of a few rows with it would rearrange the kernel for every token.
  Adapters are merged.

  Args:
    model: the language model.
    params: its parameters, or what this function has made of them.
  """
  dtype = jnp.dtype(model.config.dtype)

  def turned(
    tree: dict[str, Any], first: int, inputs: int = 1
  ) -> dict[str, Any]:
    found = {
      name: turned(
        x,
        first + (name == "blocks" and model.config.scan_layers),
        2 if name == "project" else 1,
      )
      if isinstance(x, dict)
      else x
      for name, x in tree.items()
    }
    if "kernel" in tree:
      kernel = found.pop("kernel")
      ahead = range(first, first + inputs)
      kernel = jnp.moveaxis(kernel, ahead, range(-inputs, 0))
      found[TRANSPOSED] = kernel.astype(dtype)
    if "embedding" in tree and not isinstance(tree["embedding"], dict):
      found["embedding"] = tree["embedding"].astype(dtype)
    return found

  found = turned(lora.merge_lora(model.config, params), 0)
  tied = model.config.tie_embeddings
  layer = found["transformer"]["embedding"] if tied else found["unembedding"]
  name = "embedding" if tied else TRANSPOSED
  layer[name] = sharding.shard(layer[name], "decode_vocab", "embed")
  return found


@functools.lru_cache(maxsize=64)
def abstract_params(model: LanguageModel | ScalarModel) -> PyTree:
  """Shapes of the parameters, boxed with their logical axis names."""
  return jax.eval_shape(lambda: _boxed_init(model, jax.random.key(0)))


def _boxed_init(model: Any, key: Array) -> PyTree:
  row = jnp.ones((1, 2), jnp.int32)
  return model.init(key, row, row, jnp.zeros_like(row))["params"]


def scalar_from_language(
  language_params: dict[str, Any], scalar_params: dict[str, Any]
) -> dict[str, Any]:
  """A language model's decoder under the head of a scalar model."""
  return {**scalar_params, "transformer": language_params["transformer"]}
