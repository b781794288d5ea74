"""Krippendorff's α of ordinal values, over all labels and within groups."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import numpy as np

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import quality
from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.labeling.quality import Comparison

K = TypeVar("K", bound=Hashable)


def krippendorff_alpha(
  records: Iterable[LabelRecord], values: str = "ranks"
) -> float:
  """Computes α of all labels but those of gold items; NaN where it has none.

  The units are completions of items, the coders are labelers.

  Args:
    records: labels.
    values: "ranks", or "overall" for the ratings from 1 to 7.

  Raises:
    UserError: the package krippendorff is not installed.
  """
  counts: dict[tuple[int, int], collections.Counter[int]] = {}
  for record in records:
    if record.gold_ranks:
      continue
    for position, value in enumerate(getattr(record, values)):
      unit = counts.setdefault(
        (record.item_id, position), collections.Counter()
      )
      unit[value] += 1
  units = [unit for unit in counts.values() if unit.total() > 1]
  domain = sorted({value for unit in units for value in unit})
  return _alpha([[unit[value] for value in domain] for unit in units], domain)


def alpha_by(
  comparisons: Iterable[Comparison],
  keys: Callable[[Comparison], Iterable[K]],
) -> dict[K, float]:
  """Computes α of ranks within each group of compared labels.

  The units are the completions of two labels that are compared, so that the α
  of a labeler is about this labeler's pairs, and not about those of others.

  Args:
    comparisons: compared labels.
    keys: returns the groups of a comparison, such as `quality.by_labeler`.

  Returns:
    Group -> α, sorted by group; NaN where it has none.

  Raises:
    UserError: the package krippendorff is not installed.
  """
  groups = quality.group_comparisons(comparisons, keys)
  return {key: _alpha_of_pairs(group) for key, group in groups.items()}


def _alpha_of_pairs(comparisons: Iterable[Comparison]) -> float:
  units = [
    unit
    for c in comparisons
    for unit in zip(c.first.ranks, c.second.ranks, strict=True)
  ]
  domain = sorted({value for unit in units for value in unit})
  pairs = np.array(units).reshape(-1, 2, 1)
  return _alpha((pairs == np.array(domain)).sum(axis=1), domain)


def _alpha(counts: list[list[int]] | np.ndarray, domain: list[int]) -> float:
  """Computes α from [units, values] counts of each value."""
  if len(domain) < 2:
    return math.nan
  try:
    import krippendorff  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      "Krippendorff's α needs the package krippendorff, which is not installed",
      fix="pip install krippendorff (extra 'labeling')",
      code="missing_package",
    ) from error
  return float(
    krippendorff.alpha(
      value_counts=np.asarray(counts),
      value_domain=domain,
      level_of_measurement="ordinal",
    )
  )
