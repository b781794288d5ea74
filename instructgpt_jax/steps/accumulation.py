"""Gradient accumulation over microbatches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax.steps.state import Metrics
from instructgpt_jax.types import Array, PyTree

# (params, microbatch, its index) → its share of the batch's loss and metrics.
LossFn = Callable[[PyTree, PyTree, Array], tuple[Array, Metrics]]


def accumulate(
  loss_fn: LossFn, params: PyTree, batch: PyTree, microbatch: int
) -> tuple[Array, PyTree, Metrics]:
  """Computes loss, gradients and metrics of a batch, by microbatches.

  Args:
    loss_fn: function of parameters, a microbatch and its index. It returns the
      microbatch's share of the batch's loss and metrics, already divided by the
      batch's normalizer, so that shares add up.
    params: parameters.
    batch: tree of arrays [B, …].
    microbatch: rows of a microbatch, a divisor of B; 0 is the whole batch.

  Returns:
    Loss, gradients and metrics of the whole batch.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  size = microbatch if 0 < microbatch < rows else rows
  if rows % size:
    raise ValueError(f"microbatch {microbatch} does not divide batch {rows}")

  def strided(x: Array) -> Array:
    # Each microbatch spans all devices that hold the batch.
    return jnp.asarray(x).reshape(size, -1, *x.shape[1:]).swapaxes(0, 1)

  return accumulate_microbatches(loss_fn, params, jax.tree.map(strided, batch))


def accumulate_microbatches(
  loss_fn: LossFn,
  params: PyTree,
  microbatches: PyTree,
  used: Array | None = None,
) -> tuple[Array, PyTree, Metrics]:
  """Computes loss, gradients and metrics summed over microbatches.

  Args:
    loss_fn: as in `accumulate`.
    params: parameters.
    microbatches: tree of arrays [C, M, …], C microbatches of M rows.
    used: [] int32, number of microbatches that count, at least one; None is C.
  """
  loss_and_grads = jax.value_and_grad(loss_fn, has_aux=True)
  count = jax.tree.leaves(microbatches)[0].shape[0]

  def microbatch(index: Array) -> PyTree:
    return jax.tree.map(lambda x: x[index], microbatches)

  def share(index: Array) -> tuple[Array, PyTree, Metrics]:
    (loss, metrics), grads = loss_and_grads(params, microbatch(index), index)
    return loss, grads, metrics

  zero = jnp.zeros((), jnp.int32)
  if count == 1:
    return share(zero)

  # Not of `share`: gradients take long to trace, and have the params' shapes.
  loss, metrics = jax.eval_shape(
    lambda i: loss_fn(params, microbatch(i), i), zero
  )
  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), (loss, params, metrics)
  )

  def add(index: Array, total: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, share(index))

  if used is None:
    return jax.lax.fori_loop(0, count, add, zeros)
  return bounded_fori_loop(used, count, add, zeros)


def bounded_fori_loop(
  used: Array,
  count: int,
  body: Callable[[Array, PyTree], PyTree],
  start: PyTree,
) -> PyTree:
  """Runs `carry = body(index, carry)` for each index below `used`.

  The condition compares with `count` as well, so that the planner can read the
  largest number of trips from the compiled program.

  Args:
    used: [] int32, number of trips, at most `count`.
    count: the largest number of trips.
    body: function of index and carry.
    start: the first carry.

  Returns:
    The last carry.
  """

  def condition(carry: tuple[Array, PyTree]) -> Array:
    return (carry[0] < used) & (carry[0] < count)

  def step(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
    index, value = carry
    return index + 1, body(index, value)

  zero = jnp.zeros((), jnp.int32)
  return jax.lax.while_loop(condition, step, (zero, start))[1]
