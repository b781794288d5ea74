"""Measures how well labelers agree, with gold labels and with each other.

The paper reports agreement as the share of pairs of completions that two
labelers order alike (section 3.4). A pair that one of them ties says nothing
about order, so it is excluded and counted. All functions are pure.
"""

from __future__ import annotations

import collections
import datetime
import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.statistics import Interval, bootstrap_interval

# Silent reading of English is about 240 words or 1,400 characters a minute.
READING_LIMIT = 75.0  # characters a second, about three times that
SPEED_SHARE = 0.1  # share of fast labels from which a labeler is suspicious
SPEED_LABELS = 5  # fast labels from which a labeler is suspicious

K = TypeVar("K", bound=Hashable)


class Agreement(NamedTuple):
  """Agreement of pairs of labels.

  Attributes:
    share: share of the compared pairs that both order alike; NaN without any.
    standard_error: of the share, with items as independent units; NaN with
      fewer than two items.
    agreeing: number of pairs of completions that both order alike.
    pairs: number of pairs of completions that both order.
    ties: number of pairs that are excluded because one or both tie them.
    items: number of items with a compared pair.
  """

  share: float
  standard_error: float
  agreeing: int
  pairs: int
  ties: int
  items: int

  def __str__(self) -> str:
    if not self.pairs:
      return f"no pairs ({self.ties} ties)"
    error = (
      "" if math.isnan(self.standard_error)
      else f" ± {100 * self.standard_error:.1f}"
    )  # fmt: skip
    return (
      f"{100 * self.share:.1f}{error} % of {self.pairs} pairs"
      f" ({self.ties} ties excluded)"
    )


class Comparison(NamedTuple):
  """Two labels of one item, compared.

  Attributes:
    first: the label whose labeler's name is lower.
    second: the other label.
    agreeing: number of pairs of completions that both order alike.
    pairs: number of pairs that both order.
    ties: number of pairs that one or both tie.
  """

  first: LabelRecord
  second: LabelRecord
  agreeing: int
  pairs: int
  ties: int


def order_of_pairs(ranks: Sequence[int]) -> np.ndarray:
  """Returns the order of each pair of completions.

  Args:
    ranks: [K], 1 for best.

  Returns:
    [K · (K − 1) / 2] int8: 1 where the first of a pair is better, −1 where it
    is worse, 0 for ties.
  """
  values = np.asarray(ranks, np.int64)
  first, second = np.triu_indices(len(values), 1)
  return np.sign(values[second] - values[first]).astype(np.int8)


def compare_ranks(
  first: Sequence[int], second: Sequence[int]
) -> tuple[int, int, int]:
  """Compares two rankings of the same completions.

  Returns:
    The numbers of pairs that both order alike, that both order, and that one or
    both tie.
  """
  return _compare_orders(order_of_pairs(first), order_of_pairs(second))


def _compare_orders(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
  product = a * b
  pairs = int(np.count_nonzero(product))
  return int(np.count_nonzero(product == 1)), pairs, len(product) - pairs


def compare_labels(records: Iterable[LabelRecord]) -> list[Comparison]:
  """Compares every two labels of each item, in the order of items.

  Labels without ranks are left out, and gold items: all labelers have them, so
  that their pairs would outnumber those of other items.
  """
  by_item: dict[int, list[LabelRecord]] = collections.defaultdict(list)
  for record in records:
    if record.ranks and not record.gold_ranks:
      by_item[record.item_id].append(record)
  result = []
  for _, labels in sorted(by_item.items()):
    labels = sorted(labels, key=lambda r: (r.labeler, r.submitted_at))
    orders = [order_of_pairs(r.ranks) for r in labels]
    for i, j in itertools.combinations(range(len(labels)), 2):
      result.append(
        Comparison(labels[i], labels[j], *_compare_orders(orders[i], orders[j]))
      )
  return result


def training_labels(records: Iterable[LabelRecord]) -> list[LabelRecord]:
  """Returns the labels of training labelers; all labels if there are none.

  As in the paper, the agreement of held-out labelers is another number.
  """
  records = list(records)
  return [record for record in records if not record.held_out] or records


def agreement(comparisons: Iterable[Comparison]) -> Agreement:
  """Computes the agreement over comparisons.

  The standard error is that of the ratio of sums, linearised, with items as
  units: pairs of one item share completions and are not independent.
  """
  return _agreement((c.first.item_id, *c[2:]) for c in comparisons)


def _agreement(counts: Iterable[tuple[int, int, int, int]]) -> Agreement:
  """Computes agreement from (item, agreeing, pairs, ties)."""
  by_item: dict[int, list[int]] = {}
  ties = 0
  for item, agreeing, pairs, tied in counts:
    ties += tied
    if pairs:
      sums = by_item.setdefault(item, [0, 0])
      sums[0] += agreeing
      sums[1] += pairs
  agreeing = sum(a for a, _ in by_item.values())
  pairs = sum(n for _, n in by_item.values())
  items = len(by_item)
  if not pairs:
    return Agreement(math.nan, math.nan, 0, 0, ties, 0)
  share = agreeing / pairs
  error = math.nan
  if items > 1:
    squares = sum((a - share * n) ** 2 for a, n in by_item.values())
    error = math.sqrt(squares * items / (items - 1)) / pairs
  return Agreement(share, error, agreeing, pairs, ties, items)


def agreement_by(
  comparisons: Iterable[Comparison],
  keys: Callable[[Comparison], Iterable[K]],
) -> dict[K, Agreement]:
  """Computes the agreement of each group of comparisons.

  Args:
    comparisons: compared labels.
    keys: returns the groups of a comparison.

  Returns:
    Group -> agreement, sorted by group.
  """
  groups = group_comparisons(comparisons, keys)
  return {key: agreement(group) for key, group in groups.items()}


def group_comparisons(
  comparisons: Iterable[Comparison],
  keys: Callable[[Comparison], Iterable[K]],
) -> dict[K, list[Comparison]]:
  """Returns group -> comparisons, sorted by group; see `agreement_by`."""
  groups: dict[Any, list[Comparison]] = collections.defaultdict(list)
  for comparison in comparisons:
    for key in keys(comparison):
      groups[key].append(comparison)
  return {key: groups[key] for key in sorted(groups)}


# Groups of a comparison, for `agreement_by` and `reliability.alpha_by`.


def by_labeler(comparison: Comparison) -> tuple[str, str]:
  """Returns both labelers: each is compared with all others."""
  return comparison.first.labeler, comparison.second.labeler


def by_labelers(comparison: Comparison) -> tuple[tuple[str, str]]:
  """Returns the pair of labelers."""
  return ((comparison.first.labeler, comparison.second.labeler),)


def by_kind(comparison: Comparison) -> tuple[str]:
  """Returns the kind of the prompt; "" for none."""
  return (comparison.first.kind,)


def by_week(comparison: Comparison) -> tuple[str]:
  """Returns the week in which the second label was submitted.

  It is the date of the week's Monday in UTC, such as "2025-03-31".
  """
  times = comparison.first.submitted_at, comparison.second.submitted_at
  return (week_of(max(times)),)


def by_group(comparison: Comparison) -> tuple[str]:
  """Returns "training", "held out" or "between", by the labelers' groups."""
  held_out = comparison.first.held_out + comparison.second.held_out
  return (("training", "between", "held out")[held_out],)


def week_of(time: float) -> str:
  """Returns the date of the Monday of a time's week, in UTC."""
  date = datetime.datetime.fromtimestamp(time, datetime.UTC).date()
  return (date - datetime.timedelta(days=date.weekday())).isoformat()


class Disagreement(NamedTuple):
  """How much the labels of one item disagree.

  Attributes:
    item_id: the item.
    share: share of the compared pairs that are ordered otherwise; NaN where
      all are tied.
    pairs: number of compared pairs.
    labels: number of compared labels.
  """

  item_id: int
  share: float
  pairs: int
  labels: int


def disagreement(comparisons: Iterable[Comparison]) -> list[Disagreement]:
  """Returns the disagreement of each item, the largest first.

  Items with equal shares are in order of their number of pairs, the largest
  first, then of their ids. Items without a compared pair come last.
  """
  by_item: dict[int, list[Comparison]] = collections.defaultdict(list)
  for comparison in comparisons:
    by_item[comparison.first.item_id].append(comparison)
  rows = []
  for item, group in by_item.items():
    result = agreement(group)
    labelers = {r.labeler for c in group for r in (c.first, c.second)}
    rows.append(
      Disagreement(item, 1 - result.share, result.pairs, len(labelers))
    )
  return sorted(
    rows, key=lambda r: (not r.pairs, -r.share if r.pairs else 0.0, -r.pairs,
                         r.item_id)
  )  # fmt: skip


def gold_accuracy(records: Iterable[LabelRecord]) -> dict[str, Agreement]:
  """Computes each labeler's agreement with the ranks of gold items."""
  counts: dict[str, list[tuple[int, int, int, int]]] = collections.defaultdict(
    list
  )
  for record in records:
    if record.ranks and record.gold_ranks:
      counts[record.labeler].append(
        (record.item_id, *compare_ranks(record.ranks, record.gold_ranks))
      )
  return {name: _agreement(counts[name]) for name in sorted(counts)}


class Speed(NamedTuple):
  """How fast a labeler works.

  Attributes:
    labels: number of labels with a time.
    median_seconds: median active time of a label.
    fast: number of labels in less time than reading takes.
    suspicious: whether a tenth of the labels or more, and at least 5, are fast.
  """

  labels: int
  median_seconds: float
  fast: int
  suspicious: bool


def is_fast(record: LabelRecord) -> bool:
  """Returns whether a label took less time than reading its item takes."""
  return record.seconds * READING_LIMIT < record.characters


def speed_by_labeler(records: Iterable[LabelRecord]) -> dict[str, Speed]:
  """Measures the speed of each labeler; demonstrations are left out."""
  groups: dict[str, list[LabelRecord]] = collections.defaultdict(list)
  for record in records:
    if record.characters:
      groups[record.labeler].append(record)
  result = {}
  for name in sorted(groups):
    labels = groups[name]
    fast = sum(map(is_fast, labels))
    result[name] = Speed(
      len(labels),
      statistics.median(r.seconds for r in labels),
      fast,
      fast >= max(SPEED_LABELS, SPEED_SHARE * len(labels)),
    )
  return result


class WinRate(NamedTuple):
  """How often completions of one model are preferred to another's.

  Attributes:
    model: source of the completions.
    baseline: source of those that they are compared with.
    interval: share of wins, where ties count ½; the unit is the item.
    wins: number of labels that prefer the model.
    ties: number of labels that prefer neither.
    losses: number of labels that prefer the baseline.
  """

  model: str
  baseline: str
  interval: Interval
  wins: int
  ties: int
  losses: int


def win_rates(records: Iterable[LabelRecord]) -> list[WinRate]:
  """Computes the win rate of each ordered pair of models.

  Labels of one item are averaged first, so that an item with more labels does
  not count more. Completions of one model are not compared with each other, and
  gold items are left out.
  """
  outcomes: dict[tuple[str, str], dict[int, list[float]]] = (
    collections.defaultdict(lambda: collections.defaultdict(list))
  )
  for record in records:
    if record.gold_ranks or len(record.sources) != len(record.ranks):
      continue
    ranked = list(zip(record.sources, record.ranks, strict=True))
    for (model, rank), (baseline, other) in itertools.permutations(ranked, 2):
      if model and baseline and model != baseline:
        win = 0.5 * (1 + (rank < other) - (rank > other))
        outcomes[model, baseline][record.item_id].append(win)
  return [
    _win_rate(model, baseline, outcomes[model, baseline])
    for model, baseline in sorted(outcomes)
  ]


def _win_rate(
  model: str, baseline: str, items: Mapping[int, Sequence[float]]
) -> WinRate:
  means = [statistics.fmean(wins) for _, wins in sorted(items.items())]
  counts = collections.Counter(w for wins in items.values() for w in wins)
  return WinRate(
    model,
    baseline,
    bootstrap_interval(means, share=True),
    counts[1.0],
    counts[0.5],
    counts[0.0],
  )
