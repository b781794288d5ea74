"""Draws the studies' figures as SVG text: one picture a panel, or one file.

Panels of one figure reserve the same height for their legends, so that their
axes are level. Values of one measure share their axis limits.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from instructgpt_jax.report import figures
from instructgpt_jax.report import study_axes as axes_lib
from instructgpt_jax.report import study_looks as looks_lib
from instructgpt_jax.report.findings import Figure, Panel, Point
from instructgpt_jax.report.study_looks import Look

FONT = 10.6  # points; at least 11 pixels where the page is 400 wide
HEIGHT = 2.45  # inches of a panel without its legend
ROW = 0.19  # inches of a line of text
LETTER = 6.0  # points of a letter of a name, rather too many than too few
FAMILY = "DejaVu Sans, Verdana, Arial, sans-serif"
LINE_DASHES = ((0, (4, 3)), (0, (1, 2)), (0, (8, 3, 1, 3)))


class Drawn(NamedTuple):
  """One panel as an <svg> element."""

  title: str
  svg: str


class Drawing(NamedTuple):
  """One figure: its title, caption and panels."""

  title: str
  caption: str
  panels: list[Drawn]


class _Frame(NamedTuple):
  """Values that the panels of a figure share, so that they line up."""

  looks: Mapping[tuple[str, str], Look]
  rows: int  # of the longest legend
  lines: int  # of the longest label of an upright axis
  series: int


def draw(figure: Mapping[str, Any] | Figure) -> Drawing | None:
  """Draws each panel that has something to show; None when none has."""
  if not isinstance(figure, Figure):
    figure = Figure.from_dict(figure)
  panels = [p for p in map(axes_lib.drawable, figure.panels) if p.series]
  if not panels:
    return None
  looks = looks_lib.assign(panels)
  legends = [_legend(panel, looks) for panel in panels]
  frame = _Frame(
    looks,
    rows=max(math.ceil(len(keys) / _columns(keys)) for keys in legends),
    lines=max(len(_head(panel)) for panel in panels),
    series=max(len(panel.series) for panel in panels),
  )
  limits = axes_lib.shared_limits(panels)
  with figures.styled():
    drawn = [
      Drawn(_text(panel.title), _draw_panel(panel, frame, keys, ends))
      for panel, keys, ends in zip(panels, legends, limits, strict=True)
    ]
  return Drawing(_text(figure.title, 200), figure.caption, drawn)


def standalone(drawing: Drawing) -> str:
  """Returns the figure as one SVG file's text, panels side by side."""
  gap, margin, head = 28, 14, 26
  sizes = [_size(panel.svg) for panel in drawing.panels]
  title = head if drawing.title else 0
  width = sum(w for w, _ in sizes) + gap * (len(sizes) - 1) + 2 * margin
  height = max(h for _, h in sizes) + title + head + 2 * margin
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" '
    f'xmlns:xlink="http://www.w3.org/1999/xlink" '
    f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
    f'height="{height:g}" font-family="{FAMILY}" '
    'stroke-linejoin="round" stroke-linecap="butt">',
    '<rect width="100%" height="100%" fill="#ffffff"/>',
  ]
  if drawing.title:
    parts.append(_svg_text(drawing.title, margin, margin + 12, 14))
  x = float(margin)
  for panel, (w, h) in zip(drawing.panels, sizes, strict=True):
    y = margin + title
    parts.append(_svg_text(panel.title, x, y + 14, 12))
    place = f'<svg x="{x:g}" y="{y + head:g}" width="{w:g}" height="{h:g}" '
    parts.append(panel.svg.replace("<svg ", place, 1))
    x += w + gap
  return "\n".join([*parts, "</svg>"]) + "\n"


def _text(text: str, width: int = 44) -> str:
  """Returns the text as one line that an XML file may contain."""
  line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
  return figures.short(line, width)


def _legend(panel: Panel, looks: Mapping[Any, Look]) -> list[Line2D]:
  handles: dict[str, Line2D] = {}
  for series in panel.series:
    look = looks[looks_lib.key(series)]
    joined = series.line and panel.x_scale != "category" or series.curve
    handle = Line2D([], [], **_style(look, joined, series.curve))
    if name := _text(series.name):
      handles.setdefault(name, handle)
  for at, line in enumerate(panel.lines):
    if name := _text(line.label):
      handles.setdefault(name, Line2D([], [], **_reference(at)))
  for name, handle in handles.items():
    handle.set_label(name)
  return list(handles.values())


def _style(look: Look, joined: bool, curve: bool = False) -> dict[str, Any]:
  if curve:
    return {"color": look.colour, "linewidth": 1.2, "linestyle": look.dash}
  return {
    "color": look.colour,
    "linewidth": 1.6,
    "linestyle": look.dash if joined else "none",
    "marker": look.marker,
    "markersize": {"*": 10.5, "X": 7.5, "P": 7.5}.get(look.marker, 6.5),
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
  }


def _reference(at: int) -> dict[str, Any]:
  return {
    "color": "#444444",
    "linewidth": 1,
    "linestyle": LINE_DASHES[at % len(LINE_DASHES)],
  }


def _columns(handles: Sequence[Line2D]) -> int:
  """Returns the number of legend columns that certainly fit the width."""
  lengths = [len(str(handle.get_label())) for handle in handles]
  for count in range(min(4, len(handles)), 1, -1):
    columns = np.array_split(lengths, count)
    width = sum(LETTER * max(c) + 36 for c in columns) + 13 * (count - 1)
    if width <= 72 * figures.WIDTH:
      return count
  return 1


def _head(panel: Panel) -> list[str]:
  """Returns the label of the upright axis, as lines above it."""
  flat = panel.x_scale == "category"
  label = panel.x_label if flat else panel.y_label
  return textwrap.wrap(_text(label, 160), 50)


def _draw_panel(
  panel: Panel,
  frame: _Frame,
  legend: Sequence[Line2D],
  limits: tuple[float, float] | None,
) -> str:
  flat = panel.x_scale == "category"
  foot = textwrap.wrap(_text(panel.y_label if flat else panel.x_label, 160), 50)
  legend_height = ROW * frame.rows + (0.1 if frame.rows else 0.04)
  top = legend_height + ROW * frame.lines
  body = axes_lib.flat_height(panel, frame.series) if flat else HEIGHT
  height = top + body + ROW * max(0, len(foot) - 1)
  canvas = Canvas(figsize=(figures.WIDTH, height), layout="constrained")
  engine: Any = canvas.get_layout_engine()
  engine.set(rect=(0, 0, 1, 1 - top / height), w_pad=0.02, h_pad=0.02)
  axes = canvas.subplots()
  axes.tick_params(labelsize=FONT, color="#666666")
  axes.set_axisbelow(True)
  for at, line in enumerate(panel.lines):
    _draw_line(axes, panel, line, at)
  if flat:
    _draw_flat(axes, panel, frame.looks)
  else:
    _draw_upright(axes, panel, frame.looks)
  if limits:
    (axes.set_xlim if flat else axes.set_ylim)(limits)
  axes.set_xlabel("\n".join(foot), fontsize=FONT)
  # On a narrow screen there is no room for a label beside the axis.
  canvas.text(
    0.003,
    1 - legend_height / height,
    "\n".join(_head(panel)),
    fontsize=FONT,
    va="top",
  )
  if legend:
    box = canvas.legend(
      handles=legend,
      loc="upper left",
      bbox_to_anchor=(0, 1),
      ncols=_columns(legend),
      fontsize=FONT,
      borderpad=0.1,
      borderaxespad=0.1,
      labelspacing=0.3,
      handlelength=1.2 if flat and not panel.lines else 2.8,
      handletextpad=0.5,
      columnspacing=1.2,
    )
    box.set_in_layout(False)
  return figures.svg(canvas)


def _draw_line(axes: Any, panel: Panel, line: Any, at: int) -> None:
  style = _reference(at) | {"zorder": 0.5}
  if line.x is not None:
    axes.axvline(axes_lib.place(panel, line.x), **style)
  elif panel.x_scale == "category":
    axes.axvline(line.y, **style)
  else:
    axes.axhline(line.y, **style)


def _draw_upright(axes: Any, panel: Panel, looks: Mapping[Any, Look]) -> None:
  scale = axes_lib.horizontal(panel)
  shifts = axes_lib.dodges(panel, scale)
  for series, shift in zip(panel.series, shifts, strict=True):
    look = looks[looks_lib.key(series)]
    xs = [scale.at(point.x) + shift for point in series.points]
    _draw_intervals(axes, xs, series.points, look)
    style = _style(look, series.line, series.curve)
    means = [point.mean for point in series.points]
    zero = [i for i, p in enumerate(series.points) if scale.apart(p.x)]
    rest = [i for i in range(len(xs)) if i not in zero]
    for part in (rest, *([i] for i in zero)):  # not joined over the break
      axes.plot([xs[i] for i in part], [means[i] for i in part], **style)
  axes.set_xlim(scale.low, scale.high)
  axes.set_xticks([u for u, _ in scale.ticks], [t for _, t in scale.ticks])
  if scale.zero is not None:
    axes_lib.draw_break(axes, scale)
  _value_axis(axes.yaxis, axes.set_yscale, panel.y_scale)
  axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)
  axes.margins(y=0.08)


def _draw_intervals(
  axes: Any, xs: Sequence[float], points: Sequence[Point], look: Look
) -> None:
  intervals = [
    (x, p.low, p.high)
    for x, p in zip(xs, points, strict=True)
    if p.low is not None and p.high is not None
  ]
  if len(intervals) > axes_lib.MANY:
    axes.fill_between(
      *zip(*intervals, strict=True), color=look.colour, alpha=0.16, linewidth=0
    )
    return
  for x, low, high in intervals:
    axes.plot([x, x], [low, high], color=look.colour, linewidth=1.3)


def _draw_flat(axes: Any, panel: Panel, looks: Mapping[Any, Look]) -> None:
  """Draws names down the page and values across, so names never collide."""
  names = axes_lib.categories(panel)
  rows = {name: row for row, name in enumerate(names)}
  count = len(panel.series)
  step = min(0.26, 0.78 / count)
  for at, series in enumerate(panel.series):
    look = looks[looks_lib.key(series)]
    shift = (at - (count - 1) / 2) * step
    for point in series.points:
      y = rows[axes_lib.name_of(point.x)] + shift
      if point.low is not None and point.high is not None:
        axes.plot([point.low, point.high], [y, y], color=look.colour, lw=1.5)
      axes.plot([point.mean], [y], **_style(look, joined=False))
  for row in range(1, len(names)):
    axes.axhline(row - 0.5, color="#e2e2e2", linewidth=0.8, zorder=0)
  labels = [textwrap.fill(_text(name, 54), 18) for name in names]
  axes.set_yticks(range(len(names)), labels)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.tick_params(axis="y", length=0)
  _value_axis(axes.xaxis, axes.set_xscale, panel.y_scale)
  axes.grid(axis="x", color="#e2e2e2", linewidth=0.8)
  axes.margins(x=0.06)


def _value_axis(axis: Any, set_scale: Any, scale: str) -> None:
  if scale == "log":
    set_scale("log")
    low, high = sorted(axis.get_view_interval())
    subs = (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_minor_locator(LogLocator(subs=(), numticks=8))
  else:
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
  axis.set_major_formatter(FuncFormatter(lambda v, _: axes_lib.tick(v, 6)))


def _size(svg: str) -> tuple[float, float]:
  match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
  return (float(match[1]), float(match[2])) if match else (0.0, 0.0)


def _svg_text(text: str, x: float, y: float, size: float) -> str:
  return (
    f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="bold" '
    f'fill="#1c1c1c">{html.escape(_text(text, 90))}</text>'
  )
