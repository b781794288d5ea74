"""Self-checks of a PPO run: an invariant that does not hold stops it.

docs/invariants.md lists the invariants by number.
"""

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

# Limits of a gap's mean and 99.9 % quantile, in units of `rounding_unit`. In
# networks of 1 to 30 layers, with logits as wide as those of trained models,
# rounding alone gives at most 0.7 and 4.
_MEAN_LIMIT = 2.0
_HIGH_LIMIT = 16.0
_FLOOR = 1e-5  # nats, added to the limits for models whose logits hardly vary


def rounding_unit(model: configs.Model, spread: float) -> float:
  """Estimates the rounding error of a log-probability, in nats.

  Each layer adds an independent relative error to the residual stream: the unit
  roundoff of the model's dtype, and that of float32 times √d_model for the sums
  of its matmuls. Embedding, unembedding and norms count as four more layers.
  Independent errors add up to √layers of one. The spread of the logits turns
  the relative error into nats.

  Args:
    model: the network.
    spread: `ppo_gaps.Gaps.spread`, in nats.
  """
  roundoff = precision.unit_roundoff(model.dtype)
  roundoff += float(jnp.finfo(jnp.float32).eps) / 2 * math.sqrt(model.d_model)
  return roundoff * math.sqrt(model.num_layers + 4) * spread


def check_first_rollout(
  measure_gaps: Callable[[PyTree, PyTree, Rollout], Gaps],
  policy: PyTree,
  frozen: dict[str, PyTree],
  rollout: Rollout,
  config: configs.PpoExperiment,
  *,
  is_new_run: bool,
) -> Gaps:
  """Checks invariants 6 and 3 on the first rollout of a process.

  Invariant 6: log-probabilities that are recorded while decoding are those of a
  full pass. Invariant 3: the first policy is its reference. Both hold up to
  rounding. The gaps are logged.

  Args:
    measure_gaps: `ppo_gaps.measure_gaps`, jitted.
    policy: the policy's parameters.
    frozen: the frozen parameters; "reference" is used.
    rollout: episodes that the policy sampled.
    config: the experiment.
    is_new_run: whether nothing is updated yet; else only invariant 6 is
      checked.

  Returns:
    The gaps.

  Raises:
    UserError: `not_finite`.
    InvariantError: a gap is larger than rounding explains.
  """
  gaps: Gaps = jax.tree.map(
    float, jax.device_get(measure_gaps(policy, frozen["reference"], rollout))
  )
  if not np.isfinite([*gaps.decoding, gaps.spread]).all():
    raise UserError(
      "the policy's log-probabilities are not finite",
      field="init_from" if is_new_run else None,
      fix="lower the learning rate, or look at the model of --init_from",
      code="not_finite",
    )
  unit = rounding_unit(config.model, gaps.spread)
  log_line(
    f"self-check in {config.model.dtype}: decoding and full pass differ by"
    f" {_gap_text(gaps.decoding)}; limits {_limits_text(unit)}"
  )
  if not _within(gaps.decoding, unit):
    raise InvariantError(
      6,
      "log-probabilities recorded while decoding differ from the full pass by"
      f" {_gap_text(gaps.decoding)}; rounding explains {_limits_text(unit)}",
    )
  if is_new_run and not _within(gaps.reference, unit):
    raise InvariantError(
      3,
      "the first policy differs from its reference by"
      f" {_gap_text(gaps.reference)}; rounding explains {_limits_text(unit)}",
    )
  return gaps


def _limits(unit: float) -> tuple[float, float]:
  """Returns the limits of a gap's mean and 99.9 % quantile, in nats."""
  return _MEAN_LIMIT * unit + _FLOOR, _HIGH_LIMIT * unit + 10 * _FLOOR


def _within(gap: Gap, unit: float) -> bool:
  mean, high = _limits(unit)
  return gap.mean <= mean and gap.high <= high


def _gap_text(gap: Gap) -> str:
  return f"{gap.mean:.2g} nats a token (99.9 % quantile {gap.high:.2g})"


def _limits_text(unit: float) -> str:
  mean, high = _limits(unit)
  return f"{mean:.2g} ({high:.2g})"


def check_first_update(
  metrics: dict[str, Any], gaps: Gaps, config: configs.PpoExperiment
) -> None:
  """Checks invariant 1: in the first update the ratio is 1 up to rounding.

  `gaps` has the rounding error on the whole rollout. On a minibatch it may be a
  few times larger: by chance, and because another program computes it.

  Args:
    metrics: metrics of the run's first update.
    gaps: gaps that `check_first_rollout` measured.
    config: the experiment.
  """
  unit = rounding_unit(config.model, gaps.spread)
  mean = 3 * gaps.decoding.mean + unit / 4 + _FLOOR
  kl = 4 * gaps.decoding.k3 + mean**2
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


def require_unchanged(
  before: dict[str, int], after: dict[str, int], directory: str
) -> None:
  """Checks invariant 29: frozen parameters are bit for bit those of before.

  Args:
    before: earlier checksums of the frozen models, by name.
    after: present checksums.
    directory: workdir of the run, for the error.
  """
  for name, checksum in before.items():
    if after[name] != checksum:
      raise InvariantError(
        29, f"the {name} parameters of {directory} have changed"
      )


class InvariantError(UserError):
  """Reports that an invariant does not hold in the running program."""

  def __init__(self, number: int, problem: str):
    super().__init__(
      f"invariant {number} does not hold: {problem}",
      fix="check that the models belong together; if they do, this is a defect:"
      " please report it with the config.json",
      code=f"invariant_{number}",
    )
