"""Optimiser, train states, and gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import config as config_lib
from instructgpt_jax.types import Array, PyTree, pytree

Metrics = dict[str, Array]
LossFn = Callable[[PyTree, PyTree, Array], tuple[Array, Metrics]]


@pytree
class TrainState:
  """One network in training."""

  step: Array  # [] int32, optimiser updates done
  params: PyTree
  opt_state: PyTree


@pytree
class PpoState:
  """Policy, value network, averaged policy and the KL controller."""

  policy: TrainState
  value: TrainState
  ema: PyTree  # averaged policy parameters, updated once per policy update
  kl_coef: Array  # [] float32, β


def schedule(config: config_lib.Optimizer, total_steps: int) -> optax.Schedule:
  """Linear warm-up from `warmup_init`, then cosine or constant."""
  peak = config.learning_rate
  decay_steps = max(total_steps - config.warmup_steps, 1)
  if config.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, decay_steps, alpha=config.final_fraction
    )
  else:
    after = optax.constant_schedule(peak)
  if not config.warmup_steps:
    return after
  warmup = optax.linear_schedule(
    config.warmup_init * peak, peak, config.warmup_steps
  )
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(
  config: config_lib.Optimizer, total_steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, then Adam with decay on matrices only.

  Adam divides by sqrt(second moment) + ε (ε outside the root).
  """

  def is_matrix(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )

  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  parts.append(
    optax.adamw(
      schedule(config, total_steps),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      mask=is_matrix,
    )
  )
  return optax.chain(*parts)


def new_state(
  params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """A state before its first update."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
  )


def apply_gradients(
  state: TrainState, grads: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """One optimiser update."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  return TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )


def accumulate(
  loss_fn: LossFn, params: PyTree, batch: PyTree, microbatch: int
) -> tuple[Array, PyTree, Metrics]:
  """Loss, gradients and metrics of a batch, by microbatches.

  Args:
    loss_fn: (params, microbatch, its index) → its share of the batch's loss
      and of the metrics, both already divided by the batch's normalizer, so
      that shares add up.
    params: parameters.
    batch: tree of arrays [B, …].
    microbatch: rows at a time, a divisor of B; 0 is the whole batch.

  Returns:
    Loss, gradients, metrics of the whole batch.
  """
  gradient = jax.value_and_grad(loss_fn, has_aux=True)
  rows = jax.tree.leaves(batch)[0].shape[0]
  if not microbatch or microbatch >= rows:
    (loss, metrics), grads = gradient(params, batch, jnp.zeros((), jnp.int32))
    return loss, grads, metrics
  if rows % microbatch:
    raise ValueError(f"microbatch {microbatch} does not divide batch {rows}")
  parts = rows // microbatch
  # Strided, so that each microbatch spans all devices that hold the batch.
  stacked = jax.tree.map(
    lambda x: x.reshape(microbatch, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )

  def body(total, part):
    index, rows_of_part = part
    (loss, metrics), grads = gradient(params, rows_of_part, index)
    return jax.tree.map(jnp.add, total, (loss, grads, metrics)), None

  first = jax.tree.map(lambda x: x[0], stacked)
  shapes = jax.eval_shape(gradient, params, first, jnp.zeros((), jnp.int32))
  (loss, metrics), grads = shapes
  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), (loss, grads, metrics)
  )
  total, _ = jax.lax.scan(
    body, zeros, (jnp.arange(parts, dtype=jnp.int32), stacked)
  )
  return total


def dot(a: PyTree, b: PyTree) -> Array:
  """Inner product of two trees of gradients."""
  products = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
  return jax.tree.reduce(jnp.add, products)


def angle(a: PyTree, b: PyTree) -> Array:
  """Degrees between two gradients; 90 when one vanishes."""
  norms = optax.tree.norm(a) * optax.tree.norm(b)
  cosine = jnp.where(norms > 0, dot(a, b) / jnp.where(norms > 0, norms, 1), 0)
  return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))


def _mix(x: Array) -> Array:
  """Murmur3's finaliser: a bijection of uint32 that spreads every bit."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def fingerprint(tree: PyTree) -> Array:
  """[] uint32 hash of every float32 bit of a tree and of where it stands.

  A change of one value always shows. Sums of uint32 are exact, so the layout
  over devices does not matter.
  """

  def leaf_hash(x: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
      place = place * jnp.uint32(size) + index
    return jnp.sum(_mix(_mix(place) ^ bits), dtype=jnp.uint32)

  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(tree):
    total = total * jnp.uint32(31) + leaf_hash(leaf)
  return total


def learning_rate(
  config: config_lib.Optimizer, total_steps: int, step: Any
) -> Array:
  """The learning rate of update number `step`, for the log."""
  return jnp.asarray(schedule(config, total_steps)(step))
