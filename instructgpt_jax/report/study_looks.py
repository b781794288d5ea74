"""Assigns each series of a figure a colour, a marker and a line style.

The colours are Okabe and Ito's. Marker and line style differ as well, so that
colour-blind readers and grey prints can distinguish the series. A model looks
the same in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.report.findings import Panel, Series

Dash = Any


class Look(NamedTuple):
  """Colour, marker and line style of a series."""

  colour: str
  marker: str
  dash: Dash


LOOKS = {
  "base": Look("#7a7a7a", "X", (0, (1, 1.2))),
  "prompted": Look("#56b4e9", "v", (0, (4, 1.5, 1, 1.5))),
  "rule_filter": Look("#222222", "*", (0, (6, 1, 1, 1, 1, 1))),
  "flan": Look("#cc79a7", "P", (0, (2, 1))),
  "sft": Look("#e69f00", "s", (0, (5, 1.5))),
  "best_of_n": Look("#009e73", "D", (0, (8, 1.5, 2, 1.5))),
  "ppo": Look("#d55e00", "^", (0, (3, 1, 1, 1, 1, 1))),
  "ppo_ptx": Look("#0072b2", "o", "-"),
}
COLOURS = (
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#222222",
  "#e69f00",
  "#56b4e9",
  "#8c6d31",
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "p", "<", ">", "h")
DASHES = (
  "-",
  (0, (5, 1.5)),
  (0, (1, 1.2)),
  (0, (6, 1.5, 1, 1.5)),
  (0, (3, 1, 1, 1, 1, 1)),
  (0, (2, 1)),
  (0, (9, 2)),
  (0, (4, 1.5, 1, 1.5)),
  (0, (8, 1.5, 2, 1.5)),
  (0, (1, 3)),
  (0, (6, 1, 1, 1, 1, 1)),
  (0, (3, 3)),
)


def assign(panels: Sequence[Panel]) -> dict[tuple[str, str], Look]:
  """Assigns a look to each (name, role), none twice within a panel."""
  looks: dict[tuple[str, str], Look] = {}
  for panel in panels:
    pointed = dict.fromkeys(key(s) for s in panel.series if not s.curve)
    used = [looks[name] for name in pointed if name in looks]
    # Models first: a spare look must not use a model's look.
    for name in pointed:
      model_look = LOOKS.get(name[1])
      if (
        name not in looks and model_look is not None and model_look not in used
      ):
        looks[name] = model_look
        used.append(model_look)
    for name in pointed:
      if name not in looks:
        looks[name] = _spare(used)
        used.append(looks[name])
    for series in panel.series:
      if key(series) not in looks:
        looks[key(series)] = _curve_look(series, pointed, looks, used)
        used.append(looks[key(series)])
  return looks


def key(series: Series) -> tuple[str, str]:
  """Returns the (name, role) that a look belongs to."""
  return series.name, series.role


def _curve_look(
  series: Series,
  pointed: Iterable[tuple[str, str]],
  looks: Mapping[tuple[str, str], Look],
  used: Sequence[Look],
) -> Look:
  """Gives a curve the colour of the points that it was fitted to."""
  for name, role in pointed:
    if role == series.role != "" or series.name.startswith(name):
      return _spare(used)._replace(colour=looks[name, role].colour)
  return _spare(used)


def _spare(used: Sequence[Look]) -> Look:
  return Look(
    _free(COLOURS, [look.colour for look in used]),
    _free(MARKERS, [look.marker for look in used]),
    _free(DASHES, [look.dash for look in used]),
  )


def _free(choices: Sequence[Any], used: Sequence[Any]) -> Any:
  """Returns the first choice that is used least."""
  return min(choices, key=used.count)
