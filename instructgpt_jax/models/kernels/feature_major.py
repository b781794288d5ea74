"""The layout of activations while decoding: features first, [D, B].

A decode step multiplies each kernel by one token of each sequence. With the
kernel stored as [O, I] and activations as [I, B], a CPU reads the kernel in the
order in which it is stored; for [B, I] · [I, O] XLA's CPU compiler rearranges
the whole kernel at each step. Layers take the position of the feature axis:
`axis=-1` is [M, D], and `axis=0` is this layout.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from instructgpt_jax import precision, sharding
from instructgpt_jax.types import Array

AXIS = 0  # of the features
TRANSPOSED = "transposed"  # name of a kernel stored as [outputs, inputs]


def transpose_kernels(
  tree: dict[str, Any], dtype: Any, *, scanned: bool, start: int = 0
) -> dict[str, Any]:
  """Stores each kernel as `TRANSPOSED`, its output axes first, in `dtype`.

  Args:
    tree: parameters without adapters.
    dtype: type of the kernels and embeddings in the result.
    scanned: kernels under "blocks" have a leading layer axis.
    start: axes before a kernel's own.
  """
  result: dict[str, Any] = {}
  for name, x in tree.items():
    if isinstance(x, dict):
      layer_axes = start + (name == "blocks" and scanned)
      result[name] = transpose_kernels(
        x, dtype, scanned=scanned, start=layer_axes
      )
      if "kernel" in x:
        inputs = 2 if name == "project" else 1  # heads and head dimensions
        kernel = result[name].pop("kernel")
        axes = range(layer_axes, layer_axes + inputs)
        kernel = jnp.moveaxis(kernel, axes, range(-inputs, 0))
        result[name][TRANSPOSED] = kernel.astype(dtype)
    else:
      result[name] = x.astype(dtype) if name == "embedding" else x
  return result


def matmul(
  kernel: Array, bias: Array | None, x: Array, output_axis: str | None
) -> Array:
  """Computes kernel · x + bias.

  Args:
    kernel: [O, …, I], outputs first.
    bias: [O, …], or None.
    x: [I, B].
    output_axis: logical axis of the outputs.

  Returns:
    [outputs, B] in x's type.
  """
  weights = kernel.reshape(-1, len(x)).astype(x.dtype)
  output = precision.matmul(weights, x)
  output = sharding.shard(output, output_axis, "decode_batch")
  if bias is None:
    return output
  return output + bias.reshape(-1, 1).astype(x.dtype)


def split_heads(x: Array, head_dim: int) -> Array:
  """[parts, heads · head_dim, B] → [parts, B, heads, 1, head_dim]."""
  parts, _, batch = x.shape
  heads = x.reshape(parts, -1, 1, head_dim, batch)
  return heads.transpose(0, 4, 1, 2, 3)


def merge_heads(x: Array) -> Array:
  """[B, K, heads of a group, head_dim] → [heads · head_dim, B]."""
  merged = x.transpose(1, 2, 3, 0).reshape(-1, len(x))
  return sharding.shard(merged, "heads", "decode_batch")
