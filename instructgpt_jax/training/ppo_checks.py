"""What a running PPO checks of itself; a broken invariant stops it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructgpt_jax import configs, precision
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps.ppo_gaps import Gap, Gaps
from instructgpt_jax.types import PyTree, Rollout

# Healthy networks of 1 to 30 layers and logits as wide as trained ones' stay
# below 0.7 and 4 of the unit that `rounding_unit` computes.
_MEAN_LIMIT = 2.0
_HIGH_LIMIT = 16.0
_FLOOR = 1e-5  # nats, where logits hardly vary


def rounding_unit(model: configs.Model, spread: float) -> float:
  """Estimates the error of a log-probability by rounding, in nats.

  Each of the model's layers, and what is before and after them, adds an
  independent relative error of the unit roundoff to the residual, so the error
  grows as the root of their number; a sum over `width` products in float32
  adds as many roundings. The logits turn it into nats by their spread.
  """
  roundoff = precision.unit_roundoff(model.dtype)
  roundoff += float(jnp.finfo(jnp.float32).eps) / 2 * math.sqrt(model.d_model)
  return roundoff * math.sqrt(model.num_layers + 4) * spread


def agree(
  compare: Callable[[PyTree, PyTree, Rollout], Gaps],
  policy: PyTree,
  frozen: dict[str, PyTree],
  rollout: Rollout,
  config: configs.PpoExperiment,
  *,
  fresh: bool,
) -> Gaps:
  """Checks invariants 6 and 3 on the run's first rollout, and logs the gaps.

  Args:
    compare: `ppo_gaps.compare`, compiled.
    policy: its parameters.
    frozen: those of the reference.
    rollout: what the policy sampled.
    config: the experiment.
    fresh: whether nothing has been updated yet.

  Returns:
    What was measured.

  Raises:
    UserError: log-probabilities are not finite.
    InvariantError: they differ by more than rounding explains.
  """
  gaps: Gaps = jax.tree.map(
    float, jax.device_get(compare(policy, frozen["reference"], rollout))
  )
  if not np.isfinite([*gaps.decoding, gaps.spread]).all():
    raise UserError(
      "the policy's log-probabilities are not finite",
      field="init_from" if fresh else None,
      fix="lower the learning rate, or look at the model of --init_from",
      code="not_finite",
    )
  unit = rounding_unit(config.model, gaps.spread)
  log_line(
    f"self-check in {config.model.dtype}: decoding and full pass differ by"
    f" {_text(gaps.decoding)}; limits {_limits(unit)}"
  )
  if not _within(gaps.decoding, unit):
    raise InvariantError(
      6,
      "log-probabilities recorded while decoding differ from the full pass by"
      f" {_text(gaps.decoding)}; rounding explains {_limits(unit)}",
    )
  if fresh and not _within(gaps.reference, unit):
    raise InvariantError(
      3,
      "the first policy differs from its reference by"
      f" {_text(gaps.reference)}; rounding explains {_limits(unit)}",
    )
  return gaps


def _within(gap: Gap, unit: float) -> bool:
  return (
    gap.mean <= _MEAN_LIMIT * unit + _FLOOR
    and gap.high <= _HIGH_LIMIT * unit + 10 * _FLOOR
  )


def _text(gap: Gap) -> str:
  return f"{gap.mean:.2g} nats a token (99.9 % quantile {gap.high:.2g})"


def _limits(unit: float) -> str:
  mean, high = _MEAN_LIMIT * unit + _FLOOR, _HIGH_LIMIT * unit + 10 * _FLOOR
  return f"{mean:.2g} ({high:.2g})"


def first_update(
  metrics: dict[str, Any], gaps: Gaps, config: configs.PpoExperiment
) -> None:
  """Checks invariant 1: before any update the ratio is 1 but for rounding.

  The rounding error is that measured by `agree` on the whole rollout. That of a
  minibatch may be a few times larger by chance, and by its other programs.
  """
  unit = rounding_unit(config.model, gaps.spread)
  mean = 3 * gaps.decoding.mean + unit / 4 + _FLOOR
  kl = 4 * gaps.decoding.kl + mean**2
  outside = 4 * gaps.decoding.outside + mean / math.log1p(config.ppo.clip_ratio)
  if not (
    abs(metrics["ratio_mean"] - 1) <= mean + kl
    and abs(metrics["approx_kl"]) <= kl + 1e-6
    and metrics["clip_fraction"] <= outside
  ):
    raise InvariantError(
      1,
      "on the first minibatch the ratio is"
      f" {metrics['ratio_mean']:.6f}, the KL {metrics['approx_kl']:.2g} and the"
      f" clip fraction {metrics['clip_fraction']:.3g}; rounding explains"
      f" 1 ± {mean + kl:.2g}, {kl:.2g} and {outside:.2g}",
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
      code=f"invariant_{number}",
    )
