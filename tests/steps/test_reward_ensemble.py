"""Scores of an ensemble beside NumPy."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.steps import reward_ensemble

settings = configs.RewardModels
SCORES = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)


def test_the_worst_score_is_the_minimum_bit_for_bit():
  combined = reward_ensemble.combine_scores(
    SCORES, settings(reward_ensemble="worst")
  )
  np.testing.assert_array_equal(combined, SCORES.min(axis=0))


def test_one_models_scores_are_unchanged():
  combined = reward_ensemble.combine_scores(SCORES[:1], settings())
  np.testing.assert_array_equal(combined, SCORES[0])


@pytest.mark.parametrize(("ensemble", "coef"), [
  ("mean", 0.0), ("mean_minus_deviation", 1.0), ("mean_minus_deviation", 0.3),
])  # fmt: skip
def test_the_mean_less_the_deviation(ensemble, coef):
  exact = SCORES.astype(np.float64)
  np.testing.assert_allclose(
    reward_ensemble.combine_scores(
      SCORES,
      settings(reward_ensemble=ensemble, reward_deviation_coef=coef or None),
    ),
    exact.mean(axis=0) - coef * exact.std(axis=0),
    atol=1e-6,
  )
