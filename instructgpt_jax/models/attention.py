"""Attention: the mask, and softmax(query · keyᵀ / √d) · value.

`models/kernels/attention.py` computes the same for whole sequences without
storing all probabilities. Shapes: B sequences, H heads, T queries, S keys, A
head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructgpt_jax import precision
from instructgpt_jax.types import Array

_MASKED_SCORE = -1e30  # finite: the largest score of a query is subtracted


def attention_mask(segments: Array) -> Array:
  """Returns the causal mask within a segment and to its prefix.

  Args:
    segments: [B, T] int32. Segment 0 is padding; nothing real attends to it.
      A negative segment is a prefix of all later segments, up to the next one.

  Returns:
    [B, T, T] bool, True where a query may attend to a key.
  """
  length = segments.shape[1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  newest = jax.lax.cummin(segments, axis=1)  # prefixes count down
  prefix = jnp.where(newest < 0, newest, segments)
  query, key = segments[:, :, None], segments[:, None, :]
  return causal & ((query == key) | (prefix[:, :, None] == key))


def einsum(formula: str, *inputs: Array) -> Array:
  """Computes an einsum with float32 results."""
  return jnp.einsum(
    formula,
    *inputs,
    precision=precision.of(jnp.result_type(*inputs)),
    preferred_element_type=jnp.float32,
  )


def soft_cap(x: Array, cap: float | None) -> Array:
  """Returns cap · tanh(x / cap), as in Gemma 2; x without a cap.

  arXiv:2408.00118.
  """
  return cap * jnp.tanh(x / cap) if cap else x


def attention_scores(
  query: Array, key: Array, mask: Array, cap: float | None
) -> Array:
  """Computes the [B, H, T, S] float32 scores, scaled, capped and masked."""
  scale = query.shape[-1] ** -0.5
  scores = einsum("bhtd,bhsd->bhts", query * scale, key)
  return jnp.where(mask[:, None], soft_cap(scores, cap), _MASKED_SCORE)


def attend_dense(
  query: Array, key: Array, value: Array, mask: Array, cap: float | None = None
) -> tuple[Array, Array]:
  """Computes scaled dot-product attention, with the softmax in float32.

  Args:
    query: [B, H, T, A].
    key: [B, H, S, A].
    value: [B, H, S, A].
    mask: [B, T, S] bool, True where a query may attend to a key; at least one
      key of each query. T may be 1: the mask then applies to all queries.
    cap: soft cap of the scores; None is none.

  Returns:
    [B, H, T, A] in the query's type, and [B, H, T, 1] float32, the
    log-sum-exp of each query's scores.
  """
  scores = attention_scores(query, key, mask, cap)
  top = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  output = einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value)
  return (output / total).astype(query.dtype), top + jnp.log(total)
