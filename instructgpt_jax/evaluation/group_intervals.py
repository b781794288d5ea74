"""Intervals where the unit is a group of items, or the measure is no mean.

Questions about one passage are not independent: a bootstrap draws all of them
or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from instructgpt_jax import statistics


def group_index(names: Sequence[str]) -> np.ndarray:
  """Numbers groups in the order of their first items; returns [items] ints."""
  numbers: dict[str, int] = {}
  return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def grouped_interval(
  values: ArrayLike,
  groups: Sequence[str],
  *,
  paired: ArrayLike | None = None,
  resamples: int = 2000,
  share: bool = False,
) -> statistics.Interval:
  """Computes the mean over items with its 95 % interval over their groups.

  Items of one group, such as questions about one passage, are not independent.
  Where each item is a group, this is `statistics.bootstrap_interval`.

  Args:
    values: [items].
    groups: name of each item's group.
    paired: see `statistics.bootstrap_interval`.
    resamples: likewise.
    share: likewise.
  """
  index = group_index(groups)
  sizes = np.bincount(index)
  if len(sizes) == len(index):
    return statistics.bootstrap_interval(
      values, paired=paired, resamples=resamples, share=share
    )
  items = np.asarray(values, np.float64)
  if paired is not None:
    items = items - np.asarray(paired, np.float64)
  return statistics.ratio_interval(
    np.bincount(index, items), sizes, resamples=resamples, share=share
  )


def corpus_interval(
  measure: Callable[[np.ndarray], float],
  counts: np.ndarray,
  *,
  paired: np.ndarray | None = None,
  resamples: int = 2000,
  seed: int = 0,
) -> statistics.Interval:
  """Computes a measure of summed counts, such as BLEU, with its 95 % interval.

  The interval is a percentile bootstrap over units. It has no bounds with fewer
  than `statistics.FEW` units.

  Args:
    measure: summed counts, [k] → the measure.
    counts: [units, k].
    paired: another model's counts of the same units. The result is then for the
      difference of the two measures.
    resamples: number of bootstrap samples.
    seed: seed of the bootstrap.
  """
  corpora = [counts] if paired is None else [counts, paired]
  if any(len(corpus) != len(counts) for corpus in corpora):
    raise ValueError(f"{len(counts)} units are paired with {len(corpora[1])}")

  def value(index: np.ndarray) -> float:
    first, *others = (measure(c[index].sum(axis=0)) for c in corpora)
    return first - sum(others)

  return _bootstrap(value, len(counts), resamples, seed)


def statistic_interval(
  function: Callable[[np.ndarray, np.ndarray], float],
  scores: np.ndarray,
  targets: np.ndarray,
  groups: Sequence[str],
  *,
  resamples: int = 1000,
) -> statistics.Interval:
  """Computes a statistic of scores and targets with its 95 % interval.

  The interval is a bootstrap over groups, because texts of one group are not
  independent. It has no bounds with fewer than `statistics.FEW` groups.
  """
  _, index = np.unique(np.array(groups), return_inverse=True)
  rows = [np.flatnonzero(index == group) for group in range(index.max() + 1)]

  def value(picks: np.ndarray) -> float:
    drawn = np.concatenate([rows[pick] for pick in picks])
    return function(scores[drawn], targets[drawn])

  return _bootstrap(value, len(rows), resamples, 0)


def _bootstrap(
  value: Callable[[np.ndarray], float], units: int, resamples: int, seed: int
) -> statistics.Interval:
  """Computes a value of drawn units with its percentile interval."""
  mean = value(np.arange(units))
  if units < statistics.FEW:
    return statistics.Interval(mean, math.nan, math.nan, units)
  draw = np.random.default_rng(seed)
  values = [value(draw.integers(0, units, units)) for _ in range(resamples)]
  low, high = np.nanquantile(values, (0.025, 0.975))
  return statistics.Interval(mean, float(low), float(high), units)
