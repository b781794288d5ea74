"""A linear probe: how far a weighted sum of a model's states orders replies.

A probe with weights w says that a reply with state a beats one with state b
with probability σ(w · (a − b)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Candidates, per standardised feature; the loss is a mean over rankings.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_NEWTON_STEPS = 12
_CHOOSING = 5  # every fifth ranking chooses the ridge


def fit(
  states: Sequence[np.ndarray], orders: Sequence[np.ndarray]
) -> np.ndarray:
  """Fits a probe to rankings, which all weigh the same.

  The ridge penalty is the one with the lowest loss on a fifth of the rankings,
  which are then used as well.

  Args:
    states: [K, D] of each ranking.
    orders: [K] of each ranking, higher is better; equal ones are not compared.

  Returns:
    [D] weights.

  Raises:
    ValueError: no ranking has a pair.
  """
  scale = np.concatenate(states).astype(np.float64).std(axis=0)
  varied = np.flatnonzero(scale)
  pairs = [
    _pair_differences(state[:, varied] / scale[varied], order)
    for state, order in zip(states, orders, strict=True)
  ]
  pairs = [p for p in pairs if len(p)]
  if not pairs:
    raise ValueError("no ranking has a pair")
  rest = [p for i, p in enumerate(pairs) if i % _CHOOSING] or pairs
  chosen = pairs[::_CHOOSING]
  ridge = min(RIDGES, key=lambda ridge: _loss(chosen, _fit_ridge(rest, ridge)))
  weights = np.zeros(len(scale))
  weights[varied] = _fit_ridge(pairs, ridge) / scale[varied]
  return weights


def _pair_differences(states: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Returns state of winner − state of loser of all pairs, [pairs, D]."""
  winners, losers = np.nonzero(order[:, None] > order[None, :])
  return states[winners] - states[losers]


def _stack(pairs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Returns all pairs' differences, and weights that add up to 1."""
  counts = np.array([len(p) for p in pairs])
  return np.concatenate(pairs), np.repeat(1 / (counts * len(counts)), counts)


def _loss(pairs: Sequence[np.ndarray], weights: np.ndarray) -> float:
  """Computes the mean of −log σ(w · d), without the penalty."""
  differences, shares = _stack(pairs)
  return float(shares @ np.logaddexp(0, -differences @ weights))


def _fit_ridge(pairs: Sequence[np.ndarray], ridge: float) -> np.ndarray:
  """Minimises the mean of −log σ(w · d) + ridge/2 |w|² by Newton's method."""
  differences, shares = _stack(pairs)
  dimension = differences.shape[1]
  weights = np.zeros(dimension)
  for _ in range(_NEWTON_STEPS):
    lost = 1 / (1 + np.exp(np.clip(differences @ weights, -50, 50)))
    gradient = ridge * weights - differences.T @ (shares * lost)
    curvature = shares * lost * (1 - lost)
    hessian = differences.T @ (curvature[:, None] * differences)
    hessian[np.diag_indices(dimension)] += ridge
    weights = weights - np.linalg.solve(hessian, gradient)
  return weights
