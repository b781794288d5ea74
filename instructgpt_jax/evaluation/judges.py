"""Judges that score answers: the gold labeler, or a second reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from instructgpt_jax.training import networks, scoring
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import Rollout
from instructgpt_jax.world import facts, gold


class Judgement(NamedTuple):
  """A judge's scores of R answers."""

  scores: np.ndarray  # [R] float64, higher is better
  likert: np.ndarray | None  # [R] 1-7
  failures: dict[str, np.ndarray]  # field of the label form → [R] 0 or 1


class Judge(Protocol):
  """Function that scores answers, given the texts that a labeler would see."""

  kind: str
  name: str

  def __call__(
    self, prompts: Sequence[str], answers: Sequence[str], rollout: Rollout
  ) -> Judgement: ...


@dataclasses.dataclass(frozen=True)
class GoldJudge:
  """Gold labeler of the embedded world, which knows the correct answers."""

  world: facts.World
  kind = "gold"
  name = "gold labeler of the world"

  def __call__(
    self, prompts: Sequence[str], answers: Sequence[str], rollout: Rollout
  ) -> Judgement:
    forms = [
      gold.label(prompt, answer, bool(ended), world=self.world)
      for prompt, answer, ended in zip(
        prompts, answers, rollout.ended, strict=True
      )
    ]
    return Judgement(
      np.array([form.score for form in forms], np.float64),
      np.array([form.likert for form in forms], np.float64),
      {
        field: np.array([form.failures[field] for form in forms], np.float64)
        for field in gold.FAILURES
      },
    )


class RewardModelJudge:
  """Second reward model, trained on rankings that the first never saw."""

  kind = "reward_model"
  name = (
    "a second reward model, trained on held-out rankings that the first never"
    " saw"
  )

  def __init__(self, stage: Stage, mesh: Mesh):
    self._network, self._mesh = stage.network, mesh
    self._params: Any = networks.load_params(stage, mesh)

  def __call__(
    self, prompts: Sequence[str], answers: Sequence[str], rollout: Rollout
  ) -> Judgement:
    del prompts, answers
    scores = scoring.score(
      self._network, self._params, scoring.answers(rollout), self._mesh
    )
    return Judgement(scores.astype(np.float64), None, {})
