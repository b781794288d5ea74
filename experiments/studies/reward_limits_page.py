"""Writes the finding of `reward_limits`: a sentence, figures and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.statistics import Interval
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.study import Finding

BINDS, DOES_NOT, UNCLEAR = "binds", "does not bind", "unclear"

# x → accuracy on held-out pairs, that on training pairs, and what the first
# gains over the recipe's, paired; None for the recipe.
Points = dict[float, Sequence[Interval | None]]


class Gain(NamedTuple):
  """What the removal of a cause gains in accuracy."""

  cause: str
  removals: tuple[str, ...]
  gain: Interval
  verdict: str  # BINDS, DOES_NOT or UNCLEAR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What the study has measured; shares of pairs with their intervals.

  Attributes:
    accuracy: the recipe's, on held-out pairs.
    ceiling: that of a perfect reader of the gold score.
    gap: the latter less the former, paired.
    training: the recipe's on pairs that it was trained on.
    by_gold: share of held-out pairs ordered as the gold score does.
    surface: accuracy of a linear model of surface features.
    claims: the same with the claims of replies as further features.
    unread: the latter less the recipe's accuracy, paired.
    gains: what the removal of each cause gains.
    axes: name of an axis → its points.
    families: rows by prompt family: name, share of all pairs, accuracy, that
      of the linear model of claims, ceiling, the latter less the accuracy, and
      accuracy by gold.
    differences: likewise by what two replies differ in.
    gaps: likewise by the difference of two gold scores.
    rounds: rows by rounds of training: name, accuracy on all rounds, on each.
    probes: rows by language model: name, accuracy by labels and by gold, of the
      probe on labels and of the probe on gold.
  """

  accuracy: Interval
  ceiling: Interval
  gap: Interval
  training: Interval | None
  by_gold: Interval | None
  surface: Interval
  claims: Interval
  unread: Interval
  gains: Sequence[Gain]
  axes: Mapping[str, Points]
  families: Sequence[Sequence[Any]]
  differences: Sequence[Sequence[Any]]
  gaps: Sequence[Sequence[Any]]
  rounds: Sequence[Sequence[Any]]
  probes: Sequence[Sequence[Any]]


def finding(limits: Limits) -> Finding:
  """Returns the study's finding."""
  return Finding(None, _sentence(limits), _figures(limits), _tables(limits), [
    "Training accuracy is that of pairs the model was trained on, in their"
    " labelers' order; with less noise that order is easier.",
    "All models are measured on rankings by labelers with the recipe's noise,"
    " also those trained without noise. The ceiling is therefore the same.",
    "Surface features are, by kind of prompt, which phrase declines, the"
    " length, and the share of words that the prompt has, and the number of"
    " phrases that pad or insult. They know no fact and look nothing up. Claims"
    " are which value a reply gives to which fact, or that it declines: what a"
    " linear model makes of them it has learned from the labels.",
  ])  # fmt: skip


def _sentence(limits: Limits) -> str:
  closed = ", ".join(
    f"{g.cause} {_percent(g.gain.mean, limits.gap.mean)}" for g in limits.gains
  )
  named = [
    f"{verdict}: {', '.join(causes)}"
    for verdict in (BINDS, UNCLEAR, DOES_NOT)
    if (causes := [g.cause for g in limits.gains if g.verdict == verdict])
  ]
  return (
    f"It orders {limits.accuracy.mean:.3f} of held-out pairs as the labelers"
    " did, and a perfect reader of the gold score"
    f" {analysis.format_interval(limits.gap)} more. Share of this gap that the"
    f" removal of each cause closes: {closed}. {'; '.join(named).capitalize()}."
    + " The labels hold more than the network reads."
    * analysis.is_above(limits.unread)
  )


def _percent(part: float, whole: float) -> str:
  """Formats a share; nothing is a share of no gap."""
  return f"{100 * part / whole:.0f} %" if whole > 0 else "–"


def _figures(limits: Limits) -> list[Figure]:
  panels = [
    Panel(
      name,
      x_label=name,
      y_label="Pairs in the labelers' order (share)",
      x_scale="linear" if name.startswith("Noise") else "log",
      lines=[(limits.ceiling.mean, "perfect reader"), (0.5, "chance")],
      series=[
        Series(
          "held out",
          [(x, *_around(y, gain)) for x, (y, _, gain) in points.items() if y],
        ),
        Series(
          "in training",
          [(x, y.mean) for x, (_, y, _) in points.items() if y],
        ),
      ],
    )
    for name, points in limits.axes.items()
  ]
  return [
    *(
      Figure(
        "Accuracy along each axis",
        panels[i : i + 2],
        "95 % intervals of the difference from the recipe's reward model, which"
        " has none, paired by prompt within each seed.",
      )
      for i in range(0, len(panels), 2)
    ),
    Figure(
      "Where the gap is",
      [_compared("Replies differ in", limits.differences),
       _compared("Gold scores are apart by", limits.gaps)],
      "Pairs that differ in one part of the gold score, or in whether a reply"
      " declines. 95 % intervals of the difference from the reward model.",
    ),
  ]  # fmt: skip


def _around(value: Interval, difference: Interval | None) -> tuple[float, ...]:
  """Returns a mean, and the bounds that a paired difference gives it."""
  if difference is None:
    return (value.mean,)
  shift = value.mean - difference.mean
  return value.mean, shift + difference.low, shift + difference.high


def _compared(title: str, rows: Sequence[Sequence[Any]]) -> Panel:
  """Draws the accuracy in each group of pairs beside its ceiling."""
  return Panel(
    title,
    y_label="Pairs in the labelers' order (share)",
    x_scale="category",
    lines=[(0.5, "chance")],
    series=[
      Series(
        name,
        [
          (row[0], *_around(row[i], row[j] if j else None))
          for row in rows
          if row[i]
        ],
        line=False,
      )
      for i, j, name in (
        (2, None, "reward model"),
        (3, None, "linear model of claims"),
        (4, 5, "perfect reader"),
      )
    ],
  )


def _tables(limits: Limits) -> list[Table]:
  columns = [
    "share of pairs",
    "reward model",
    "linear model of claims",
    "perfect reader",
    "perfect reader less reward model",
    "reward model, in gold order",
  ]
  return [
    Table(
      "What binds: gain in accuracy when one cause is removed",
      ["cause", "removed by", "gain", "share of the gap", "verdict"],
      [
        (
          g.cause,
          " or ".join(g.removals),
          g.gain,
          _percent(g.gain.mean, limits.gap.mean),
          g.verdict,
        )
        for g in limits.gains
      ],
    ),
    Table(
      "The recipe's reward model",
      ["pairs", "share"],
      [
        ("held out, as the labelers", limits.accuracy),
        ("held out, perfect reader of the gold score", limits.ceiling),
        ("the latter less the former", limits.gap),
        ("held out, linear model of surface features", limits.surface),
        ("held out, the same with the claims of replies", limits.claims),
        ("the latter less the network", limits.unread),
        ("in training, as the labelers", limits.training),
        ("held out, as the gold score where it differs", limits.by_gold),
      ],
    ),
    *(
      Table(name, [name, "held out", "in training", "gain over the recipe"],
            [(f"{x:,}", *values) for x, values in points.items()])
      for name, points in limits.axes.items()
    ),
    Table("By what the replies differ in", ["differ in", *columns],
          limits.differences),
    Table("Resolution of the gold score", ["gold scores apart by", *columns],
          limits.gaps),
    Table("By prompt family", ["family", *columns], limits.families),
    Table(
      "Rounds of rankings",
      ["trained on", "all", *(row[0] for row in limits.rounds[1:])],
      limits.rounds,
    ),
    Table(
      "Linear probes on a language model's states",
      [
        "states of",
        "probe on labels: accuracy",
        "in gold order",
        "probe on gold: accuracy",
        "in gold order",
      ],
      limits.probes,
    ),
  ]  # fmt: skip
