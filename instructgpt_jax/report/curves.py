"""Reads learning curves from the stages' metric files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.report import results as results_lib
from instructgpt_jax.runs import metrics

POINTS = 300

Curves = dict[str, dict[str, list[list[float]]]]


def read_curves(
  workdir: str | pathlib.Path,
  names: Mapping[str, Sequence[str]] | Sequence[str],
  *,
  points: int = POINTS,
) -> Curves:
  """Reads the curves of the stages in a workdir.

  Args:
    workdir: directory that holds the stages' directories.
    names: names of the stages' directories. A mapping also names each stage's
      metrics, and their parts such as "valid_loss/FILE"; a sequence reads
      every metric.
    points: longest curve. A longer one is averaged over equal runs of points,
      and each mean is at the run's last step.

  Returns:
    {stage: {metric: [[step, value], …]}} in order of steps. Stages without a
    file and metrics without a finite value are absent.
  """
  curves: Curves = {}
  for stage in names:
    metric_names = names[stage] if isinstance(names, Mapping) else None
    rows = metrics.read_metrics(pathlib.Path(workdir) / stage)
    stage_curves = _by_metric(rows, metric_names)
    thinned = {
      name: _thin(curve, points) for name, curve in stage_curves.items()
    }
    if thinned:
      curves[stage] = thinned
  return curves


def _by_metric(
  rows: Sequence[Mapping[str, Any]], metric_names: Sequence[str] | None
) -> dict[str, list[list[float]]]:
  columns: dict[str, dict[float, float]] = {
    name: {} for name in metric_names or ()
  }
  for row in rows:
    step = results_lib.number(row.get("step"))
    if step is None:
      continue
    for name, item in row.items():
      value = results_lib.number(item)
      if name == "step" or value is None:
        continue
      # valid_loss/FILE belongs to valid_loss.
      if metric_names is not None and name.split("/")[0] not in metric_names:
        continue
      columns.setdefault(name, {})[step] = value
  return {
    name: [[step, column[step]] for step in sorted(column)]
    for name, column in columns.items()
    if column
  }


def _thin(curve: list[list[float]], points: int) -> list[list[float]]:
  """Averages a long curve over `points` equal runs of values."""
  count = len(curve)
  if count <= points:
    return curve
  edges = [i * count // points for i in range(points + 1)]
  return [
    [
      curve[end - 1][0],
      sum(value for _, value in curve[start:end]) / (end - start),
    ]
    for start, end in zip(edges, edges[1:], strict=False)
  ]
