"""Draws the results of `experiments.real` in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from instructgpt_jax.report import figures

_SIZE = 8.4, 6.4  # inches
_PANELS = (
  ("fulfilled", "Instructions fulfilled", "instructions"),
  ("win_rate", "Preferred to policy_init by the judge", "prompts"),
)


def _colour(model: str) -> str:
  name = model.rsplit("_", 1)[0] if model[-1].isdigit() else model
  return figures.COLOURS.get(name, figures.SPARE_COLOURS[0])


def draw(results: Mapping[str, Any]) -> str:
  """Returns the picture as SVG text.

  Args:
    results: what `results.write` has gathered.
  """
  models = results["models"]
  with figures.styled():
    figure = Figure(_SIZE, layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (name, title, what) in zip(grid[0], _PANELS, strict=True):
      _dots(axes, models, name)
      units = next(iter(models.values()))[f"{name}_greedy"]["units"]
      axes.set(title=title, xlabel=f"share of {units} {what}")
    _dots(grid[1][0], models, "lm_loss_change", temperatures=("",))
    grid[1][0].axvline(0, color="#444444", linewidth=1, zorder=0)
    grid[1][0].set(
      title="Loss of held-out text, less policy_init's", xlabel="nats a token"
    )
    for name, curve in results["curves"].items():
      points = curve.get("reward", [])
      grid[1][1].plot(
        *zip(*points, strict=True) if points else ((), ()),
        color=_colour(name),
        linestyle="-" if name.endswith("_0") else "--",
        label=name,
      )
    grid[1][1].set(
      title="Reward model's score while training", xlabel="updates"
    )
    grid[1][1].legend()
    return figures.svg(figure)


def _dots(
  axes: Any,
  models: Mapping[str, Any],
  name: str,
  temperatures: tuple[str, ...] = ("_sampled", "_greedy"),
) -> None:
  """Draws a value of each model that has it; greedy ones are hollow."""
  for row, (model, summary) in enumerate(models.items()):
    for shift, temperature in enumerate(temperatures):
      leaf = summary.get(name + temperature)
      if leaf is None:  # the model that differences are from
        continue
      y = row + 0.3 * (shift - (len(temperatures) - 1) / 2)
      colour = _colour(model)
      axes.plot([leaf["low"], leaf["high"]], [y, y], color=colour)
      axes.plot(
        leaf["mean"],
        y,
        marker="o",
        color=colour,
        markerfacecolor="none" if temperature == "_greedy" else colour,
      )
  axes.set_yticks(range(len(models)), list(models))
  axes.invert_yaxis()
