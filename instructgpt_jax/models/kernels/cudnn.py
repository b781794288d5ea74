"""Attention on NVIDIA GPUs, by cuDNN."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax.types import Array

PLATFORMS = ("cuda", "gpu")  # JAX's names while lowering, and elsewhere


def has_kernel(
  dtype: Any, length: int, head_dim: int, cap: float | None
) -> bool:
  """Returns whether cuDNN has a kernel for sequences of this shape.

  It has none in float32, at odd lengths, for wide heads, and with soft caps.
  """
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  fits = length % 2 == 0 and head_dim % 8 == 0 and head_dim <= 128
  return half and fits and not cap


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
  """Computes attention by cuDNN, or by XLA where there is no GPU.

  A plan is compiled without a GPU; XLA's attention has the same FLOPs.
  """
  by_position = (x.swapaxes(1, 2) for x in (query, key, value))
  gpu = jax.default_backend() == "gpu"
  output = jax.nn.dot_product_attention(
    *by_position, mask=mask[:, None], implementation="cudnn" if gpu else None
  )
  return output.swapaxes(1, 2)


def forward(
  query: Array, key: Array, value: Array, mask: Array
) -> tuple[Array, Array]:
  """Returns the attention, and zeros for the log-sum-exps.

  `backward` does not need them.
  """
  sums = jnp.zeros((*query.shape[:3], 1), jnp.float32)
  return attend(query, key, value, mask), sums


def backward(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  output: Array,
  logs: Array,
  cotangent: Array,
) -> tuple[Array, ...]:
  """Returns the cotangents of query, key and value."""
  del output, logs
  return jax.vjp(lambda *x: attend(*x, mask), query, key, value)[1](cotangent)
