"""What a running PPO checks of itself; a broken invariant stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from instructgpt_jax import config as config_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.types import PyTree, Rollout

# How far cached decoding and the full pass may differ, in nats a token.
_TOLERANCE = {"float32": 2e-4, "bfloat16": 0.25}


def agree(
  compare: Callable[[PyTree, PyTree, Rollout], Any],
  policy: PyTree,
  frozen: dict[str, PyTree],
  rollout: Rollout,
  config: config_lib.PpoExperiment,
  *,
  fresh: bool,
) -> None:
  """Invariants 6 and 3 on the run's first rollout.

  Args:
    compare: (policy, reference, rollout) → the largest gaps, in nats, between
      log-probabilities that must be equal.
    policy: its parameters.
    frozen: those of the reference.
    rollout: what the policy sampled.
    config: the experiment.
    fresh: whether nothing has been updated yet.
  """
  cached, reference = jax.device_get(
    compare(policy, frozen["reference"], rollout)
  )
  tolerance = _TOLERANCE[config.model.dtype]
  if not np.isfinite(cached):
    raise UserError(
      f"the policy's log-probabilities are not finite ({cached})",
      field="init_from" if fresh else None,
      fix="lower the learning rate, or look at the model of --init_from",
    )
  if not cached <= tolerance:
    raise InvariantError(
      6,
      "log-probabilities recorded while decoding differ from the full pass by"
      f" {cached:.2g} nats",
    )
  if fresh and not reference <= tolerance:
    raise InvariantError(
      3, f"the first policy is {reference:.2g} nats from its reference"
    )


def first_update(metrics: dict[str, Any], dtype: str) -> None:
  """Invariant 1: before any update the ratio is 1."""
  tolerance = _TOLERANCE[dtype]
  if (
    abs(metrics["ratio_mean"] - 1) > tolerance
    or abs(metrics["approx_kl"]) > tolerance
    or metrics["clip_fraction"] > 0
  ):
    raise InvariantError(
      1,
      "on the first minibatch the ratio is"
      f" {metrics['ratio_mean']:.6f} and the clip fraction"
      f" {metrics['clip_fraction']:.3g}",
    )


def unchanged(
  before: dict[str, int], after: dict[str, int], directory: str
) -> None:
  """Invariant 29: frozen parameters have the bits they had."""
  for name, mark in before.items():
    if after[name] != mark:
      raise InvariantError(
        29, f"the {name} parameters of {directory} have changed"
      )


class InvariantError(UserError):
  """An invariant that the running program checks does not hold."""

  def __init__(self, number: int, problem: str):
    super().__init__(
      f"invariant {number} does not hold: {problem}",
      fix="the models given do not belong together, or this is a defect;"
      " please report it with the config.json",
    )
