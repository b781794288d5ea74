"""KL estimators against their definitions, and the controller by hand."""

import math

import jax
import numpy as np
import pytest

from instructgpt_jax.losses import kl


@pytest.fixture
def data(rng):
  logp, ref = rng.normal(size=(2, 4, 6)).astype(np.float32)
  return logp, ref


def test_kl_estimators_equal_their_definitions(data):
  logp, ref = (x.astype(np.float64) for x in data)
  ratio = np.exp(ref - logp)
  for function, expected in (
    (kl.k1, logp - ref),
    (kl.k3, ratio - 1 - np.log(ratio)),
  ):
    np.testing.assert_allclose(
      jax.jit(function)(*data), expected, rtol=1e-4, atol=1e-6
    )


def test_kl_estimators_expect_the_true_kl():
  """Both are unbiased under the sampling distribution."""
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.45, 0.3, 0.25])
  true = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
  for function in (kl.k1, kl.k3):
    expected = float(np.sum(p * np.asarray(function(np.log(p), np.log(q)))))
    assert abs(expected - true) < 1e-6


def test_kl_k3_is_exact_for_small_differences():
  with_cancellation = kl.k3(np.float32(1e-4), np.float32(0))
  np.testing.assert_allclose(with_cancellation, 5e-9, rtol=0.3)
  assert kl.k3(np.float32(-2.5), np.float32(-2.5)) == 0


@pytest.mark.parametrize(
  ("divergence", "error"),
  [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3, -0.2)],
)
def test_invariant_24_adaptive_kl_clips_its_error_and_counts_episodes(
  divergence, error
):
  def after(episodes):
    return jax.jit(kl.adaptive_kl)(
      0.15, divergence, target=6.0, horizon=10_000.0, episodes=episodes
    )

  for episodes in (512, 64):
    expected = 0.15 * (1 + error * episodes / 10_000)
    np.testing.assert_allclose(after(episodes), expected, rtol=1e-6)
