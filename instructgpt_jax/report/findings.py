"""Data of a study's page: figures of panels of series, and tables.

  Figure("Win rate", [
    Panel("Here", x_label="Parameters", y_label="Win rate (share)",
          x_scale="log", lines=[(0.5, "no difference")],
          series=[Series("PPO-ptx", [(1e6, interval)], role="ppo_ptx")]),
    Panel("Paper", ...),
  ])

`as_dict` returns the value as results.json stores it and `from_dict` reads it.
The reader omits values that are malformed or not finite, so that one bad number
does not prevent the page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.report.results import Leaf, leaf, mapping, number

X_SCALES = ("linear", "log", "category")
Y_SCALES = ("linear", "log")
# How a series looks; any other role is drawn in spare colours.
ROLES = (
  "base",
  "prompted",
  "rule_filter",
  "flan",
  "sft",
  "best_of_n",
  "ppo",
  "ppo_ptx",
)

Cell = str | float | Leaf | None


class Point(NamedTuple):
  """A mean at a position x, with its 95 % interval if it has one."""

  x: float | str
  mean: float
  low: float | None = None
  high: float | None = None


class Line(NamedTuple):
  """A reference line across a panel, at a position y or x."""

  y: float | None = None
  label: str = ""
  x: float | None = None

  def as_dict(self) -> dict[str, Any]:
    """Returns the line with the coordinate that it has."""
    at = {"y": self.y} if self.x is None else {"x": self.x}
    return at | {"label": self.label}


@dataclasses.dataclass(frozen=True)
class Series:
  """One curve or group of points.

  Attributes:
    name: text in the legend.
    points: each a Point, (x, mean), (x, mean, low, high), or (x, interval)
      with anything that has mean, low and high.
    role: one of ROLES or "": keeps a model's colour and marker the same
      everywhere.
    line: whether the points are joined.
    curve: a fitted curve: thin, without markers.
  """

  name: str
  points: Sequence[Any] = ()
  role: str = ""
  line: bool = True
  curve: bool = False

  def __post_init__(self):
    points = tuple(p for item in self.points if (p := _point(item)))
    object.__setattr__(self, "points", points)

  def as_dict(self) -> dict[str, Any]:
    """Returns the series as results.json stores it."""
    result = {
      "name": self.name,
      "role": self.role,
      "line": self.line,
      "points": [list(point) for point in self.points],
    }
    return result | ({"curve": True} if self.curve else {})

  @classmethod
  def from_dict(cls, value: Any) -> Series:
    """Reads `as_dict` back; odd points are left out."""
    value = mapping(value)
    return cls(
      str(value.get("name") or ""),
      _items(value.get("points")),
      role=str(value.get("role") or ""),
      line=bool(value.get("line", True)),
      curve=bool(value.get("curve", False)),
    )


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes.

  Attributes:
    title: "Here", "Paper", or what distinguishes it from its neighbours.
    x_label: label of the x axis, with its unit in brackets.
    y_label: label of the y axis, with its unit in brackets.
    series: series in drawing order.
    x_scale: "linear", "log" (0 is drawn apart at its left end) or "category".
    y_scale: "linear" or "log".
    lines: reference lines: a Line, or (y, label).
  """

  title: str
  x_label: str = ""
  y_label: str = ""
  series: Sequence[Series] = ()
  x_scale: str = "linear"
  y_scale: str = "linear"
  lines: Sequence[Any] = ()

  def __post_init__(self):
    if self.x_scale not in X_SCALES or self.y_scale not in Y_SCALES:
      raise ValueError(
        f"{self.title}: scales {self.x_scale!r} and {self.y_scale!r}; "
        f"x takes {X_SCALES}, y takes {Y_SCALES}"
      )
    object.__setattr__(self, "series", tuple(self.series))
    object.__setattr__(self, "lines", tuple(Line(*x) for x in self.lines))

  def as_dict(self) -> dict[str, Any]:
    """Returns the panel as results.json stores it."""
    return {
      "title": self.title,
      "x": {"label": self.x_label, "scale": self.x_scale},
      "y": {"label": self.y_label, "scale": self.y_scale},
      "series": [series.as_dict() for series in self.series],
      "lines": [line.as_dict() for line in self.lines],
    }

  @classmethod
  def from_dict(cls, value: Any) -> Panel:
    """Reads `as_dict` back; an unknown scale is linear."""
    value = mapping(value)
    x, y = mapping(value.get("x")), mapping(value.get("y"))
    lines = [mapping(line) for line in _items(value.get("lines"))]
    return cls(
      str(value.get("title") or ""),
      x_label=str(x.get("label") or ""),
      y_label=str(y.get("label") or ""),
      series=[Series.from_dict(s) for s in _items(value.get("series"))],
      x_scale=_one_of(X_SCALES, x.get("scale")),
      y_scale=_one_of(Y_SCALES, y.get("scale")),
      lines=[
        Line(y=y, label=str(line.get("label") or ""), x=x)
        for line in lines
        for x, y in [(number(line.get("x")), number(line.get("y")))]
        if (x is None) != (y is None)
      ],
    )


@dataclasses.dataclass(frozen=True)
class Figure:
  """Panels side by side, typically one "Here" and one "Paper"."""

  title: str
  panels: Sequence[Panel] = ()
  caption: str = ""

  def __post_init__(self):
    object.__setattr__(self, "panels", tuple(self.panels))

  def as_dict(self) -> dict[str, Any]:
    """Returns the figure as results.json stores it."""
    return {
      "title": self.title,
      "caption": self.caption,
      "panels": [panel.as_dict() for panel in self.panels],
    }

  @classmethod
  def from_dict(cls, value: Any) -> Figure:
    """Reads `as_dict` back."""
    value = mapping(value)
    return cls(
      str(value.get("title") or ""),
      [Panel.from_dict(panel) for panel in _items(value.get("panels"))],
      caption=str(value.get("caption") or ""),
    )


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells, each row led by its name.

  Attributes:
    caption: text above the table.
    columns: column heads; the first is over the rows' names.
    rows: (name, cell, …); a cell is text, a number, None, or anything that
      has mean, low and high.
  """

  caption: str
  columns: Sequence[str] = ()
  rows: Sequence[Sequence[Any]] = ()

  def __post_init__(self):
    columns = tuple(map(str, self.columns))
    rows = tuple(
      (str(row[0]), *map(_cell, row[1:])) for row in self.rows if len(row)
    )
    object.__setattr__(self, "columns", columns)
    object.__setattr__(self, "rows", rows)

  def as_dict(self) -> dict[str, Any]:
    """Returns the table as results.json stores it."""
    return {
      "caption": self.caption,
      "columns": list(self.columns),
      "rows": [
        [c.as_dict() if isinstance(c, Leaf) else c for c in row]
        for row in self.rows
      ],
    }

  @classmethod
  def from_dict(cls, value: Any) -> Table:
    """Reads `as_dict` back."""
    value = mapping(value)
    return cls(
      str(value.get("caption") or ""),
      _items(value.get("columns")),
      [row for row in _items(value.get("rows")) if _items(row)],
    )


def _items(value: Any) -> Sequence[Any]:
  return value if isinstance(value, (list, tuple)) else ()


def _one_of(scales: Sequence[str], value: Any) -> str:
  return value if value in scales else scales[0]


def _point(item: Any) -> Point | None:
  """Reads a Point; returns None without a position or a finite mean."""
  if not isinstance(item, Iterable) or isinstance(item, str):
    return None
  x, *rest = item if (item := list(item)) else [None]
  place = x if isinstance(x, str) else number(x)
  interval = _interval(rest[0]) if len(rest) == 1 else _bounds(rest)
  return (
    None if place is None or interval is None else Point(place, *interval[:3])
  )


def _bounds(rest: Sequence[Any]) -> Leaf | None:
  keys = ("mean", "low", "high")
  return leaf(dict(zip(keys, rest, strict=False)))


def _interval(value: Any) -> Leaf | None:
  keys = ("mean", "low", "high")
  if all(hasattr(value, key) for key in keys):
    value = {key: getattr(value, key) for key in keys}
  return leaf(value)


def _cell(value: Any) -> Cell:
  if isinstance(value, str):
    return value
  if isinstance(value, bool):
    return "yes" if value else "no"
  interval = _interval(value)
  has_bounds = hasattr(value, "low") or "low" in mapping(value)
  if interval is not None and interval.low is None and not has_bounds:
    return interval.mean
  return interval
