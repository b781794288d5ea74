"""Means over the seeds of a sweep, with intervals, as a table and a picture."""

from __future__ import annotations

import csv
import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import statistics
from instructgpt_jax.runs import files

CSV = "means.csv"
PICTURE = "sweep.png"
SEED = "seed"
_MAX_PANELS = 6
_MAX_LINES = 8  # distinct colours of a panel
_NO_RESULT = ("run", "seconds")
_BOUNDS = (".low", ".high", ".units")  # of a metric NAME.mean
# A logarithmic axis is used from this ratio of largest to smallest value on.
_LOG_RATIO = 20.0


class Group(NamedTuple):
  """Runs that differ in their seed only.

  Attributes:
    settings: swept field → value, without the seed.
    means: number of the runs' summaries → mean over runs and 95 % interval.
  """

  settings: dict[str, Any]
  means: dict[str, statistics.Interval]


def group_by_settings(
  rows: Sequence[Mapping[str, Any]], swept: Sequence[str]
) -> list[Group]:
  """Groups the rows of a sweep by swept values without the seed.

  Args:
    rows: complete runs, as `collect.read_rows` returns them.
    swept: swept fields.
  """
  fields = [field for field in swept if field != SEED]
  members: dict[tuple, list[Mapping[str, Any]]] = {}
  for row in rows:
    members.setdefault(tuple(row.get(f) for f in fields), []).append(row)
  metrics = [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if name not in (*swept, *_NO_RESULT) and not name.endswith(_BOUNDS)
  ]
  groups = []
  for values, runs in members.items():
    means = {}
    for name in metrics:
      numbers = [n for run in runs if (n := _finite(run.get(name))) is not None]
      if numbers:
        means[name] = statistics.bootstrap_interval(numbers)
    groups.append(Group(dict(zip(fields, values, strict=True)), means))
  return groups


def has_seeds(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> bool:
  """Returns whether a sweep has runs with several seeds."""
  return SEED in swept and len({row.get(SEED) for row in rows}) > 1


def mean_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
  """Returns a flat row for each group: settings, number of runs, means."""
  rows = []
  for group in groups:
    runs = max((mean.units for mean in group.means.values()), default=0)
    row = {**group.settings, "runs": runs}
    for name, mean in group.means.items():
      row |= {
        name: mean.mean,
        f"{name}.low": mean.low,
        f"{name}.high": mean.high,
      }
    rows.append(row)
  return rows


def write_means(root: str, groups: Sequence[Group]) -> str:
  """Writes means.csv in the sweep's directory, and returns its path."""
  rows = mean_rows(groups)
  names = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  path = pathlib.Path(root) / CSV
  files.write_text_atomic(path, text.getvalue())
  return str(path)


def text_rows(
  groups: Sequence[Group], metrics: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns rows of a table with "mean [low, high]" for some metrics."""
  rows = []
  for group in groups:
    row: dict[str, Any] = dict(group.settings)
    for name in metrics:
      if name in group.means:
        row[name] = _format_mean(group.means[name])
    rows.append(row)
  return rows


def _format_mean(mean: statistics.Interval) -> str:
  text = f"{mean.mean:.4g}"
  if math.isnan(mean.low):
    return text
  return f"{text} [{mean.low:.4g}, {mean.high:.4g}]"


def choose_metrics(
  groups: Sequence[Group], first: Sequence[str] = ()
) -> list[str]:
  """Returns the metrics to show: `first`, then those that vary most.

  Variation is the range of the means over their largest absolute value.
  """
  variation = {}
  for name in dict.fromkeys(n for group in groups for n in group.means):
    means = [g.means[name].mean for g in groups if name in g.means]
    spread = max(means) - min(means)
    uncertain = any(not math.isnan(g.means[name].low) for g in groups
                    if name in g.means)  # fmt: skip
    if spread > 0 or uncertain:
      variation[name] = spread / max(map(abs, means), default=1.0)
  ranked = sorted(variation, key=lambda name: -variation[name])
  chosen = [name for name in first if name in variation]
  return list(dict.fromkeys([*chosen, *ranked]))[:_MAX_PANELS]


def draw(
  root: str,
  groups: Sequence[Group],
  metrics: Sequence[str],
  *,
  connect: bool = True,
) -> str | None:
  """Draws a panel for each metric over the first swept field.

  Args:
    root: the sweep's directory.
    groups: groups of runs; each is a point with its interval.
    metrics: metrics to draw, as `choose_metrics` returns them.
    connect: whether to connect points that differ in the first field only.

  Returns:
    The path of sweep.png; None if there is nothing to draw.
  """
  if not groups or not metrics:
    return None
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  fields = list(groups[0].settings)
  columns = min(3, len(metrics))
  lines = -(-len(metrics) // columns)
  figure = Figure((4.2 * columns, 3.2 * lines), layout="constrained")
  FigureCanvasAgg(figure)
  for index, metric in enumerate(metrics):
    axes = figure.add_subplot(lines, columns, index + 1)
    _draw_panel(axes, groups, fields, metric, connect)
  path = os.path.join(root, PICTURE)
  files.make_directory(root)
  image = io.BytesIO()
  figure.savefig(image, format="png", dpi=120)
  files.write_chunks_atomic(path, (image.getvalue(),))
  return path


def _draw_panel(
  axes: Any,
  groups: Sequence[Group],
  fields: Sequence[str],
  metric: str,
  connect: bool,
) -> None:
  """Draws one metric; settings beside the first field are separate lines."""
  field = fields[0] if fields else ""
  values = [group.settings.get(field) for group in groups]
  numeric = all(_finite(value) is not None for value in values)
  names = list(dict.fromkeys(map(str, values)))
  curves: dict[str, list[tuple[float, statistics.Interval]]] = {}
  for group in groups:
    if metric not in group.means:
      continue
    value = group.settings.get(field)
    x = float(value) if numeric and fields else names.index(str(value))
    label = ", ".join(
      f"{name.rpartition('.')[2]} {group.settings[name]}" for name in fields[1:]
    )
    if not connect:
      label = ""
    curves.setdefault(label, []).append((x, group.means[metric]))
  for label, points in list(curves.items())[:_MAX_LINES]:
    points.sort(key=lambda point: point[0])
    means = [mean.mean for _, mean in points]
    errors = [
      [0.0 if math.isnan(m.low) else m.mean - m.low for _, m in points],
      [0.0 if math.isnan(m.high) else m.high - m.mean for _, m in points],
    ]
    axes.errorbar(
      [x for x, _ in points],
      means,
      yerr=errors,
      marker="o",
      capsize=3,
      linestyle="-" if connect and numeric else "none",
      label=label or None,
    )
  if numeric and fields:
    positive = [float(v) for v in values if float(v) > 0]
    if len(positive) == len(values) and (
      max(positive) >= _LOG_RATIO * min(positive)
    ):
      axes.set_xscale("log")
  else:
    axes.set_xticks(range(len(names)), names if fields else ["all runs"])
  axes.set_xlabel(field)
  axes.set_title(metric, fontsize="medium")
  if len(curves) > 1:
    axes.legend(fontsize="small")


def _finite(value: Any) -> float | None:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  return float(value) if math.isfinite(value) else None
