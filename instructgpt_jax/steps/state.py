"""The states of training, and one update of each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax.types import Array, PyTree, pytree

Metrics = dict[str, Array]


@pytree
class TrainState:
  """State of one network in training."""

  step: Array  # [] int32, number of updates done
  params: PyTree  # the trained parameters
  opt_state: PyTree


@pytree
class PpoState:
  """State of PPO: both networks, the averaged policy and the coefficients."""

  policy: TrainState
  value: TrainState
  ema: PyTree  # average of the policy's parameters; {} without averaging
  kl_coef: Array  # [] float32, β
  ptx_coef: Array  # [] float32, γ_ptx
  ema_decay: Array  # [] float32


def new_state(
  params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """Makes the state before the first update."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
  )


def apply_gradients(
  state: TrainState, grads: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """Applies one optimizer update."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  return TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )


def update_ema(
  average: PyTree, new: PyTree, decay: Array, count: Array
) -> PyTree:
  """Updates a bias-corrected exponential moving average.

  After t updates the average is Σ dᵗ⁻ⁱ xᵢ / Σ dᵗ⁻ⁱ over x₁ … x_t, so its
  weights sum to 1 and its initial value has none, as in Adam. Once dᵗ is small
  this is d · average + (1 − d) · x.

  Args:
    average: the average after t − 1 updates; any value when t is 1.
    new: x_t.
    decay: [] float32, d, between 0 and 1, both excluded.
    count: [] int32, t.

  Returns:
    The average after t updates.
  """
  weight = (1 - decay) / -jnp.expm1(count * jnp.log(decay))
  return jax.tree.map(lambda a, x: a + weight * (x - a), average, new)
