"""Checks that every loss's tests share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def check_gradient():
  """Compares a gradient with central differences, both in float64."""

  def check(function, x, *, step=1e-6, tolerance=1e-6):
    x = np.asarray(x, np.float64)
    with jax.enable_x64(True):
      function = jax.jit(function)
      actual = np.asarray(jax.grad(function)(jnp.asarray(x)))
      assert actual.dtype == np.float64
      expected = np.zeros_like(x)
      for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        rise = function(jnp.asarray(up)) - function(jnp.asarray(down))
        expected[index] = float(rise) / (2 * step)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=tolerance)
    assert np.abs(expected).max() > 1e-3  # a flat function would prove nothing
    return actual

  return check


@pytest.fixture
def spoil():
  """Puts NaN, infinities and huge numbers where `mask` is False."""

  def fill(x, mask):
    x = np.array(x, copy=True)
    junk = np.resize([np.nan, np.inf, -np.inf, 1e30], x.shape)
    return np.where(np.asarray(mask, bool), x, junk).astype(x.dtype)

  return fill
