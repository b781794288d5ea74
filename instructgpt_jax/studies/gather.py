"""Numbers of a run over all seeds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.statistics import Interval
from instructgpt_jax.studies.answers import Answers
from instructgpt_jax.studies.family import Family
from instructgpt_jax.sweeps.jobs import Job

Of = Callable[[Family], Job]
Value = Callable[[Answers], np.ndarray]
K = TypeVar("K")


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


def over_seeds(numbers: Sequence[float]) -> Interval | None:
  """Returns the mean over seeds with Student's interval; None for one seed.

  A bootstrap over a few seeds never leaves their range, and has no width at all
  for one. Seeds that are all equal have no bounds.
  """
  if len(numbers) < 2:
    return None
  return statistics.pooled_interval([[number] for number in numbers])


def choose(
  families: Sequence[Family], options: Mapping[K, Of], value: Value
) -> list[K]:
  """Chooses for each seed the option of highest mean on other seeds' data.

  An option chosen and tested on the same data looks better than it is. Other
  seeds have other worlds and models. With a single seed the choice uses its
  even prompts, and `held_out` returns the odd ones. From four seeds on, one
  third of them chooses and `held_out` returns the others: choices that share
  most of their seeds find the same chance peak.
  """
  means = {
    key: [
      scores.mean() if len(families) > 1 else scores[::2].mean()
      for scores in values(families, job, value)
    ]
    for key, job in options.items()
  }
  choosers = _choosers(len(families))

  def others(key: K, index: int) -> float:
    rest = means[key][:index] + means[key][index + 1 :]
    return float(np.mean(means[key][:choosers] if choosers else rest))

  return [
    max(options, key=lambda key, i=i: others(key, i))
    for i in range(len(families))
  ]


def held_out(
  families: Sequence[Family], job: Callable[[int], Of], value: Value
) -> list[np.ndarray]:
  """Returns one array a seed of the data that `choose` has not used.

  Args:
    families: of the seeds.
    job: index of a seed → its run.
    value: of a run's answers.
  """
  arrays = [
    value(family.answers(job(index)(family)))
    for index, family in enumerate(families)
  ]
  if len(families) == 1:
    return [arrays[0][1::2]]
  return arrays[_choosers(len(families)) :]


def _choosers(seeds: int) -> int:
  """Returns how many seeds only choose; 0 if each is tested by the others."""
  if seeds == 1:
    return 1
  return seeds // 3 if seeds > 3 else 0


def gap_from_chosen(
  families: Sequence[Family],
  job: Of,
  options: Mapping[K, Of],
  chosen: Sequence[K],
  value: Value,
) -> Interval:
  """Computes the mean of job − each seed's chosen option, paired by prompt."""
  ours = held_out(families, lambda unused: job, value)
  theirs = held_out(families, lambda index: options[chosen[index]], value)
  return statistics.pooled_interval(
    [a - b for a, b in zip(ours, theirs, strict=True)]
  )


def wins(families: Sequence[Family], job: Of, other: Of) -> Interval:
  """Win rate of job against other by gold score, a tie one half."""
  return statistics.pooled_interval(
    [f.answers(job(f)).wins(f.answers(other(f))) for f in families],
    share=True,
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
  """Whether the whole interval lies above the bar; no if it has no bounds."""
  return found.low > bar


def below(found: Interval, bar: float = 0.0) -> bool:
  """Whether the whole interval lies below the bar; no if it has no bounds."""
  return found.high < bar


def signed(interval: Interval) -> str:
  """Writes '+0.12 [0.08, 0.16]', without bounds where there are none."""
  return f"{interval.mean:+.2f} {_bounds(interval, 2)}"


def text(interval: Interval, digits: int = 3) -> str:
  """Writes '0.120 [0.080, 0.160]', without bounds where there are none."""
  return f"{interval.mean:.{digits}f} {_bounds(interval, digits)}"


def _bounds(interval: Interval, digits: int) -> str:
  if math.isnan(interval.low):
    return "[–]"
  return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
