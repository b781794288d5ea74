"""Pools the measurements of a study over its seeds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.report.findings import Panel, Series
from instructgpt_jax.statistics import Interval
from instructgpt_jax.studies.measured_model import MeasuredModel
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.sweeps.jobs import Job

JobOf = Callable[[SeedRuns], Job]
Value = Callable[[MeasuredModel], np.ndarray]
K = TypeVar("K")
GPT_SQUAD, GPT_DROP = 59.2, 25.4  # F1 of the 1.3B base model, %


def values_per_seed(
  seeds: Sequence[SeedRuns], job: JobOf, value: Value
) -> list[np.ndarray]:
  """Returns one array per seed."""
  return [value(f.measurements(job(f))) for f in seeds]


def mean_interval(
  seeds: Sequence[SeedRuns], job: JobOf, value: Value
) -> Interval:
  """Returns the mean; its interval accounts for prompts and seeds."""
  return statistics.pooled_interval(values_per_seed(seeds, job, value))


def difference(
  seeds: Sequence[SeedRuns], job: JobOf, other: JobOf, value: Value
) -> Interval:
  """Returns the mean of job − other, paired by prompt within each seed."""
  ours = values_per_seed(seeds, job, value)
  theirs = values_per_seed(seeds, other, value)
  return statistics.pooled_interval(
    [a - b for a, b in zip(ours, theirs, strict=True)]
  )


def seeds_interval(numbers: Sequence[float]) -> Interval | None:
  """Returns the mean over seeds with Student's interval; None for one seed.

  A bootstrap over a few seeds never leaves their range, and has no width at all
  for one. Seeds that are all equal have no bounds.
  """
  if len(numbers) < 2:
    return None
  return statistics.pooled_interval([[number] for number in numbers])


def choose_options(
  seeds: Sequence[SeedRuns], options: Mapping[K, JobOf], value: Value
) -> list[K]:
  """Chooses for each seed the option of highest mean on other seeds' data.

  An option chosen and tested on the same data looks better than it is. Other
  seeds have other worlds and models. With a single seed the choice uses its
  even prompts, and `held_out_values` returns the odd ones. From four seeds on,
  one third of them chooses and `held_out_values` returns the others: choices
  that share most of their seeds find the same chance peak.
  """
  means = {
    key: [
      scores.mean() if len(seeds) > 1 else scores[::2].mean()
      for scores in values_per_seed(seeds, job, value)
    ]
    for key, job in options.items()
  }
  choosers = _num_choosing_seeds(len(seeds))

  def others(key: K, index: int) -> float:
    rest = means[key][:index] + means[key][index + 1 :]
    return float(np.mean(means[key][:choosers] if choosers else rest))

  return [
    max(options, key=lambda key, i=i: others(key, i)) for i in range(len(seeds))
  ]


def held_out_values(
  seeds: Sequence[SeedRuns], job: Callable[[int], JobOf], value: Value
) -> list[np.ndarray]:
  """Returns per seed the data that `choose_options` did not use.

  Args:
    seeds: runs of each seed.
    job: index of a seed → its run.
    value: function of a measured model.
  """
  arrays = [
    value(runs.measurements(job(index)(runs)))
    for index, runs in enumerate(seeds)
  ]
  if len(seeds) == 1:
    return [arrays[0][1::2]]
  return arrays[_num_choosing_seeds(len(seeds)) :]


def _num_choosing_seeds(seeds: int) -> int:
  """Returns how many seeds only choose; 0 if each is tested by the others."""
  if seeds == 1:
    return 1
  return seeds // 3 if seeds > 3 else 0


def difference_from_chosen(
  seeds: Sequence[SeedRuns],
  job: JobOf,
  options: Mapping[K, JobOf],
  chosen: Sequence[K],
  value: Value,
) -> Interval:
  """Computes the mean of job − each seed's chosen option, paired by prompt."""
  ours = held_out_values(seeds, lambda unused: job, value)
  theirs = held_out_values(seeds, lambda index: options[chosen[index]], value)
  return statistics.pooled_interval(
    [a - b for a, b in zip(ours, theirs, strict=True)]
  )


def win_rate(seeds: Sequence[SeedRuns], job: JobOf, other: JobOf) -> Interval:
  """Returns the win rate of job against other; a tie counts one half."""
  return statistics.pooled_interval(
    [f.measurements(job(f)).wins(f.measurements(other(f))) for f in seeds],
    share=True,
  )


def gold(a: MeasuredModel) -> np.ndarray:
  """Returns [P] gold scores at temperature 1."""
  return a.mean_per_prompt("gold")


def greedy_gold(a: MeasuredModel) -> np.ndarray:
  """Returns [P] gold scores at temperature 0."""
  return a.mean_per_prompt("gold", "greedy")


def rm(a: MeasuredModel) -> np.ndarray:
  """Returns [P] reward-model scores at temperature 1."""
  return a.mean_per_prompt("rm")


def kl(a: MeasuredModel) -> np.ndarray:
  """Returns [P] log-ratios to the policy's initialisation, in nats."""
  return a.mean_per_prompt("kl")


def lm_loss(a: MeasuredModel) -> np.ndarray:
  """Returns [rows] LM losses in nats per token."""
  return a.lm_loss


def tasks(a: MeasuredModel) -> np.ndarray:
  """Returns [items] translation and reading scores, 0 or 1."""
  return a.task("translation", "reading")


def is_above(interval: Interval, bar: float = 0.0) -> bool:
  """Returns whether the whole interval is above the bar (False if unknown)."""
  return interval.low > bar


def is_below(interval: Interval, bar: float = 0.0) -> bool:
  """Returns whether the whole interval is below the bar (False if unknown)."""
  return interval.high < bar


def format_signed(interval: Interval) -> str:
  """Formats as '+0.12 [0.08, 0.16]'; unknown bounds as [–]."""
  return f"{interval.mean:+.2f} {_bounds(interval, 2)}"


def format_interval(interval: Interval, digits: int = 3) -> str:
  """Formats as '0.120 [0.080, 0.160]'; unknown bounds as [–]."""
  return f"{interval.mean:.{digits}f} {_bounds(interval, digits)}"


def _bounds(interval: Interval, digits: int) -> str:
  if math.isnan(interval.low):
    return "[–]"
  return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def tax_panels(
  x_label: str,
  ours: Series,
  base: float,
  *,
  grid: Sequence[float],
  squad: Sequence[float],
  drop: Sequence[float],
) -> list[Panel]:
  """Draws the alignment tax here and in the paper (figures 33 and 34).

  Args:
    x_label: name of the hyperparameter on the x axis.
    ours: our share of public tasks solved.
    base: the base model's share.
    grid: the paper's values of the hyperparameter.
    squad: the paper's F1 on SQuAD v2 at each value.
    drop: the paper's F1 on DROP at each value.
  """
  return [
    Panel(
      "Here",
      x_label=x_label,
      y_label="Public tasks (share right)",
      x_scale="log",
      lines=[(base, "base model")],
      series=[ours],
    ),
    Panel(
      "Paper",
      x_label=x_label,
      y_label="F1 (%)",
      x_scale="log",
      lines=[(GPT_SQUAD, "GPT"), (GPT_DROP, "GPT")],
      series=[
        Series("SQuAD v2", zip(grid, squad, strict=True)),
        Series("DROP", zip(grid, drop, strict=True)),
      ],
    ),
  ]
