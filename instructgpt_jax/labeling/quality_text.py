"""Prints measures of quality as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from instructgpt_jax.labeling import quality
from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.labeling.quality import Agreement

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
  comparisons = quality.compare_labels(records)
  result = [f"{task}: agreement {quality.agreement(comparisons)}"]
  for name, values in (("ranks", "ranks"), ("overall quality", "overall")):
    alpha = quality.krippendorff_alpha(records, values)
    if not math.isnan(alpha):
      result.append(f"  Krippendorff's α of {name}: {alpha:.3f}")
  result += _group_lines("labelers", quality.agreement_by_group(comparisons))
  result += _group_lines("labeler", quality.agreement_by_labeler(comparisons))
  result += _group_lines("kind", quality.agreement_by_kind(comparisons))
  result += _group_lines("week of", quality.agreement_by_week(comparisons))
  result += _group_lines("gold items,", quality.gold_accuracy(records))
  result += _speed_lines(records)
  return result


def _group_lines(title: str, groups: Mapping[str, Agreement]) -> list[str]:
  return [f"  {title} {name or '–'}: {row}" for name, row in groups.items()]


def _speed_lines(records: Iterable[LabelRecord]) -> list[str]:
  return [
    f"  labeler {name}: {speed.fast} of {speed.labels} labels are faster than"
    f" reading (median {speed.median_seconds:.0f} s)"
    for name, speed in quality.speed_by_labeler(records).items()
    if speed.suspicious
  ]
