"""Numbers of a run over all seeds, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.statistics import Interval
from instructgpt_jax.studies.answers import Answers
from instructgpt_jax.studies.family import Family
from instructgpt_jax.sweeps.jobs import Job

Of = Callable[[Family], Job]
Value = Callable[[Answers], np.ndarray]


def values(
  families: Sequence[Family], job: Of, value: Value
) -> list[np.ndarray]:
  """One array a seed."""
  return [value(f.answers(job(f))) for f in families]


def interval(families: Sequence[Family], job: Of, value: Value) -> Interval:
  """The mean, with an interval from prompts and seeds both."""
  return statistics.pooled_interval(values(families, job, value))


def gap(
  families: Sequence[Family], job: Of, other: Of, value: Value
) -> Interval:
  """Mean of job − other, paired by prompt within each seed."""
  return statistics.pooled_interval([
    a - b
    for a, b in zip(
      values(families, job, value), values(families, other, value), strict=True
    )
  ])  # fmt: skip


def wins(families: Sequence[Family], job: Of, other: Of) -> Interval:
  """Win rate of job against other by gold score, a tie one half."""
  return statistics.pooled_interval(
    [f.answers(job(f)).wins(f.answers(other(f))) for f in families]
  )


def gold(a: Answers) -> np.ndarray:
  """[P] gold score at temperature 1."""
  return a.value("gold")


def rm(a: Answers) -> np.ndarray:
  """[P] the reward model's score at temperature 1."""
  return a.value("rm")


def kl(a: Answers) -> np.ndarray:
  """[P] log-ratio to the policy's start, in nats."""
  return a.value("kl")


def lm_loss(a: Answers) -> np.ndarray:
  """[rows] nats a token."""
  return a.lm_loss


def tasks(a: Answers) -> np.ndarray:
  """[items] translation and reading, right or wrong."""
  return a.task("translation", "reading")


def above(found: Interval, bar: float = 0.0) -> bool:
  """Whether the whole interval lies above the bar."""
  return found.low > bar


def below(found: Interval, bar: float = 0.0) -> bool:
  """Whether the whole interval lies below the bar."""
  return found.high < bar


def signed(found: Interval) -> str:
  """'+0.12 [0.08, 0.16]'."""
  return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]"


def text(found: Interval, digits: int = 3) -> str:
  """'0.120 [0.080, 0.160]'."""
  return (
    f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
  )
