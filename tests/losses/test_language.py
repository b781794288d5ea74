"""Token log-probabilities and cross-entropy against float64 loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.losses import language


def softmax_logp(row, temperature=1.0):
  """Computes log-probabilities of one row of logits by the definition."""
  scaled = [float(v) / temperature for v in row]
  top = max(scaled)
  total = math.log(sum(math.exp(v - top) for v in scaled)) + top
  return [v - total for v in scaled]


@pytest.fixture
def data(rng):
  logits = rng.normal(0, 3, (3, 5, 11)).astype(np.float32)
  targets = rng.integers(0, 11, (3, 5))
  weights = (rng.random((3, 5)) < 0.7).astype(np.float32)
  weights[0, 0], weights[0, 1], weights[1, 1] = 0, 2.5, 0.25
  return logits, targets, weights


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_token_logp_equals_loop(data, temperature):
  logits, targets, _ = data
  actual = jax.jit(language.token_logp)(
    logits, targets, temperature=temperature
  )
  assert actual.dtype == jnp.float32
  assert actual.shape == targets.shape
  for index in np.ndindex(targets.shape):
    expected = softmax_logp(logits[index], temperature)[targets[index]]
    np.testing.assert_allclose(actual[index], expected, rtol=1e-5, atol=1e-5)


def test_token_logp_is_float32_and_stable_for_bfloat16_logits():
  logits = jnp.asarray([300.0, 0.0, 300.0], jnp.bfloat16)
  actual = language.token_logp(logits, 2)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, -math.log(2), rtol=1e-6)


def test_token_logp_of_a_narrow_choice_keeps_its_digits():
  actual = language.token_logp(jnp.asarray([1.0, 1.001], jnp.float32), 0)
  np.testing.assert_allclose(actual, softmax_logp([1.0, 1.001])[0], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropy_equals_loop(data, temperature):
  logits, _, _ = data
  actual = jax.jit(language.entropy)(logits, temperature=temperature)
  for index in np.ndindex(logits.shape[:-1]):
    logp = softmax_logp(logits[index], temperature)
    expected = -sum(math.exp(v) * v for v in logp)
    np.testing.assert_allclose(actual[index], expected, rtol=1e-5, atol=1e-5)


def test_entropy_known_answers():
  np.testing.assert_allclose(
    language.entropy(jnp.zeros(8)), math.log(8), rtol=1e-6
  )
  excluded = jnp.asarray([0.0, 0.0, -jnp.inf])
  value, slope = jax.value_and_grad(language.entropy)(excluded)
  np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
  assert np.isfinite(slope).all()
  assert language.entropy(jnp.asarray([0.0, 200.0])) == 0


def test_weighted_cross_entropy_equals_loop(data):
  logits, targets, weights = data
  loss, total, metrics = jax.jit(language.weighted_cross_entropy)(
    logits, targets, weights
  )
  expected_loss = expected_correct = 0.0
  for index in np.ndindex(targets.shape):
    logp, weight = softmax_logp(logits[index]), float(weights[index])
    expected_loss -= weight * logp[targets[index]]
    expected_correct += weight * (int(np.argmax(logp)) == targets[index])
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  np.testing.assert_allclose(total, weights.astype(float).sum(), rtol=1e-6)
  np.testing.assert_allclose(metrics["correct"], expected_correct, rtol=1e-6)


def test_weighted_cross_entropy_counts_correct_predictions():
  logits = np.full((1, 3, 4), -5.0)
  logits[0, [0, 1, 2], [1, 2, 3]] = 5.0
  targets = np.array([[1, 2, 0]])
  _, total, metrics = language.weighted_cross_entropy(
    logits, targets, np.array([[1.0, 1.0, 1.0]])
  )
  assert (metrics["correct"], total) == (2, 3)


def test_invariant_20_cross_entropy_of_microbatches_adds_up(data):
  logits, targets, weights = data

  def loss_and_gradient(rows):
    def summed(x):
      loss, total, _ = language.weighted_cross_entropy(
        x, targets[rows], weights[rows]
      )
      return loss, total

    run = jax.jit(jax.value_and_grad(summed, has_aux=True))
    return run(jnp.asarray(logits[rows]))

  (loss, total), slope = loss_and_gradient(slice(None))
  parts = [loss_and_gradient(slice(i, i + 1)) for i in range(3)]
  np.testing.assert_allclose(sum(p[0][0] for p in parts), loss, rtol=1e-5)
  np.testing.assert_allclose(sum(p[0][1] for p in parts), total, rtol=1e-6)
  np.testing.assert_allclose(
    np.concatenate([p[1] for p in parts]), slope, rtol=1e-5, atol=1e-7
  )


def test_cross_entropy_gradient_is_weight_times_softmax_minus_onehot(data):
  logits, targets, weights = data
  actual = jax.grad(
    lambda x: language.weighted_cross_entropy(x, targets, weights)[0]
  )(jnp.asarray(logits))
  for index in np.ndindex(targets.shape):
    expected = np.exp(softmax_logp(logits[index]))
    expected[targets[index]] -= 1
    np.testing.assert_allclose(
      actual[index], weights[index] * expected, rtol=1e-4, atol=1e-6
    )


def test_entropy_gradient_is_that_of_finite_differences(rng, check_gradient):
  check_gradient(
    lambda x: jnp.sum(language.entropy(x) * jnp.asarray([1.0, 2.0])),
    rng.normal(size=(2, 5)),
  )


def test_invariant_14_unweighted_tokens_never_matter(data, spoil):
  logits, targets, weights = data
  used = weights > 0
  spoiled = spoil(logits, used[..., None])
  elsewhere = np.where(used, targets, 10_000)

  def loss(x, y):
    value, total, metrics = language.weighted_cross_entropy(x, y, weights)
    return value, (total, metrics)

  clean = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits), targets)
  dirty = jax.value_and_grad(loss, has_aux=True)(
    jnp.asarray(spoiled), elsewhere
  )
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(np.asarray(dirty[1])[~used], 0)


def test_no_weight_at_all_gives_zero_sums():
  loss, total, metrics = language.weighted_cross_entropy(
    np.ones((2, 3, 4)), np.ones((2, 3), int), np.zeros((2, 3))
  )
  assert (loss, total, metrics["correct"]) == (0, 0, 0)
