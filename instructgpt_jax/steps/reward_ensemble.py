"""One score from those of several reward models (arXiv:2310.02743)."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax import configs
from instructgpt_jax.losses import masked
from instructgpt_jax.types import Array

KINDS = ("mean", "worst", "mean_minus_deviation")


def combine_scores(scores: ArrayLike, settings: configs.RewardModels) -> Array:
  """Combines the scores of K reward models.

    mean                   mean_k r_k
    worst                  min_k r_k, worst-case optimisation
    mean_minus_deviation   mean_k r_k − c · std_k r_k

  The paper's uncertainty-weighted optimisation subtracts the variance. The
  standard deviation has the unit of the scores, so that c does not depend on
  their scale.

  Args:
    scores: [K, …] scores of the same answers.
    settings: how they are combined, and c; one model has no ensemble.

  Returns:
    […] float32.
  """
  scores = masked.to_float32(scores)
  if settings.reward_ensemble is None:
    return scores[0]
  if settings.reward_ensemble == "worst":
    return scores.min(axis=0)
  mean = scores.mean(axis=0)
  if settings.reward_ensemble == "mean":
    return mean
  return mean - settings.deviation_coef * jnp.std(scores, axis=0)


def combine_in_each_way(
  scores: ArrayLike, deviation_coef: float | None = None
) -> dict[str, Array]:
  """Combines the scores of several reward models by each of `KINDS`.

  Args:
    scores: [K, …] scores of the same answers.
    deviation_coef: weight of the deviation; none is 1.

  Returns:
    Kind → […] float32.
  """
  coefs = {"mean_minus_deviation": deviation_coef}
  return {
    kind: combine_scores(
      scores,
      configs.RewardModels(
        reward_ensemble=kind, reward_deviation_coef=coefs.get(kind)
      ),
    )
    for kind in KINDS
  }
