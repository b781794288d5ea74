"""New train states and the moving average of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax.steps import state as state_lib


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.992, 0.999999])
def test_average_gives_its_initial_value_no_weight(decay):
  rng = np.random.default_rng(0)
  points = rng.normal(size=(200, 3)).astype(np.float32)
  move = jax.jit(state_lib.update_ema)
  average = {"x": jnp.full(3, 1e3)}  # its initial value
  for count, point in enumerate(points, 1):
    average = move(average, {"x": point}, jnp.float32(decay), jnp.int32(count))
    weights = decay ** np.arange(count - 1.0, -1, -1)
    expected = weights @ points[:count] / weights.sum()
    np.testing.assert_allclose(average["x"], expected, rtol=0, atol=2e-3)
  plain = decay * average["x"] + (1 - decay) * points[0]
  actual = move(average, {"x": points[0]}, jnp.float32(decay), jnp.int32(10**7))
  np.testing.assert_allclose(actual["x"], plain, atol=1e-5)


def test_new_state_starts_at_zero():
  optimizer = optax.sgd(0.1)
  params = {"w": jnp.ones(2)}
  state = state_lib.new_state(params, optimizer)
  assert state.step == 0 and state.step.dtype == jnp.int32
  assert state.params is params
