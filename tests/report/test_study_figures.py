"""Tests the studies' figures: JSON, omitted values, and distinct series."""

from __future__ import annotations

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest

from instructgpt_jax.report import findings, study_axes, study_figures
from instructgpt_jax.report import study_looks as looks_lib
from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.statistics import Interval
from tests.report.test_page import _Page


def _panel(*series: Series, **more) -> Panel:
  return Panel("Here", x_label="γ", y_label="F1 (%)", series=series, **more)


def _draw(*panels: Panel) -> str:
  """The panels' SVG; each must be XML."""
  drawing = study_figures.draw(Figure("t", panels).as_dict())
  assert drawing is not None
  ElementTree.fromstring(study_figures.standalone(drawing))
  return "\n".join(panel.svg for panel in drawing.panels)


def _texts(svg: str) -> list[str]:
  return [line.strip() for line in _Page(svg).text.split("\n")]


def test_figures_and_tables_survive_json():
  figure = Figure(
    "t",
    [
      _panel(
        Series("a", [(0, Interval(0.5, 0.4, 0.6)), (1, 2), (2, 3, 1, 4)]),
        Series("b", [("x", 1.0)], role="ppo", line=False, curve=True),
        x_scale="log",
        y_scale="log",
        lines=[(0.5, "half"), findings.Line(x=2.0, label="here")],
      )
    ],
    caption="c",
  )
  record = json.loads(json.dumps(figure.as_dict()))
  assert Figure.from_dict(record) == figure
  assert record["panels"][0] == {
    "title": "Here",
    "x": {"label": "γ", "scale": "log"},
    "y": {"label": "F1 (%)", "scale": "log"},
    "series": [
      {
        "name": "a",
        "role": "",
        "line": True,
        "points": [
          [0.0, 0.5, 0.4, 0.6],
          [1.0, 2.0, None, None],
          [2.0, 3.0, 1.0, 4.0],
        ],
      },
      {
        "name": "b",
        "role": "ppo",
        "line": False,
        "points": [["x", 1.0, None, None]],
        "curve": True,
      },
    ],
    "lines": [{"y": 0.5, "label": "half"}, {"x": 2.0, "label": "here"}],
  }
  table = Table(
    "c", ["m", "a"], [("x", Interval(1, 0, 2), None, 3, "text", math.nan)]
  )
  record = json.loads(json.dumps(table.as_dict()))
  assert Table.from_dict(record) == table
  interval = {"mean": 1.0, "low": 0.0, "high": 2.0}
  assert record["rows"] == [["x", interval, None, 3.0, "text", None]]


def test_a_cell_without_bounds_survives_json():
  """A number without an interval stays a number."""
  table = Table("c", ["m"], [("x", Interval(1, math.nan, math.nan), 1.0)])
  record = json.loads(json.dumps(table.as_dict()))
  assert Table.from_dict(record) == table
  unknown = {"mean": 1.0, "low": None, "high": None}
  assert record["rows"] == [["x", unknown, 1.0]]


def test_an_unknown_scale_is_refused():
  with pytest.raises(ValueError, match="logarithmic"):
    _panel(x_scale="logarithmic")


def test_points_without_position_or_finite_mean_are_omitted():
  nan = math.nan
  odd = [(1, nan), (nan, 1), (2, 5.0, nan, 6), (None, 1), 3, [], [1], "ab"]
  (point,) = Series("a", odd).points
  assert point == (2.0, 5.0, None, None)


def test_zero_on_a_log_axis_is_apart_at_the_left():
  panel = _panel(
    Series("a", [(0, 1.0), (0.1, 2.0), (1, 3.0), (10, 4.0)]), x_scale="log"
  )
  scale = study_axes.horizontal(panel)
  places = [scale.at(x) for x in (0, 0.1, 1, 10)]
  assert places == sorted(places)
  assert scale.low < places[0] < places[3] < scale.high
  assert scale.ticks[0] == (places[0], "0")
  assert scale.apart(0) and not scale.apart(0.1)
  with_zero = _draw(panel)
  without = _draw(
    _panel(Series("a", panel.series[0].points[1:]), x_scale="log")
  )
  assert {"0", "0.1", "1", "10"} <= set(_texts(with_zero))
  assert "0" not in _texts(without)
  assert with_zero.count("<path") > without.count("<path")  # the break
  only = study_axes.horizontal(_panel(Series("a", [(0, 1.0)]), x_scale="log"))
  assert not only.log and only.low < 0 < only.high


def test_labels_of_ticks_never_touch():
  xs = [10 ** (k / 6) for k in range(16)]
  series = Series("a", [(x, 1.0) for x in xs])
  for scale_name in ("linear", "log"):
    scale = study_axes.horizontal(_panel(series, x_scale=scale_name))
    labels = [(u, text) for u, text in scale.ticks if text]
    assert len(labels) >= 4
    assert len(scale.ticks) == (16 if scale_name == "log" else len(labels))
    point = (scale.high - scale.low) / study_axes.AXIS
    for (u, a), (v, b) in itertools.pairwise(labels):
      assert v - u > (len(a) + len(b)) / 2 * study_axes.LETTER * point


@pytest.mark.parametrize("x_scale", ["linear", "log"])
def test_a_panel_of_curves_alone_has_ticks(x_scale):
  curve = Series("fit", [(x / 10, x) for x in range(1, 50)], curve=True)
  assert {"1", "2"} <= set(_texts(_draw(_panel(curve, x_scale=x_scale))))


@pytest.mark.parametrize(
  "value, text",
  [
    (0, "0"),
    (-0.5, "−0.5"),
    (27.8, "27.8"),
    (999.96, "1000"),
    (65536, "65.5k"),
    (1.3e9, "1.3B"),
    (175e9, "175B"),
    (5.4e-5, "5.4·10⁻⁵"),
    (1e20, "1·10²⁰"),
  ],
)
def test_a_tick_is_short(value, text):
  assert study_axes.tick(value, 3) == text


@pytest.mark.parametrize("x_scale", findings.X_SCALES)
@pytest.mark.parametrize("y_scale", findings.Y_SCALES)
def test_values_that_cannot_be_drawn_are_omitted(x_scale, y_scale):
  points = [(0, 1), (-1, 1), (1, 0), (2, -1), (3, 2), ("a", 1), (1, 1e99)]
  scales = {"x_scale": x_scale, "y_scale": y_scale}
  lines = [(0, "none"), (1, "one"), findings.Line(x=0, label="x")]
  assert "<svg" in _draw(
    _panel(
      Series("a", points),
      Series("fit", points, curve=True),
      Series("empty"),
      lines=lines,
      **scales,
    )
  )
  empty = Figure("t", [_panel(**scales), _panel(Series("a"), **scales)])
  assert study_figures.draw(empty) is None
  lost = [(1, math.nan), (1e99, 1)]
  if x_scale != "category":
    assert study_figures.draw(Figure("t", [_panel(Series("a", lost))])) is None


def test_series_differ_without_colour():
  """Twelve series, some models among them, and two of one role."""
  names = [f"a very long name of a series, number {at}" for at in range(12)]
  roles = ["ppo_ptx", "ppo", "ppo", "sft"] + [""] * 8
  series = [
    Series(name, [(1, at), (2, at)], role=role)
    for at, (name, role) in enumerate(zip(names, roles, strict=True))
  ]
  looks = looks_lib.assign([_panel(*series)])
  assert len({look.marker for look in looks.values()}) == 12
  assert len({look.dash for look in looks.values()}) == 12
  assert looks[names[0], "ppo_ptx"] == looks_lib.LOOKS["ppo_ptx"]
  assert looks[names[1], "ppo"] == looks_lib.LOOKS["ppo"]
  svg = _draw(_panel(*series))
  assert all(any(name[:40] in t for t in _texts(svg)) for name in names)
  model_looks = looks_lib.LOOKS.values()
  assert set(looks_lib.LOOKS) == set(findings.ROLES)
  for part in ("marker", "dash", "colour"):
    assert len({getattr(look, part) for look in model_looks}) == len(
      model_looks
    )


def test_a_series_looks_the_same_in_every_panel():
  a, b = Series("a", [(1, 1)]), Series("b", [(1, 1)])
  looks = looks_lib.assign([_panel(a, b), _panel(b), _panel(Series("c"), b)])
  assert len({looks["a", ""], looks["b", ""]}) == 2
  assert looks["c", ""] != looks["b", ""]
  again = looks_lib.assign([_panel(a, b)])
  assert again["b", ""] == looks["b", ""]


def test_a_fitted_curve_has_the_colour_of_its_points_and_no_marker():
  points = Series("PPO", [(1, 1.0), (2, 2.0)], role="ppo", line=False)
  other = Series("gold", [(1, 1.0)], line=False)
  fit = Series("form", [(1, 1.0), (2, 1.5)], role="ppo", curve=True)
  named = Series("gold, fitted", [(1, 1.0), (2, 1.5)], curve=True)
  looks = looks_lib.assign([_panel(fit, named, points, other)])
  ppo = looks_lib.LOOKS["ppo"]
  assert looks["form", "ppo"].colour == ppo.colour
  assert looks["gold, fitted", ""].colour == looks["gold", ""].colour
  assert looks["form", "ppo"].dash != looks["gold, fitted", ""].dash
  with_fit, without = _draw(_panel(points, fit)), _draw(_panel(points))
  assert with_fit.count("<use") == without.count("<use") > 0


def test_panels_of_one_measure_share_their_axis_unless_far_apart():
  def panel(*values):
    return _panel(Series("a", [(1, value) for value in values]))

  near, other = study_axes.shared_limits([panel(0.2, 0.8), panel(0.3, 0.9)])
  assert near and near == other and near[0] < 0.2 < 0.9 < near[1]
  assert study_axes.shared_limits([panel(0, 1), panel(5, 6)]) == [None, None]
  bleu = Panel("Paper", y_label="BLEU", series=[Series("a", [(1, 0.5)])])
  assert study_axes.shared_limits([panel(0.2, 0.8), bleu]) == [None, None]
