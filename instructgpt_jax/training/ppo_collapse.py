"""Warnings of a policy that collapses during PPO.

Three signs are watched in each iteration. Entropy and the share of distinct
responses are compared with the first iteration, because their size depends on
vocabulary and prompts.

  entropy             below a tenth of that of the first iteration
  distinct_responses  below half of that of the first iteration
  kl_per_token        above half a nat
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.distributed import transfer
from instructgpt_jax.runs import metrics as metrics_lib
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.types import Rollout

ENTROPY_SHARE = 0.1  # of the first iteration's entropy
DISTINCT_SHARE = 0.5  # of the first iteration's share of distinct responses
KL_PER_TOKEN = 0.5  # nats


def add_distinct_share(
  rollout_metrics: dict[str, Any], rollout: Rollout
) -> None:
  """Adds the share of distinct responses to the metrics of a rollout.

  An iteration that was resumed has it already.
  """
  if "distinct_responses" not in rollout_metrics:
    rollout_metrics["distinct_responses"] = distinct_share(rollout)


def distinct_share(rollout: Rollout) -> float:
  """Computes the number of distinct responses over that of all responses."""
  tokens, mask = transfer.allgather((rollout.tokens, rollout.response_mask))
  responses = np.where(mask, tokens[:, -mask.shape[1] :], -1)
  return len(np.unique(responses, axis=0)) / len(responses)


class CollapseWatch:
  """Warns of each sign of a collapse once in a run."""

  def __init__(self, name: str, section: configs.Ppo, directory: str):
    """Reads what an earlier call has logged, and so has warned of.

    Args:
      name: name of the stage, for the warnings.
      section: the PPO settings.
      directory: workdir of the run.
    """
    self._name = name
    self._first: Mapping[str, Any] | None = None
    self._warned: set[str] = set()
    for row in metrics_lib.read_metrics(directory):
      ends_iteration = row["step"] % section.updates_per_iteration == 0
      if "episodes" in row and ends_iteration:
        self._new_signs(row)

  def observe(self, iteration: int, metrics: Mapping[str, Any]) -> None:
    """Warns of signs that an iteration is the first to show.

    Args:
      iteration: number of the iteration, from 1.
      metrics: metrics of its rollout and of its last update.
    """
    for sign, text in self._new_signs(metrics).items():
      log_line(
        f"warning: {self._name}: {sign} {text} in iteration {iteration}: the"
        " policy may have collapsed; raise --ppo.kl_coef, lower"
        " --optimizer.learning_rate, or read its answers"
        " (--ppo.samples_every=1)"
      )

  def _new_signs(self, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the signs that no earlier iteration has shown."""
    if self._first is None:
      self._first = metrics
    signs = {
      sign: text
      for sign, text in signs_of(metrics, self._first).items()
      if sign not in self._warned
    }
    self._warned.update(signs)
    return signs


def signs_of(
  metrics: Mapping[str, Any], first: Mapping[str, Any]
) -> dict[str, str]:
  """Returns metric → what it says, of those that are signs of a collapse.

  Args:
    metrics: metrics of an iteration.
    first: those of the first iteration.
  """
  signs = {}
  for name, share in (
    ("entropy", ENTROPY_SHARE),
    ("distinct_responses", DISTINCT_SHARE),
  ):
    # Metrics of a run by another version may lack one.
    if name in metrics and name in first:
      value, start = float(metrics[name]), float(first[name])
      if value < share * start:
        signs[name] = f"has fallen from {start:.3g} to {value:.3g}"
  kl = float(metrics["kl_per_token"])
  if kl > KL_PER_TOKEN:
    signs["kl_per_token"] = f"has risen to {kl:.3g} nats"
  return signs
