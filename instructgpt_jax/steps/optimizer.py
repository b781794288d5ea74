"""Adam with a learning-rate schedule, clipping and decoupled weight decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import lora
from instructgpt_jax.types import Array, PyTree, pytree

DECAYED = ("kernel", "embedding", lora.DOWN, lora.UP)  # matrices


@pytree
class Schedule:
  """A learning-rate schedule: linear warm-up, then cosine or constant.

  Its numbers are arrays inside the optimizer's state, so that a sweep over
  learning rates or epochs compiles its programs once.
  """

  step: Array  # [] int32, number of updates done
  peak: Array  # [] float32
  warmup_steps: Array  # [] int32
  warmup_init: Array  # [] float32, as a fraction of the peak
  decay_steps: Array  # [] int32, after the warm-up
  final_fraction: Array  # [] float32, fraction of the peak; 1 is constant

  @property
  def rate(self) -> Array:
    """Computes the learning rate of the next update, [] float32."""
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


def make_schedule(
  config: configs.Optimizer, total_steps: int
) -> Callable[[int], Array]:
  """Makes the function from the number of updates done to the next rate."""
  first = _new_schedule(config, total_steps)

  def rate(step: int) -> Array:
    return dataclasses.replace(first, step=jnp.int32(step)).rate

  return rate


def _scale_by_schedule(
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
  """Makes Adam with clipping by global norm and decay of matrices.

  An update is −rate · (m̂ / (√v̂ + ε) + decay · w): ε is outside the root, and
  biases and normalization scales are not decayed.

  Args:
    config: the settings.
    total_steps: number of updates, over which the learning rate decays.
  """

  def is_decayed(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in DECAYED, params
    )

  clipping = []
  if config.clip_norm:
    clipping.append(optax.clip_by_global_norm(config.clip_norm))
  return optax.chain(
    *clipping,
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
    _scale_by_schedule(config, total_steps),
  )
