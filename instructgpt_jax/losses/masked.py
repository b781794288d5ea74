"""Reductions over the valid entries of a padded array.

What lies outside the mask is replaced before it is used in arithmetic, so that
not even a NaN there reaches a value or a gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.types import Array

Axis = int | tuple[int, ...] | None


def to_float32(x: ArrayLike) -> Array:
  """`x` as float32; integers and 16-bit floats are widened first."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def to_bool(mask: ArrayLike) -> Array:
  """`mask` as bool."""
  return jnp.asarray(mask).astype(jnp.bool_)


def zero_outside(x: ArrayLike, mask: ArrayLike) -> Array:
  """`x` inside the mask and 0 outside, as floats.

  Args:
    x: [...] values; anything, NaN included, outside the mask.
    mask: [...] bool, broadcastable to `x`.
  """
  return jnp.where(to_bool(mask), to_float32(x), 0)


def safe_divide(numerator: ArrayLike, denominator: ArrayLike) -> Array:
  """The quotient, and 0 where the denominator is not positive."""
  numerator, denominator = to_float32(numerator), to_float32(denominator)
  positive = denominator > 0
  return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def masked_sum(x: ArrayLike, mask: ArrayLike, axis: Axis = None) -> Array:
  """Sum of `x` over the mask.

  Args:
    x: [...] values.
    mask: [...] bool, broadcastable to `x`.
    axis: axes to reduce; None is all.
  """
  return jnp.sum(zero_outside(x, mask), axis=axis)


def masked_mean(
  x: ArrayLike,
  mask: ArrayLike,
  axis: Axis = None,
  *,
  normalizer: ArrayLike | None = None,
) -> Array:
  """Mean of `x` over the mask; 0 where the mask is empty.

  Args:
    x: [...] values.
    mask: [...] bool, broadcastable to `x`.
    axis: axes to reduce; None is all.
    normalizer: denominator to use instead of the mask's count.
  """
  x = to_float32(x)
  if normalizer is None:
    count = jnp.broadcast_to(to_bool(mask), x.shape)
    normalizer = jnp.sum(count.astype(x.dtype), axis=axis)
  return safe_divide(masked_sum(x, mask, axis), normalizer)


def masked_variance(x: ArrayLike, mask: ArrayLike, axis: Axis = None) -> Array:
  """Population variance (divided by the count, not count − 1) over the mask.

  Args:
    x: [...] values.
    mask: [...] bool, broadcastable to `x`.
    axis: axes to reduce; None is all.
  """
  x = zero_outside(x, mask)
  kept_axes = tuple(range(x.ndim)) if axis is None else axis
  count = jnp.broadcast_to(to_bool(mask), x.shape).astype(x.dtype)
  mean = safe_divide(
    jnp.sum(x, axis=kept_axes, keepdims=True),
    jnp.sum(count, axis=kept_axes, keepdims=True),
  )
  return masked_mean(jnp.square(x - mean), mask, axis)


def whiten(
  x: ArrayLike, mask: ArrayLike, *, shift_mean: bool, eps: float = 1e-8
) -> Array:
  """Divides by the deviation over the mask (lm-human-preferences).

  (x − mean) / sqrt(variance + ε), to which the mean is added again unless it is
  to be shifted. The variance is the population's, over the entire array: give
  it the global batch.

  Args:
    x: [...] values.
    mask: [...] bool, broadcastable to `x`.
    shift_mean: whether the result has mean 0 or keeps the mean of `x`.
    eps: added to the variance.

  Returns:
    [...] whitened values, 0 outside the mask.
  """
  x = zero_outside(x, mask)
  mean = masked_mean(x, mask)
  scaled = (x - mean) * jax.lax.rsqrt(masked_variance(x, mask) + eps)
  return zero_outside(scaled if shift_mean else scaled + mean, mask)
