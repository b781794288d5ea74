"""Means of a task's measures with 95 % intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.evaluation.tasks.task import CorpusMeasure, Task

_RESAMPLES = 2000
Rows = Sequence[Mapping[str, Any]]  # as `answers.Row.to_json` writes them
Intervals = dict[str, dict[str, statistics.Interval]]  # variant → measure → …


def summarize(task: Task, rows: Rows, other: Rows | None = None) -> Intervals:
  """Computes each measure's mean over items with its interval.

  Args:
    task: the task.
    rows: a model's rows.
    other: another model's rows of the same items; the result is then for the
      difference, rows − other.

  Returns:
    Variant → measure → interval. A measure that only one of the two has is
    left out.
  """
  return {
    variant: _summarize_variant(
      task,
      [row for row in rows if row["variant"] == variant],
      None
      if other is None
      else [row for row in other if row["variant"] == variant],
    )
    for variant in task.instructions
  }


def _summarize_variant(
  task: Task, rows: Rows, other: Rows | None
) -> dict[str, statistics.Interval]:
  if other is not None and [r["id"] for r in rows] != [r["id"] for r in other]:
    raise ValueError(f"{task.name}: rows of other items are no pairs")
  result = {}
  for name in dict.fromkeys(name for row in rows for name in row["scores"]):
    values = _values(rows, name)
    if other is None:
      is_share = set(values) <= {0.0, 1.0}
      result[name] = statistics.bootstrap_interval(values, share=is_share)
    elif len(paired := _values(other, name)) == len(values):
      result[name] = statistics.bootstrap_interval(values, paired=paired)
  for name, measure in task.corpus.items():
    counts = [
      np.array([row["counts"][name] for row in of_model], float)
      for of_model in (rows, other)
      if of_model is not None
    ]
    result[name] = corpus_interval(measure, *counts)
  return result


def _values(rows: Rows, name: str) -> list[float]:
  return [row["scores"][name] for row in rows if name in row["scores"]]


def corpus_interval(
  measure: CorpusMeasure, counts: np.ndarray, other: np.ndarray | None = None
) -> statistics.Interval:
  """Computes a measure of summed counts with its percentile bootstrap.

  Args:
    measure: the measure.
    counts: [items, k] summands.
    other: another model's, of the same items; the result is then for the
      difference.
  """

  def value(index: np.ndarray) -> float:
    result = measure.value(counts[index].sum(axis=0))
    if other is not None:
      result -= measure.value(other[index].sum(axis=0))
    return result

  size = len(counts)
  mean = value(np.arange(size))
  if size < 2:
    return statistics.Interval(mean, np.nan, np.nan, size)
  generator = np.random.default_rng(0)
  drawn = [value(generator.integers(0, size, size)) for _ in range(_RESAMPLES)]
  low, high = np.quantile(drawn, (0.025, 0.975))
  return statistics.Interval(mean, float(low), float(high), size)
