"""Attention a block of queries at a time, as in FlashAttention.

The [T, T] probabilities are never stored: the backward pass recomputes them
from the log-sum-exp of each query's scores (arXiv:2205.14135). Keys after a
block's last query are skipped, and a block's scores stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from instructgpt_jax.models.attention import (
  attend_dense,
  attention_scores,
  einsum,
)
from instructgpt_jax.types import Array, AttentionSpan

_MAX_BLOCK = 1024  # queries of a block


def block_size(length: int, span: AttentionSpan | None = None) -> int:
  """Returns the queries of a block, so that a sequence has at least four."""
  size = min(max(64, -(-length // 4)), _MAX_BLOCK)
  return size if span is None else min(size, max(64, span.local))


def fits_one_block(queries: int, length: int) -> bool:
  """Returns whether this number of a sequence's queries fits in one block."""
  return queries <= block_size(length)


def key_blocks(
  length: int, span: AttentionSpan | None = None
) -> Iterator[tuple[slice, list[slice]]]:
  """Yields the queries of each block, and the ranges of keys they attend to."""
  size = block_size(length, span)
  for start in range(0, length, size):
    end = min(start + size, length)
    keys = [slice(0, end)]
    if span is not None and start - span.local > span.prefix:
      keys = [slice(0, span.prefix), slice(start - span.local, end)]
    yield slice(start, end), [s for s in keys if s.stop > s.start]


def block_pairs(length: int, span: AttentionSpan | None = None) -> list[int]:
  """Returns the (query, key) pairs whose score each block computes."""
  return [
    (queries.stop - queries.start) * sum(k.stop - k.start for k in keys)
    for queries, keys in key_blocks(length, span)
  ]


def _take(x: Array, ranges: list[slice]) -> Array:
  """Concatenates ranges of the third axis."""
  parts = [x[:, :, s] for s in ranges]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _add_at(total: Array, part: Array, ranges: list[slice]) -> Array:
  """Adds a part to the ranges of the last axis that it was taken from."""
  start = 0
  for s in ranges:
    size = s.stop - s.start
    total = total.at[..., s].add(part[..., start : start + size])
    start += size
  return total


def forward(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  cap: float | None,
  span: AttentionSpan | None,
) -> tuple[Array, Array]:
  """Returns the attention [B, H, T, A] and log-sum-exps [B, H, T, 1]."""
  parts = [
    attend_dense(
      query[:, :, q], _take(key, k), _take(value, k), _take(mask[:, q], k), cap
    )
    for q, k in key_blocks(query.shape[2], span)
  ]
  output, logs = (
    jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True)
  )
  return output, logs


def backward(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  output: Array,
  logs: Array,
  cotangent: Array,
  cap: float | None,
  span: AttentionSpan | None,
) -> tuple[Array, Array, Array]:
  """Returns the cotangents of query, key and value.

  Args:
    query: see `forward`.
    key: see `forward`.
    value: see `forward`.
    mask: see `forward`.
    output: the attention that `forward` returned.
    logs: the log-sum-exps that `forward` returned.
    cotangent: of the output.
    cap: see `forward`.
    span: see `forward`.
  """
  scale = query.shape[-1] ** -0.5
  inner = jnp.sum(
    output.astype(jnp.float32) * cotangent, axis=-1, keepdims=True
  )
  d_query = []
  # [B, H, A, T]: XLA's CPU compiler has no fast matmul with a transposed
  # left side of many columns.
  d_key, d_value = (
    jnp.zeros(x.swapaxes(2, 3).shape, jnp.float32) for x in (key, value)
  )
  for q, k in key_blocks(query.shape[2], span):
    block, keys, d_output = query[:, :, q], _take(key, k), cotangent[:, :, q]
    block_mask = _take(mask[:, q], k)
    scores = attention_scores(block, keys, block_mask, cap)
    weights = jnp.exp(scores - logs[:, :, q]).astype(query.dtype)
    d_weights = einsum("bhtd,bhsd->bhts", d_output, _take(value, k))
    d_scores = weights * (d_weights - inner[:, :, q]) * scale
    if cap:
      d_cap = 1 - jnp.square(scores / cap)
      d_scores *= jnp.where(block_mask[:, None], d_cap, 0)
    d_scores = d_scores.astype(query.dtype)
    d_query.append(einsum("bhts,bhsd->bhtd", d_scores, keys))
    d_key = _add_at(d_key, einsum("bhtd,bhts->bhds", block, d_scores), k)
    d_value = _add_at(d_value, einsum("bhtd,bhts->bhds", d_output, weights), k)
  d_key, d_value = (x.swapaxes(2, 3) for x in (d_key, d_value))
  d_query, d_key, d_value = (
    x.astype(query.dtype)
    for x in (jnp.concatenate(d_query, axis=2), d_key, d_value)
  )
  return d_query, d_key, d_value
