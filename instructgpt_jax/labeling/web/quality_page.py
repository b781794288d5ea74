"""The dashboard: agreement, gold items, speed and progress on one page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import quality, reliability, snapshot
from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.labeling.quality import (
  Agreement,
  Comparison,
  Disagreement,
  Speed,
)
from instructgpt_jax.labeling.snapshot import Snapshot
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.item_page import TASK_NAMES
from instructgpt_jax.labeling.web.visit import Visit

_TASKS = ("ranking", "comparison")
_PAIRS = 6  # pairs of labelers with the least agreement
_WEEKS = 8
_KINDS = 8
_ITEMS = 5  # items with the most disagreement


class GroupRow(NamedTuple):
  """A group of comparisons on the dashboard; `alpha` is None if unknown."""

  name: str
  agreement: Agreement
  alpha: float | None


class LabelerRow(NamedTuple):
  """A labeler on the dashboard."""

  name: str
  held_out: bool
  labels: int
  group: GroupRow | None
  gold: Agreement | None
  speed: Speed | None


def choose_task(visit: Visit, records: Sequence[LabelRecord]) -> str:
  """Returns the task of the query, or the first that has labels."""
  task = visit.query("task")
  if task in _TASKS:
    return task
  used = {record.task for record in records}
  return next((task for task in _TASKS if task in used), _TASKS[0])


def show(visit: Visit) -> Response:
  """Shows the dashboard of one task."""
  with visit.store.read() as connection:
    content = snapshot.read_snapshot(connection)
    progress = queries.item_progress(connection)
  everything = snapshot.records_of(content)
  task = choose_task(visit, everything)
  records = [record for record in everything if record.task == task]
  comparisons = quality.compare_labels(records)
  training = quality.training_labels(records)
  among_training = quality.compare_labels(training)
  return visit.render(
    "dashboard.html",
    task=task,
    tasks=[(name, TASK_NAMES[name]) for name in _TASKS],
    progress=[row for row in progress if row[0] == task],
    labels=len(records),
    only_training=len(training) < len(records),
    agreement=quality.agreement(among_training),
    alpha=_with_alpha(reliability.krippendorff_alpha, training, "ranks"),
    overall_alpha=_with_alpha(
      reliability.krippendorff_alpha, training, "overall"
    ),
    groups=_groups(comparisons, quality.by_group),
    gold=_gold(records),
    minutes=_minutes(records),
    labelers=_labelers(records, comparisons),
    kinds=_largest(_groups(comparisons, quality.by_kind), _KINDS),
    weeks=_groups(comparisons, quality.by_week)[-_WEEKS:],
    pairs=_worst_pairs(comparisons),
    disagreement=_most_disagreement(content, among_training),
  )


def _groups(
  comparisons: Sequence[Comparison],
  keys: Callable[[Comparison], Iterable[Any]],
) -> list[GroupRow]:
  """Returns a row for each group, in the order of their names."""
  alphas = _with_alpha(reliability.alpha_by, comparisons, keys) or {}
  return [
    GroupRow(
      " and ".join(key) if isinstance(key, tuple) else key,
      row,
      alphas.get(key),
    )
    for key, row in quality.agreement_by(comparisons, keys).items()
  ]


def _with_alpha(compute: Callable[..., Any], *arguments: Any) -> Any:
  """Returns what is computed; None without the package that computes α."""
  try:
    return compute(*arguments)
  except UserError as error:
    if error.code != "missing_package":
      raise
    return None


def _most_disagreement(
  content: Snapshot, comparisons: Sequence[Comparison]
) -> list[tuple[Disagreement, str]]:
  """Returns items with a disagreement that no reviewer has decided."""
  texts = {item.id: queries.excerpt(item.payload) for item in content.items}
  final = {adjudication.item.id for adjudication in content.adjudications}
  rows = [
    (row, texts[row.item_id])
    for row in quality.disagreement(comparisons)
    if row.pairs and row.share > 0 and row.item_id not in final
  ]
  return rows[:_ITEMS]


def _gold(records: Sequence[LabelRecord]) -> tuple[float, int]:
  """Returns the share of gold pairs ordered as expected, and their number."""
  accuracy = quality.gold_accuracy(records).values()
  pairs = sum(a.pairs for a in accuracy)
  agreeing = sum(a.agreeing for a in accuracy)
  return (agreeing / pairs if pairs else math.nan), pairs


def _minutes(records: Sequence[LabelRecord]) -> float:
  seconds = [record.seconds for record in records]
  return statistics.median(seconds) / 60 if seconds else math.nan


def _labelers(
  records: Sequence[LabelRecord], comparisons: Sequence[Comparison]
) -> list[LabelerRow]:
  """Returns a row for each labeler, those with the least agreement first."""
  groups = {row.name: row for row in _groups(comparisons, quality.by_labeler)}
  gold = quality.gold_accuracy(records)
  speed = quality.speed_by_labeler(records)
  counts: dict[str, int] = {}
  held_out: dict[str, bool] = {}
  for record in records:
    counts[record.labeler] = counts.get(record.labeler, 0) + 1
    held_out[record.labeler] = record.held_out
  rows = [
    LabelerRow(
      name,
      held_out[name],
      count,
      groups.get(name),
      gold.get(name),
      speed.get(name),
    )
    for name, count in counts.items()
  ]
  return sorted(rows, key=_least_agreement)


def _least_agreement(row: LabelerRow) -> tuple[bool, float, str]:
  if row.group is None or not row.group.agreement.pairs:
    return True, 0.0, row.name
  return False, row.group.agreement.share, row.name


def _largest(rows: Sequence[GroupRow], count: int) -> list[GroupRow]:
  """Returns the groups with the most compared pairs."""
  return sorted(rows, key=lambda row: (-row.agreement.pairs, row.name))[:count]


def _worst_pairs(comparisons: Sequence[Comparison]) -> list[GroupRow]:
  """Returns the pairs of labelers who agree least."""
  agreement = quality.agreement_by(comparisons, quality.by_labelers)
  worst = sorted(
    (pair for pair, row in agreement.items() if row.pairs),
    key=lambda pair: (agreement[pair].share, pair),
  )[:_PAIRS]
  # Of these alone, because there are many pairs.
  shown = [c for c in comparisons if quality.by_labelers(c)[0] in worst]
  rows = _groups(shown, quality.by_labelers)
  return sorted(rows, key=lambda row: (row.agreement.share, row.name))
