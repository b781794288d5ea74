"""Dense layers that store only their input for the backward pass.

A norm or activation before a matmul is recomputed in the backward pass: it is
cheap, and storing its result costs memory and bandwidth. A block of width D
then stores 10 D numbers a token instead of 27 D.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax import precision
from instructgpt_jax.types import Array, PyTree

Prologue = Callable[..., Array]  # (x, *weights) → the input of the matmul

# With fewer columns than this, a matmul with a transposed left side is slow on
# a CPU.
_MIN_FAST_COLUMNS = 512


def identity(x: Array, axis: int = -1) -> Array:
  """Returns x: the prologue of a layer that has none."""
  del axis
  return x


def optimization_barrier(x: Array, done: PyTree) -> Array:
  """Returns x with a data dependency on `done`, which also works on CPUs.

  What is computed from the result is computed after `done`, and recomputed
  where it was computed before. XLA's CPU compiler drops its own optimization
  barriers before it merges equal expressions and schedules them; here it gets a
  zero that it cannot fold.

  Args:
    x: any array.
    done: a CPU waits for its first leaf, other devices for all leaves.
  """

  def cpu(x, done):
    leaf = jax.tree.leaves(done)[0]
    first = leaf[(0,) * leaf.ndim]
    return x + jnp.minimum(jnp.abs(first), 0).astype(x.dtype)

  def barrier(x, done):
    return jax.lax.optimization_barrier((x, done))[0]

  return jax.lax.platform_dependent(x, done, cpu=cpu, default=barrier)


def _kernel_gradient(inputs: Array, cotangent: Array) -> Array:
  """Computes inputsᵀ · cotangent, [M, I] and [M, O] → [I, O] float32."""

  def transposed_matmul(a: Array, b: Array) -> Array:
    return jax.lax.dot_general(
      a,
      b,
      (((0,), (0,)), ((), ())),
      precision=precision.of(a.dtype),
      preferred_element_type=jnp.float32,
    )

  if cotangent.shape[1] >= min(_MIN_FAST_COLUMNS, inputs.shape[1]):
    return transposed_matmul(inputs, cotangent)
  return jax.lax.platform_dependent(
    inputs,
    cotangent,
    cpu=lambda inputs, cotangent: (
      optimization_barrier(transposed_matmul(cotangent, inputs), cotangent).T
    ),
    default=transposed_matmul,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense(
  prologue: Prologue,
  x: Array,
  weights: tuple[Array, ...],
  kernel: Array,
  bias: Array | None,
) -> Array:
  """Computes prologue(x, *weights) · kernel + bias, storing only x.

  Args:
    prologue: a cheap function of x and its weights, [M, I] in x's type.
    x: [M, I].
    weights: weights of the prologue.
    kernel: [I, O] float32.
    bias: [O] float32, or None.

  Returns:
    [M, O] in x's type.
  """
  output = precision.matmul(prologue(x, *weights), kernel.astype(x.dtype))
  return output if bias is None else output + bias.astype(x.dtype)


def _forward(prologue, x, weights, kernel, bias):
  return dense(prologue, x, weights, kernel, bias), (x, weights, kernel, bias)


def _backward(prologue, saved, cotangent):
  x, weights, kernel, bias = saved
  inputs, pull = jax.vjp(prologue, optimization_barrier(x, cotangent), *weights)
  d_x, *d_weights = pull(precision.matmul(cotangent, kernel.T.astype(x.dtype)))
  d_bias = None
  if bias is not None:
    d_bias = cotangent.astype(jnp.float32).sum(axis=0)
  return d_x, tuple(d_weights), _kernel_gradient(inputs, cotangent), d_bias


dense.defvjp(_forward, _backward)
