"""The calibration curves of reward models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from instructgpt_jax.report import figures


def draw(curves: Mapping[str, Mapping[str, Any]]) -> str:
  """Draws predicted and observed shares of each model, as SVG.

  Args:
    curves: model → `bins`, each with `predicted` and `observed`, the share with
      its interval; and `ece`.
  """
  with figures.styled():
    figure = Figure(figsize=(figures.WIDTH, figures.WIDTH), layout="tight")
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="#666666", linestyle=":")
    for (name, curve), colour in zip(
      curves.items(), figures.colours(curves).values(), strict=True
    ):
      bins = curve["bins"]
      observed = [row["observed"] for row in bins]
      means = [share["mean"] for share in observed]
      bounds = [
        [_distance(share["mean"], share[side]) for share in observed]
        for side in ("low", "high")
      ]
      axes.errorbar(
        [row["predicted"] for row in bins],
        means,
        yerr=bounds,
        color=colour,
        marker="o",
        capsize=2,
        label=f"{name}, error {curve['ece']:.3f}",
      )
    axes.set_xlabel("Predicted probability of the higher score's answer")
    axes.set_ylabel("Share of pairs in which it is better")
    axes.legend()
    return figures.svg(figure) + "\n"


def _distance(mean: float, bound: float | None) -> float:
  return math.nan if bound is None else abs(mean - bound)
