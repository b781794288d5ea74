"""Linear probes recover the weights that made the orders."""

import numpy as np
import pytest

from instructgpt_jax.evaluation import linear_probe


def make_rankings(rng, count, weights, noise):
  states = [
    rng.normal(size=(rng.integers(2, 6), len(weights))) * [1, 30, 0.01, 1]
    for _ in range(count)
  ]
  # Differences of Gumbel noise are logistic, as the probe assumes.
  orders = [s @ weights + noise * rng.gumbel(size=len(s)) for s in states]
  return states, orders


def test_the_weights_of_a_bradley_terry_model_are_recovered():
  """Features of any scale; the last one has no influence."""
  weights = np.array([1.0, -0.02, 80.0, 0.0])
  rng = np.random.default_rng(0)
  states, orders = make_rankings(rng, 3000, weights, 1.0)
  fitted = linear_probe.fit(states, orders)
  scale = np.array([1, 30, 0.01, 1])
  np.testing.assert_allclose(fitted * scale, weights * scale, atol=0.1)


def test_a_perfect_order_has_a_finite_probe():
  weights = np.array([1.0, -0.02, 80.0, 0.0])
  rng = np.random.default_rng(1)
  states, orders = make_rankings(rng, 200, weights, 0.0)
  fitted = linear_probe.fit(states, orders)
  others, truth = make_rankings(rng, 200, weights, 0.0)
  alike = [
    np.mean(np.sign(np.subtract.outer(s @ fitted, s @ fitted))
            == np.sign(np.subtract.outer(t, t)))
    for s, t in zip(others, truth, strict=True)
  ]  # fmt: skip
  assert np.isfinite(fitted).all() and np.mean(alike) > 0.97


def test_ties_and_constant_features_are_no_matter():
  states = [np.array([[1.0, 5.0], [0.0, 5.0], [3.0, 5.0]])] * 6
  fitted = linear_probe.fit(states, [np.array([1, 0, 1])] * 6)
  assert fitted[0] > 0 and fitted[1] == 0
  with pytest.raises(ValueError, match="no ranking"):
    linear_probe.fit(states, [np.zeros(3)] * 6)
