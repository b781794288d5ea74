"""Optimiser, train states, and gradient accumulation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import lora
from instructgpt_jax.types import Array, PyTree, pytree

MATRICES = ("kernel", "embedding", lora.DOWN, lora.UP)
Metrics = dict[str, Array]
LossFn = Callable[[PyTree, PyTree, Array], tuple[Array, Metrics]]


@pytree
class TrainState:
  """One network in training."""

  step: Array  # [] int32, optimiser updates done
  params: PyTree  # those that are trained
  opt_state: PyTree


@pytree
class PpoState:
  """Policy, value network, averaged policy and the KL controller."""

  policy: TrainState
  value: TrainState
  ema: PyTree  # `move_average` of the policy's parameters; {} if decay is 0
  kl_coef: Array  # [] float32, β
  ptx_coef: Array  # [] float32, γ
  ema_decay: Array  # [] float32


@pytree
class Schedule:
  """A learning rate's course: linear warm-up, then cosine or constant.

  Its numbers are arrays that travel with the optimiser's state, so that a
  sweep over rates or epochs compiles its programs once.
  """

  step: Array  # [] int32, updates done
  peak: Array  # [] float32
  warmup_steps: Array  # [] int32
  warmup_init: Array  # [] float32, share of the peak
  decay_steps: Array  # [] int32, after the warm-up
  final_fraction: Array  # [] float32, share of the peak; 1 is constant

  @property
  def rate(self) -> Array:
    """[] float32, of the next update."""
    ramp = self.step / jnp.maximum(self.warmup_steps, 1)
    warming = self.warmup_init + (1 - self.warmup_init) * ramp
    done = jnp.clip((self.step - self.warmup_steps) / self.decay_steps, 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
    after = self.final_fraction + (1 - self.final_fraction) * cosine
    return self.peak * jnp.where(self.step < self.warmup_steps, warming, after)


def _new_schedule(config: configs.Optimizer, total_steps: int) -> Schedule:
  if config.warmup_steps < 0:
    raise UserError(
      f"{config.warmup_steps} is for PPO, which counts in iterations",
      field="optimizer.warmup_steps",
      fix="give a number of updates, or 0 for no warm-up",
      code="warmup_outside_ppo",
    )
  constant = config.schedule == "constant"
  return Schedule(
    step=jnp.zeros((), jnp.int32),
    peak=jnp.float32(config.learning_rate),
    warmup_steps=jnp.int32(config.warmup_steps),
    warmup_init=jnp.float32(config.warmup_init),
    decay_steps=jnp.int32(max(total_steps - config.warmup_steps, 1)),
    final_fraction=jnp.float32(1.0 if constant else config.final_fraction),
  )


def schedule(
  config: configs.Optimizer, total_steps: int
) -> Callable[[int], Array]:
  """Updates done → the next one's learning rate."""
  begun = _new_schedule(config, total_steps)

  def rate(step: int) -> Array:
    return dataclasses.replace(begun, step=jnp.int32(step)).rate

  return rate


def _follow_schedule(
  config: configs.Optimizer, total_steps: int
) -> optax.GradientTransformation:
  """Multiplies updates by minus the learning rate."""

  def init(params: PyTree) -> Schedule:
    del params
    return _new_schedule(config, total_steps)

  def update(updates: PyTree, state: Schedule, params: PyTree = None):
    del params
    rate = state.rate
    updates = jax.tree.map(lambda u: (-rate).astype(u.dtype) * u, updates)
    return updates, dataclasses.replace(state, step=state.step + 1)

  return optax.GradientTransformation(init, update)


def make_optimizer(
  config: configs.Optimizer, total_steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, then Adam with decay on matrices only.

  Adam divides by sqrt(second moment) + ε (ε outside the root).
  """

  def is_matrix(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in MATRICES, params
    )

  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  return optax.chain(
    *parts,
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
    _follow_schedule(config, total_steps),
  )


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


def update_ema(
  average: PyTree, new: PyTree, decay: Array, count: Array
) -> PyTree:
  """Updates a bias-corrected exponential average.

  After t updates the average is Σ dᵗ⁻ⁱ xᵢ / Σ dᵗ⁻ⁱ over x₁ … x_t: its weights
  sum to 1 without a share of its initial value, as in Adam. Once d^t is small
  it is the plain d · average + (1 − d) · x.

  Args:
    average: after t − 1 updates; anything when t is 1.
    new: x_t.
    decay: [] float32, d; above 0 and below 1.
    count: [] int32, t.

  Returns:
    The average after t updates.
  """
  weight = (1 - decay) / -jnp.expm1(count * jnp.log(decay))
  return jax.tree.map(lambda a, x: a + weight * (x - a), average, new)


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
  rows = jax.tree.leaves(batch)[0].shape[0]
  size = microbatch if 0 < microbatch < rows else rows
  if rows % size:
    raise ValueError(f"microbatch {microbatch} does not divide batch {rows}")

  def strided(x: Array) -> Array:
    # Each microbatch spans all devices that hold the batch.
    return jnp.asarray(x).reshape(size, -1, *x.shape[1:]).swapaxes(0, 1)

  return accumulate_parts(loss_fn, params, jax.tree.map(strided, batch))


def accumulate_parts(
  loss_fn: LossFn, params: PyTree, parts: PyTree, used: Array | None = None
) -> tuple[Array, PyTree, Metrics]:
  """Loss, gradients and metrics of microbatches.

  Args:
    loss_fn: as in `accumulate`.
    params: parameters.
    parts: tree of arrays [C, M, …], the microbatches.
    used: [] int32, how many of them count, at least one; None is all.
  """
  gradient = jax.value_and_grad(loss_fn, has_aux=True)
  count = jax.tree.leaves(parts)[0].shape[0]

  def own(index: Array) -> PyTree:
    return jax.tree.map(lambda x: x[index], parts)

  def part(index: Array) -> tuple[Array, PyTree, Metrics]:
    (loss, metrics), grads = gradient(params, own(index), index)
    return loss, grads, metrics

  zero = jnp.zeros((), jnp.int32)
  if count == 1:
    return part(zero)

  # Not of `part`: gradients take long to trace, and are shaped as parameters.
  loss, metrics = jax.eval_shape(lambda i: loss_fn(params, own(i), i), zero)
  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), (loss, params, metrics)
  )

  def add(index: Array, total: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, part(index))

  if used is None:
    return jax.lax.fori_loop(0, count, add, zeros)
  return bounded_fori_loop(used, count, add, zeros)


def bounded_fori_loop(
  used: Array,
  count: int,
  body: Callable[[Array, PyTree], PyTree],
  start: PyTree,
) -> PyTree:
  """body(index, …) for each index below `used`, which is `count` at most.

  The condition names `count`, so that plans know what there is at most.
  """

  def go_on(carry: tuple[Array, PyTree]) -> Array:
    return (carry[0] < used) & (carry[0] < count)

  def step(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
    index, found = carry
    return index + 1, body(index, found)

  zero = jnp.zeros((), jnp.int32)
  return jax.lax.while_loop(go_on, step, (zero, start))[1]


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


def params_checksum(tree: PyTree) -> Array:
  """[] uint32 hash of every float32 bit of a tree and of where it stands.

  A change of one value always shows. Sums of uint32 are exact, so the layout
  over devices does not matter.
  """
  return functools.reduce(
    add_to_checksum, jax.tree.leaves(tree), jnp.zeros((), jnp.uint32)
  )


def add_to_checksum(mark: Array, x: Array) -> Array:
  """The fingerprint of some leaves and of one more after them."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size) + index
  of_leaf = jnp.sum(_mix(_mix(place) ^ bits), dtype=jnp.uint32)
  return mark * jnp.uint32(31) + of_leaf


def learning_rate(
  config: configs.Optimizer, total_steps: int, step: Any
) -> Array:
  """The learning rate of update number `step`, for the log."""
  return jnp.asarray(schedule(config, total_steps)(step))
