"""Learning curves, read back from the stages' metric files."""

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
  """Curves of the stages whose folders stand under a workdir.

  Args:
    workdir: folder that holds the stages' folders.
    names: the stages' folders; a mapping names the metrics wanted of each, a
      sequence takes every metric.
    points: longest curve; a longer one is averaged over equal runs of points,
      each placed at its last step.

  Returns:
    {stage: {metric: [[step, value], …]}} in order of steps. Stages without a
    file and metrics without a finite value are absent.
  """
  curves: Curves = {}
  for stage in names:
    wanted = names[stage] if isinstance(names, Mapping) else None
    rows = metrics.read_metrics(pathlib.Path(workdir) / stage)
    found = _by_metric(rows, wanted)
    thinned = {name: _thin(curve, points) for name, curve in found.items()}
    if thinned:
      curves[stage] = thinned
  return curves


def _by_metric(
  rows: Sequence[Mapping[str, Any]], wanted: Sequence[str] | None
) -> dict[str, list[list[float]]]:
  columns: dict[str, dict[float, float]] = {name: {} for name in wanted or ()}
  for row in rows:
    step = results_lib.number(row.get("step"))
    if step is None:
      continue
    for name, item in row.items():
      value = results_lib.number(item)
      if name == "step" or value is None:
        continue
      if wanted is not None and name not in wanted:
        continue
      columns.setdefault(name, {})[step] = value
  return {
    name: [[step, column[step]] for step in sorted(column)]
    for name, column in columns.items()
    if column
  }


def _thin(curve: list[list[float]], points: int) -> list[list[float]]:
  """Means of at most `points` equal runs; a short curve stays as it is."""
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
