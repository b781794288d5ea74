"""Means of a task's measures with 95 % intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.evaluation import group_intervals
from instructgpt_jax.evaluation.tasks.task import Task

Rows = Sequence[Mapping[str, Any]]  # as `answers.Row.to_json` writes them
Intervals = dict[str, dict[str, statistics.Interval]]  # variant → measure → …


def summarize(task: Task, rows: Rows, other: Rows | None = None) -> Intervals:
  """Computes each measure's mean over items with its interval.

  The unit of an interval is the item, or the items of one group.

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
  pairs = list(zip(rows, rows if other is None else other, strict=True))
  result = {}
  for name in dict.fromkeys(name for row in rows for name in row["scores"]):
    both = [
      pair for pair in pairs if all(name in row["scores"] for row in pair)
    ]
    if not both:
      continue
    values, others = (
      [row["scores"][name] for row in side] for side in zip(*both, strict=True)
    )
    result[name] = group_intervals.grouped_interval(
      values,
      [_group(row) for row, _ in both],
      paired=None if other is None else others,
      share=other is None and set(values) <= {0.0, 1.0},
    )
  groups = [_group(row) for row in rows]
  for name, measure in task.corpus.items():
    counts = [
      _sum_by_group([row["counts"][name] for row in of_model], groups)
      for of_model in (rows, other)
      if of_model is not None
    ]
    result[name] = group_intervals.corpus_interval(
      measure.value, counts[0], paired=counts[1] if other else None
    )
  return result


def _group(row: Mapping[str, Any]) -> str:
  return row.get("group", row["id"])


def _sum_by_group(
  counts: Sequence[Sequence[float]], groups: Sequence[str]
) -> np.ndarray:
  """Sums the counts of each group; [items, k] → [groups, k]."""
  index = group_intervals.group_index(groups)
  sums = np.zeros((index.max() + 1, len(counts[0])))
  np.add.at(sums, index, np.array(counts, float))
  return sums
