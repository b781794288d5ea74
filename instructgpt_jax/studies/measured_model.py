"""Reads the measurements of one model, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax import statistics


class MeasuredModel:
  """Measurements of one model of one seed, from `evaluation.evaluate`.

  Every method returns one value per prompt (or item, or row), so that two
  models of a seed can be compared in pairs.
  """

  def __init__(self, results: dict[str, Any]):
    self._results = results
    self.families = np.array(results["families"])

  def mean_per_prompt(
    self, name: str, temperature: str = "sampled"
  ) -> np.ndarray:
    """Returns [P] means over answers of gold, rm, kl, length or ended."""
    return np.asarray(self._results[temperature][name], np.float64).mean(axis=1)

  def per_answer(self, name: str, temperature: str = "sampled") -> np.ndarray:
    """Returns [P, answers] values of gold, rm, kl, length or ended."""
    return np.asarray(self._results[temperature][name], np.float64)

  def failure_rate(
    self, field: str, families: Sequence[str] = ()
  ) -> np.ndarray:
    """Returns [P] rates of a failure, for prompts of the families."""
    values = np.asarray(self._results["sampled"]["failures"][field], np.float64)
    return values.mean(axis=1)[self.in_families(families)]

  def in_families(self, families: Sequence[str]) -> np.ndarray:
    """Returns a [P] mask of the families' prompts; all if none are named."""
    if not families:
      return np.ones(len(self.families), bool)
    return np.isin(self.families, families)

  def truthful_rate(self, families: Sequence[str]) -> np.ndarray:
    """Returns [P] shares of answers without invention that follow the task."""
    failures = self._results["sampled"]["failures"]
    wrong = np.maximum(
      *(np.asarray(failures[f], np.float64)
        for f in ("hallucination", "fails_instruction"))
    )  # fmt: skip
    return 1 - wrong.mean(axis=1)[self.in_families(families)]

  def best_of_n_samples(self, name: str) -> np.ndarray:
    """Returns [P, N] gold or rm of the samples for best-of-n curves."""
    return np.asarray(self._results["kept"][name], np.float64)

  @property
  def lm_loss(self) -> np.ndarray:
    """[rows] values whose mean is the LM loss in nats per token."""
    lm = self._results["lm"]
    nll, weight = np.asarray(lm["nll"]), np.asarray(lm["weight"])
    return nll / weight.mean()

  def task(self, *kinds: str) -> np.ndarray:
    """Returns [items] scores, 0 or 1, of public tasks."""
    return np.concatenate([self._results["tasks"][k] for k in kinds])

  @property
  def bias(self) -> np.ndarray:
    """[pairs] entropies in bits."""
    return np.asarray(self._results["bias"], np.float64)

  def wins(self, other: MeasuredModel) -> np.ndarray:
    """Returns [P] win rates over answer pairs, by gold score."""
    return statistics.win_rate(
      self.per_answer("gold"), other.per_answer("gold")
    )
