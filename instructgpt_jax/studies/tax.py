"""The alignment tax on public tasks, here and in the paper (figures 33, 34)."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt_jax.report.findings import Panel, Series

GPT_SQUAD, GPT_DROP = 59.2, 25.4  # F1 of the 1.3B base model, %


def panels(
  x_label: str,
  ours: Series,
  base: float,
  *,
  grid: Sequence[float],
  squad: Sequence[float],
  drop: Sequence[float],
) -> list[Panel]:
  """Our points beside the paper's.

  Args:
    x_label: what is varied.
    ours: share of public tasks solved.
    base: the base model's.
    grid: the paper's values of what is varied.
    squad: its F1 on SQuAD v2 at each.
    drop: its F1 on DROP.
  """
  return [
    Panel(
      "Here",
      x_label=x_label,
      y_label="Public tasks (share right)",
      x_scale="log",
      lines=[(base, "base model")],
      series=[ours],
    ),
    Panel(
      "Paper",
      x_label=x_label,
      y_label="F1 (%)",
      x_scale="log",
      lines=[(GPT_SQUAD, "GPT"), (GPT_DROP, "GPT")],
      series=[
        Series("SQuAD v2", zip(grid, squad, strict=True)),
        Series("DROP", zip(grid, drop, strict=True)),
      ],
    ),
  ]
