"""Prints measures of quality as lines of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from instructgpt_jax.labeling import quality, reliability
from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.labeling.quality import Comparison

_TASKS = ("ranking", "comparison")


def lines(records: Sequence[LabelRecord]) -> list[str]:
  """Returns the agreement of each task, whole and by group."""
  result = [f"{len(records)} labels"]
  for task in _TASKS:
    labels = [r for r in records if r.task == task]
    if labels:
      result += ["", *_task_lines(task, labels)]
  return result


def _task_lines(task: str, records: Sequence[LabelRecord]) -> list[str]:
  training = quality.training_labels(records)
  whole = quality.agreement(quality.compare_labels(training))
  result = [f"{task}: agreement {whole}"]
  for name, values in (("ranks", "ranks"), ("overall quality", "overall")):
    alpha = reliability.krippendorff_alpha(training, values)
    if not math.isnan(alpha):
      result.append(f"  Krippendorff's α of {name}: {alpha:.3f}")
  comparisons = quality.compare_labels(records)
  result += _group_lines("labelers", comparisons, quality.by_group)
  result += _group_lines("labeler", comparisons, quality.by_labeler)
  result += _group_lines("pair", comparisons, quality.by_labelers)
  result += _group_lines("kind", comparisons, quality.by_kind)
  result += _group_lines("week of", comparisons, quality.by_week)
  for name, row in quality.gold_accuracy(records).items():
    result.append(f"  gold items, {name}: {row}")
  return result + _speed_lines(records)


def _group_lines(
  title: str,
  comparisons: Sequence[Comparison],
  keys: Callable[[Comparison], Iterable[Any]],
) -> list[str]:
  """Returns the agreement and the α of each group."""
  alphas = reliability.alpha_by(comparisons, keys)
  lines = []
  for key, row in quality.agreement_by(comparisons, keys).items():
    name = " and ".join(key) if isinstance(key, tuple) else key or "–"
    alpha = "" if math.isnan(alphas[key]) else f", α {alphas[key]:.3f}"
    lines.append(f"  {title} {name}: {row}{alpha}")
  return lines


def _speed_lines(records: Iterable[LabelRecord]) -> list[str]:
  return [
    f"  labeler {name}: {speed.fast} of {speed.labels} labels are faster than"
    f" reading (median {speed.median_seconds:.0f} s)"
    for name, speed in quality.speed_by_labeler(records).items()
    if speed.suspicious
  ]
