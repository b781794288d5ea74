"""Agreement of simulated labelers: counted by hand, and as it is expected."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.labeling_site import Site, check, draw_answers
from instructgpt_jax.labeling import simulated
from instructgpt_jax.world import gold, labelers
from instructgpt_jax.world.facts import World, make_world

PAPER, PAPER_ERROR = 72.6, 1.5  # training labelers, in percent
_RATINGS = 7


def agreement_by_hand(
  done: Sequence[simulated.Acknowledged],
) -> tuple[float, float, int, int]:
  """Computes percent, standard error, pairs and ties from the labelers' own.

  It counts pair by pair, and shares no code with `labeling.quality`.
  """
  labels = collections.defaultdict(list)
  for one in done:
    labels[one.prompt].append(
      dict(zip(one.completions, one.content["ranks"], strict=True))
    )
  counts, ties = [], 0
  for group in labels.values():
    alike = ordered = 0
    for first, second in itertools.combinations(group, 2):
      for x, y in itertools.combinations(sorted(first), 2):
        if first[x] == first[y] or second[x] == second[y]:
          ties += 1
        else:
          ordered += 1
          alike += (first[x] < first[y]) == (second[x] < second[y])
    counts.append((alike, ordered))
  pairs = sum(n for _, n in counts)
  share = sum(a for a, _ in counts) / pairs
  used = sum(n > 0 for _, n in counts)
  squares = sum((a - share * n) ** 2 for a, n in counts)
  error = math.sqrt(squares * used / max(used - 1, 1)) / pairs
  return 100 * share, 100 * error, pairs, ties


def check_dashboard(
  done: Sequence[simulated.Acknowledged], tile: tuple[float, float, int, int]
) -> dict[str, Any]:
  """Compares the dashboard with the computation by hand."""
  share, error, pairs, ties = agreement_by_hand(done)
  check(tile[2:] == (pairs, ties), f"the dashboard has {pairs} pairs")
  check(
    f"{share:.1f} {error:.1f}" == f"{tile[0]:.1f} {tile[1]:.1f}",
    f"the dashboard's agreement is {share:.1f} ± {error:.1f} %, as by hand",
  )
  return {"agreement": round(share, 2), "standard_error": round(error, 2)}


def check_noise(
  site: Site, done: Sequence[simulated.Acknowledged]
) -> dict[str, Any]:
  """Compares the agreement with what the world gives, and with the paper's."""
  share, error, _, _ = agreement_by_hand(done)
  tastes = {persona.name: persona.taste for persona in site.crew}
  groups = collections.defaultdict(list)
  for one in done:
    groups[one.prompt].append(tastes[one.labeler])
  expected = expected_agreement(
    site.world,
    (
      (answer["prompt"], answer["completions"], groups[answer["prompt"]])
      for answer in site.answers
    ),
  )
  check(
    abs(share - expected) < 4 * error,
    f"the agreement is that of the world's tastes and noise, {expected:.1f} %",
  )
  check(
    abs(share - PAPER) < 2 * math.hypot(error, PAPER_ERROR),
    f"the agreement is compatible with the paper's {PAPER} ± {PAPER_ERROR} %",
  )
  return {"expected": round(expected, 2)}


def expected_agreement(
  world: World, groups: Iterable[tuple[str, Sequence[str], Sequence[str]]]
) -> float:
  """Computes the percentage of agreement that tastes and noise give.

  No rating is drawn: one is a normal variable, rounded and cut, so that the
  probability of each order of two answers is a finite sum.

  Args:
    world: world of the prompts.
    groups: (prompt, completions, tastes of its labelers) of each item. Equal
      completions are tied.
  """
  alike = ordered = 0.0
  for prompt, completions, tastes in groups:
    forms = [gold.label(prompt, text, world=world) for text in completions]
    chances = {taste: _chances(forms, taste) for taste in set(tastes)}
    pairs = [
      (x, y)
      for x, y in itertools.combinations(range(len(completions)), 2)
      if completions[x] != completions[y]
    ]
    for first, second in itertools.combinations(tastes, 2):
      for x, y in pairs:
        a, b = _orders(chances[first], x, y), _orders(chances[second], x, y)
        alike += a[0] * b[0] + a[1] * b[1]
        ordered += sum(a) * sum(b)
  return 100 * alike / ordered


def expected_figures(prompts: int, completions: int) -> dict[str, float]:
  """Returns the agreement of training labelers on answers of the world.

  Returns:
    "different": percentage on different answers to each prompt, as `accept`
    has them. "repeated": percentage on as many answers as they are drawn, equal
    ones included, which is what the world's noise was chosen for.
  """
  world = make_world(0)
  figures = {}
  for name, repetition in (("different", False), ("repeated", True)):
    answers = draw_answers(world, prompts, completions, repetition=repetition)
    figures[name] = expected_agreement(
      world,
      (
        (answer["prompt"], answer["completions"], labelers.TRAINING)
        for answer in answers
      ),
    )
  return {name: round(value, 2) for name, value in figures.items()}


def _chances(forms: Sequence[gold.Label], taste: str) -> np.ndarray:
  """Returns [K, 7], the probability of each rating of each completion."""
  edges = np.arange(1, _RATINGS) + 0.5
  rows = []
  for form in forms:
    meant = labelers.taste(labelers.LABELERS[taste], form)
    scaled = (edges - meant) / (labelers.NOISE * math.sqrt(2))
    below = [0.0, *(0.5 * (1 + math.erf(edge)) for edge in scaled), 1.0]
    rows.append(np.diff(below))
  return np.array(rows)


def _orders(chances: np.ndarray, x: int, y: int) -> tuple[float, float]:
  """Returns the probabilities that x is rated above y, and below it."""
  joint = np.outer(chances[x], chances[y])
  return float(np.tril(joint, -1).sum()), float(np.triu(joint, 1).sum())
