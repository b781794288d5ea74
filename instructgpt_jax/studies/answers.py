"""The numbers of one measured model, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax import statistics


class Answers:
  """What `evals.evaluate` wrote of one model of one seed.

  Every method gives one number a prompt (or item, or row), so that two models
  of a seed can be compared in pairs.
  """

  def __init__(self, held: dict[str, Any]):
    self._held = held
    self.families = np.array(held["families"])

  def value(self, name: str, temperature: str = "sampled") -> np.ndarray:
    """[P] gold, rm, kl, length or ended, a mean over a prompt's answers."""
    return np.asarray(self._held[temperature][name], np.float64).mean(axis=1)

  def raw(self, name: str, temperature: str = "sampled") -> np.ndarray:
    """[P, answers] of the same."""
    return np.asarray(self._held[temperature][name], np.float64)

  def failure(self, field: str, families: Sequence[str] = ()) -> np.ndarray:
    """[P] rate of a field of the label form, in some families of prompts."""
    values = np.asarray(self._held["sampled"]["failures"][field], np.float64)
    return values.mean(axis=1)[self.among(families)]

  def among(self, families: Sequence[str]) -> np.ndarray:
    """[P] which prompts are of these families; all when none is named."""
    if not families:
      return np.ones(len(self.families), bool)
    return np.isin(self.families, families)

  def truthful(self, families: Sequence[str]) -> np.ndarray:
    """[P] answers that are neither invented nor off the question."""
    failures = self._held["sampled"]["failures"]
    wrong = np.maximum(
      *(np.asarray(failures[f], np.float64)
        for f in ("hallucination", "fails_instruction"))
    )  # fmt: skip
    return 1 - wrong.mean(axis=1)[self.among(families)]

  def kept(self, name: str) -> np.ndarray:
    """[P, N] gold or rm of the samples kept for best-of-n."""
    return np.asarray(self._held["kept"][name], np.float64)

  @property
  def lm_loss(self) -> np.ndarray:
    """[rows] whose mean is the LM loss in nats a token."""
    lm = self._held["lm"]
    nll, weight = np.asarray(lm["nll"]), np.asarray(lm["weight"])
    return nll / weight.mean()

  def task(self, *kinds: str) -> np.ndarray:
    """[items] 0 or 1 of some public tasks."""
    return np.concatenate([self._held["tasks"][k] for k in kinds])

  @property
  def bias(self) -> np.ndarray:
    """[pairs] bits."""
    return np.asarray(self._held["bias"], np.float64)

  def wins(self, other: Answers) -> np.ndarray:
    """[P] share of pairs of answers in which this model's gold is higher."""
    return statistics.win_rate(self.raw("gold"), other.raw("gold"))
