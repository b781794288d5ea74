"""Causal attention whose [T, T] probabilities are never stored.

They are computed anew for the gradient, from the log of each row's sum
(arXiv:2205.14135), a block of queries at a time: what lies right of a block's
last query is skipped, and a block's scores stay in a core's cache. On a GPU
cuDNN's own attention is taken where it has a kernel, and on a TPU JAX's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import configs, precision, sharding
from instructgpt_jax.models.kernels import splash
from instructgpt_jax.types import Array, AttentionSpan

_LARGEST = 1024  # queries of a block
_GPUS = ("cuda", "gpu")  # as JAX calls them while lowering, and otherwise
_EXCLUDED = -1e30  # finite: a row's largest score is subtracted from it


def _product(formula: str, *inputs: Array) -> Array:
  return jnp.einsum(
    formula,
    *inputs,
    precision=precision.of(jnp.result_type(*inputs)),
    preferred_element_type=jnp.float32,
  )


def block_size(length: int, reach: AttentionSpan | None = None) -> int:
  """Queries of each of four blocks or more."""
  size = min(max(64, -(-length // 4)), _LARGEST)
  return size if reach is None else min(size, max(64, reach.last))


def fits_one_block(queries: int, length: int) -> bool:
  """Whether the scores of so many queries of a row are a block's at most."""
  return queries <= block_size(length)


def key_blocks(
  length: int, reach: AttentionSpan | None = None
) -> Iterator[tuple[slice, list[slice]]]:
  """Queries of each block, and the stretches of keys that they may see."""
  size = block_size(length, reach)
  for start in range(0, length, size):
    end = min(start + size, length)
    keys = [slice(0, end)]
    if reach is not None and start - reach.last > reach.first:
      keys = [slice(0, reach.first), slice(start - reach.last, end)]
    yield slice(start, end), [s for s in keys if s.stop > s.start]


def block_pairs(length: int, reach: AttentionSpan | None = None) -> list[int]:
  """Pairs of a query and a key whose score is computed, of each block."""
  return [
    (queries.stop - queries.start) * sum(k.stop - k.start for k in keys)
    for queries, keys in key_blocks(length, reach)
  ]


def has_kernel(dtype: Any, length: int, width: int, cap: float) -> bool:
  """Whether cuDNN attends in rows of a length, by heads of a width.

  It does not in float32, at odd lengths, with wide heads, and with caps.
  """
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  fits = length % 2 == 0 and width % 8 == 0 and width <= 128
  return half and fits and not cap


def num_scores(
  platform: str,
  model: configs.Model,
  length: int,
  reach: AttentionSpan | None = None,
) -> int:
  """Pairs of a query and a key whose score `attend` computes on a device."""
  if platform in _GPUS and has_kernel(
    model.dtype, length, model.head_size, model.attn_logit_softcap
  ):
    return length * length  # cuDNN knows neither blocks nor reach
  if platform == "tpu" and length >= splash.LEAST:
    return splash.pairs(length)
  return sum(block_pairs(length, reach))


def _cut(x: Array, stretches: list[slice]) -> Array:
  """Stretches of the third axis, one after the other."""
  parts = [x[:, :, s] for s in stretches]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _added(total: Array, part: Array, stretches: list[slice]) -> Array:
  """[..., S], to stretches of which [..., those] is added."""
  at = 0
  for s in stretches:
    size = s.stop - s.start
    total = total.at[..., s].add(part[..., at : at + size])
    at += size
  return total


def soft_cap(x: Array, cap: float) -> Array:
  """cap · tanh(x / cap), as in Gemma 2 (arXiv:2408.00118); x if cap is 0."""
  return cap * jnp.tanh(x / cap) if cap else x


def _scores(query: Array, key: Array, mask: Array, cap: float) -> Array:
  """[B, H, T, S] float32 scaled products, where a query may look."""
  scale = query.shape[-1] ** -0.5
  found = _product("bhtd,bhsd->bhts", query * scale, key)
  return jnp.where(mask[:, None], soft_cap(found, cap), _EXCLUDED)


def attend_dense(
  query: Array, key: Array, value: Array, mask: Array, cap: float = 0.0
) -> tuple[Array, Array]:
  """Scaled dot-product attention of a few queries, the softmax in float32.

  Args:
    query: [B, H, T, D / H].
    key: [B, H, S, D / H].
    value: [B, H, S, D / H].
    mask: [B, T, S] bool, True where a query may look; somewhere in each row.
      T may be 1: all queries then look alike.
    cap: soft cap of the scores; 0 is none.

  Returns:
    [B, H, T, D / H] in the query's type, and [B, H, T, 1] float32, the log of
    the sum of the exponentials of each row's scores.
  """
  scores = _scores(query, key, mask, cap)
  top = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  found = _product("bhts,bhsd->bhtd", weights.astype(value.dtype), value)
  return (found / total).astype(query.dtype), top + jnp.log(total)


def attend(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  cap: float = 0.0,
  reach: AttentionSpan | None = None,
) -> Array:
  """Causal scaled dot-product attention of whole rows.

  Args:
    query: [B, H, T, D / H].
    key: [B, H, T, D / H].
    value: [B, H, T, D / H].
    mask: [B, T, T] bool, True where a query may look: nowhere ahead of it, and
      somewhere in each row.
    cap: soft cap of the scores; 0 is none.
    reach: beyond it the mask is False, but for queries that nothing reads.

  Returns:
    [B, H, T, D / H] in the query's type.
  """
  if sharding.platform() == "tpu" and query.shape[2] >= splash.LEAST:
    with precision.context(query.dtype):
      return splash.attend(query, key, value, mask, cap)
  found: Any = _attend(query, key, value, mask, cap, reach)
  return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, mask, cap, reach):
  return _forward(query, key, value, mask, cap, reach)[0]


def _library(query: Array, key: Array, value: Array, mask: Array) -> Array:
  """By cuDNN; where there is none, as in a plan, by what counts the same."""
  rows = (x.swapaxes(1, 2) for x in (query, key, value))
  gpu = jax.default_backend() == "gpu"
  found = jax.nn.dot_product_attention(
    *rows, mask=mask[:, None], implementation="cudnn" if gpu else None
  )
  return found.swapaxes(1, 2)


def _on_device(
  blocks: Callable[..., Any],
  library: Callable[..., Any],
  query: Array,
  cap: float,
) -> Callable[..., Any]:
  """Which of both attends to queries, or is chosen by the device."""
  *_, length, width = query.shape
  if not has_kernel(query.dtype, length, width, cap):
    return blocks
  return functools.partial(
    jax.lax.platform_dependent, cuda=library, default=blocks
  )


def _forward(query, key, value, mask, cap, reach):
  def blocks(query, key, value, mask):
    parts = [
      attend_dense(
        query[:, :, q], _cut(key, k), _cut(value, k), _cut(mask[:, q], k), cap
      )
      for q, k in key_blocks(query.shape[2], reach)
    ]
    found, logs = (
      jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True)
    )
    return found, logs

  def library(query, key, value, mask):
    # The gradient of the library's attention needs no sums of ours.
    sums = jnp.zeros((*query.shape[:3], 1), jnp.float32)
    return _library(query, key, value, mask), sums

  attends = _on_device(blocks, library, query, cap)
  found, logs = attends(query, key, value, mask)
  return found, (query, key, value, mask, found, logs)


def _backward(cap, reach, saved, slope):
  def blocks(query, key, value, mask, found, logs, slope):
    scale = query.shape[-1] ** -0.5
    inner = jnp.sum(found.astype(jnp.float32) * slope, axis=-1, keepdims=True)
    of_query = []
    # [B, H, D / H, T]: XLA's CPU compiler has no fast product with a transposed
    # left side of many columns.
    of_key, of_value = (
      jnp.zeros(x.swapaxes(2, 3).shape, jnp.float32) for x in (key, value)
    )
    for q, k in key_blocks(query.shape[2], reach):
      some, seen, g = query[:, :, q], _cut(key, k), slope[:, :, q]
      may = _cut(mask[:, q], k)
      scores = _scores(some, seen, may, cap)
      weights = jnp.exp(scores - logs[:, :, q]).astype(query.dtype)
      of_weights = _product("bhtd,bhsd->bhts", g, _cut(value, k))
      of_scores = weights * (of_weights - inner[:, :, q]) * scale
      if cap:
        flat = 1 - jnp.square(scores / cap)
        of_scores *= jnp.where(may[:, None], flat, 0)
      of_scores = of_scores.astype(query.dtype)
      of_query.append(_product("bhts,bhsd->bhtd", of_scores, seen))
      of_key = _added(of_key, _product("bhtd,bhts->bhds", some, of_scores), k)
      of_value = _added(of_value, _product("bhtd,bhts->bhds", g, weights), k)
    of_key, of_value = (x.swapaxes(2, 3) for x in (of_key, of_value))
    return tuple(
      x.astype(query.dtype)
      for x in (jnp.concatenate(of_query, axis=2), of_key, of_value)
    )

  def library(query, key, value, mask, found, logs, slope):
    del found, logs
    return jax.vjp(lambda *x: _library(*x, mask), query, key, value)[1](slope)

  found = _on_device(blocks, library, saved[0], cap)(*saved, slope)
  return *found, None


_attend.defvjp(_forward, _backward)
