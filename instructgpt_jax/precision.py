"""The precision of matmuls: a float32 model computes in float32.

Left to itself, JAX rounds float32 inputs of matmuls to TF32's 11 significant
bits on Ampere and later GPUs, and to bfloat16's 8 on TPUs. A float32 model
would then have that precision, and decoding would differ from a full pass by a
thousand times the rounding error of float32. Matmuls of bfloat16 inputs are
left alone: they are exact products summed in float32.

JAX's own setting wins: with JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32, or
`jax.default_matmul_precision`, float32 models compute as it says.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructgpt_jax.types import Array

_SIZE = 128  # of the matrices by which a device is measured


def of(dtype: Any) -> jax.lax.Precision | None:
  """Returns the precision of matmuls of inputs of this type."""
  unset = jax.config.jax_default_matmul_precision is None  # type: ignore
  if unset and jnp.dtype(dtype) == jnp.float32:
    return jax.lax.Precision.HIGHEST
  return None


def context(dtype: Any) -> contextlib.AbstractContextManager[Any]:
  """Applies `of` to matmuls of libraries that take no precision."""
  if of(dtype) is None:
    return contextlib.nullcontext()
  return jax.default_matmul_precision("highest")


def matmul(a: Array, b: Array) -> Array:
  """Returns a @ b at the precision of their type."""
  return jnp.matmul(a, b, precision=of(jnp.result_type(a, b)))


@jax.jit
def _rounded(values: Array) -> Array:
  a = jnp.zeros((len(values), _SIZE), jnp.float32).at[:, 0].set(values)
  b = jnp.zeros((_SIZE, _SIZE), jnp.float32).at[0].set(1)
  return jax.lax.dot_general(
    a, b, (((1,), (0,)), ((), ())), precision=of(jnp.float32)
  )


def unit_roundoff(dtype: Any) -> float:
  """Measures the largest relative error of rounding a matmul's input.

  On this device and with its settings: 2⁻²⁴ in float32, 2⁻¹¹ where float32
  inputs are taken in TF32, 2⁻⁸ in bfloat16.
  """
  nominal = float(jnp.finfo(dtype).eps) / 2
  if jnp.dtype(dtype) != jnp.float32:
    return nominal
  values = np.zeros(_SIZE, np.float32)
  values[:24] = 1 + 2.0 ** -np.arange(24)
  error = np.abs(np.asarray(_rounded(values)) - values[:, None])
  return max(nominal, float(error.max()))
