"""Lays out the axes of a panel: positions of points, ticks and limits.

Matplotlib does not lay out the horizontal axis, because a logarithmic axis here
also shows 0, and the ticks are the values that the study tried.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from instructgpt_jax.report.findings import Panel, Point

MANY = 10  # more intervals than this are drawn as a band
# The largest number of tried values that each get a tick.
FEW_TICKS = {"linear": 9, "log": 16}
AXIS = 285.0  # points that an axis is long, about
LETTER = 6.4
MAX_SERIES = 16
HUGE = 1e30  # larger values are not drawn
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Scale(NamedTuple):
  """A horizontal axis: maps values to positions on a straight line."""

  log: bool
  zero: float | None  # the position of 0 on a logarithmic axis
  low: float
  high: float
  ticks: list[tuple[float, str]]

  def at(self, x: float) -> float:
    """Returns the position of a value."""
    if not self.log:
      return x
    return math.log10(x) if x > 0 else self.zero or 0.0

  def apart(self, x: float) -> bool:
    """Returns whether a value lies beyond the break."""
    return self.zero is not None and x <= 0


def drawable(panel: Panel) -> Panel:
  """Removes points and lines that the panel's axes cannot show."""
  series = []
  for item in panel.series[:MAX_SERIES]:
    points = [p for p in (_fitted(panel, p) for p in item.points) if p]
    if item.curve and panel.x_scale == "log":
      points = [p for p in points if p.x != 0]
    if points:
      series.append(dataclasses.replace(item, points=points))
  lines = [
    line
    for line in panel.lines
    if (line.y is None or _fits(line.y, panel.y_scale))
    and (line.x is None or _fits(line.x, panel.x_scale))
  ]
  return dataclasses.replace(panel, series=series, lines=lines)


def _fits(value: float | str, scale: str) -> bool:
  if isinstance(value, str) or scale == "category":
    return False
  if scale == "log":
    return 1 / HUGE < value < HUGE
  return abs(value) < HUGE


def _fitted(panel: Panel, point: Point) -> Point | None:
  """Drops a point without a position, and an interval without both bounds."""
  named = panel.x_scale == "category"
  if not (named or point.x == 0 or _fits(point.x, panel.x_scale)):
    return None
  if not _fits(point.mean, panel.y_scale):
    return None
  bounds = [v for v in point[2:] if v is not None and _fits(v, panel.y_scale)]
  return Point(point.x, point.mean, *(bounds if len(bounds) == 2 else ()))


def shared_limits(panels: Sequence[Panel]) -> list[tuple[float, float] | None]:
  """Computes the limits that panels of one measure have in common.

  Returns:
    Limits a panel; None for a panel whose values are far from the others'.
  """
  spans = [_span(panel) for panel in panels]
  result: list[tuple[float, float] | None] = []
  for panel in panels:
    same = [
      span
      for other, span in zip(panels, spans, strict=True)
      if (other.y_label, other.y_scale) == (panel.y_label, panel.y_scale)
    ]
    low, high = min(low for low, _ in same), max(high for _, high in same)
    widest = max(high - low for low, high in same)
    if len(same) < 2 or not panel.y_label or high - low > 1.7 * widest:
      result.append(None)
      continue
    margin = 0.07 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    if panel.y_scale == "log":
      limits = (10 ** limits[0], 10 ** limits[1])
    result.append(limits)
  return result


def _span(panel: Panel) -> tuple[float, float]:
  """Returns the least and the greatest value, in decades on a log axis."""
  values = [v for s in panel.series for p in s.points for v in p[1:]]
  values += [line.y for line in panel.lines]
  every = [v for v in values if v is not None]
  if panel.y_scale == "log":
    every = [math.log10(v) for v in every if v > 0]
  return min(every), max(every)


def horizontal(panel: Panel) -> Scale:
  """Computes the axis that contains all points and lines of a panel."""
  tried = sorted({p.x for s in panel.series if not s.curve for p in s.points})
  every = {p.x for s in panel.series for p in s.points}
  every |= {line.x for line in panel.lines if line.x is not None}
  positive = [math.log10(x) for x in every if x > 0]
  log = panel.x_scale == "log" and bool(positive)
  places = positive if log else list(every)
  low, high = min(places), max(places)
  span = high - low
  zero = None
  if log and 0 in every:
    zero = low - (0.16 * span or 0.5)
    span += low - zero
  margin = 0.06 * span or 0.5
  scale = Scale(log, zero, (low if zero is None else zero) - margin, 0.0, [])
  scale = scale._replace(high=high + margin)
  return scale._replace(ticks=_ticks(scale, tried))


def place(panel: Panel, x: float) -> float:
  """Returns the position of a value on a panel's horizontal axis."""
  return horizontal(panel).at(x)


def _ticks(scale: Scale, tried: Sequence[float]) -> list[tuple[float, str]]:
  if 0 < len(tried) <= FEW_TICKS["log" if scale.log else "linear"]:
    tried_marks = [(scale.at(x), tick(x, 3)) for x in tried]
    return _spread(scale, tried_marks)
  if not scale.log:
    inside = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(
      scale.low, scale.high
    )
    marks = [(x, tick(x, 6)) for x in inside if scale.low <= x <= scale.high]
    return _spread(scale, marks)
  start = scale.low if scale.zero is None else scale.zero + 1e-9
  steps = (1, 2, 5) if scale.high - start < 2 else (1,)
  values = [
    step * 10.0**power
    for power in range(math.floor(start), math.ceil(scale.high) + 1)
    for step in steps
  ]
  marks = [(math.log10(v), tick(v, 3)) for v in values]
  marks = [(u, text) for u, text in marks if start <= u <= scale.high]
  if scale.zero is not None:
    marks.insert(0, (scale.zero, "0"))
  return _spread(scale, marks)


def _spread(
  scale: Scale, marks: Sequence[tuple[float, str]]
) -> list[tuple[float, str]]:
  """Keeps all ticks, and the labels that do not touch one another."""
  result, edge = [], -math.inf
  for u, text in marks:
    middle = (u - scale.low) / (scale.high - scale.low) * AXIS
    half = len(text) * LETTER / 2
    if middle - half >= edge:
      edge = middle + half + 6
    else:
      text = ""
    result.append((u, text))
  return result


def dodges(panel: Panel, scale: Scale) -> list[float]:
  """Computes sideways shifts, one a series, that keep intervals apart."""
  intervals_at: dict[float | str, list[tuple[float, float]]] = {}
  for series in panel.series:
    for point in series.points:
      if point.low is not None and point.high is not None:
        intervals_at.setdefault(point.x, []).append((point.low, point.high))
  meet = any(_overlap(intervals) for intervals in intervals_at.values())
  count = len(panel.series)
  if len(intervals_at) > MANY or not meet or any(s.curve for s in panel.series):
    return [0.0] * count
  step = min(4.5, 16 / count) / AXIS * (scale.high - scale.low)
  return [(at - (count - 1) / 2) * step for at in range(count)]


def _overlap(intervals: Sequence[tuple[float, float]]) -> bool:
  ordered = sorted(intervals)
  return any(b[0] <= a[1] for a, b in itertools.pairwise(ordered))


def draw_break(axes: Any, scale: Scale) -> None:
  """Interrupts the bottom line between 0 and the rest."""
  if scale.zero is None:
    return
  rest = [u for u, _ in scale.ticks if u > scale.zero]
  after = min(rest, default=scale.high)
  middle = (scale.zero + after) / 2
  half = 0.012 * (scale.high - scale.low)
  across = axes.get_xaxis_transform()
  axes.spines["bottom"].set_visible(False)
  style = {"transform": across, "clip_on": False, "color": "#666666", "lw": 0.8}
  axes.plot([scale.low, middle - half], [0, 0], **style)
  axes.plot([middle + half, scale.high], [0, 0], **style)
  for x in (middle - half, middle + half):
    axes.plot([x - half / 2, x + half / 2], [-0.025, 0.025], **style)


def categories(panel: Panel) -> list[str]:
  """Lists the names of a category axis in order of first occurrence."""
  names = (name_of(p.x) for s in panel.series for p in s.points)
  return list(dict.fromkeys(names))


def name_of(x: float | str) -> str:
  """Returns a category's name."""
  return x if isinstance(x, str) else tick(x, 6)


def flat_height(panel: Panel, series: int) -> float:
  """Computes the height in inches of a panel with categories as rows.

  Args:
    panel: its categories are counted.
    series: the most that a category of the figure holds.

  Returns:
    The height without the legend.
  """
  return 0.75 + len(categories(panel)) * max(0.36, 0.14 * series + 0.1)


def tick(value: float, digits: int) -> str:
  """Formats a value as '0.5', '65.5k', '1.3B' or '5.4·10⁻⁵'."""
  if value == 0:
    return "0"
  size = abs(value)
  if 1e4 <= size < 1e15:
    unit, suffix = next(s for s in _SUFFIXES if size >= s[0])
    text = _rounded(value / unit, digits) + suffix
  elif 1e-3 <= size < 1e4:
    text = _rounded(value, max(digits, 4) if size >= 1e3 else digits)
  else:
    mantissa, power = f"{value:.{min(digits, 3) - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    text = f"{mantissa}·10{str(int(power)).translate(_SUPERSCRIPT)}"
  return text.replace("-", "−")


def _rounded(value: float, digits: int) -> str:
  return f"{float(f'{value:.{digits}g}'):.10g}"
