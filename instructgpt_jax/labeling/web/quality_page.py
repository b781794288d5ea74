"""The dashboard: agreement, gold items, speed and progress on one page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import quality, snapshot
from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.labeling.quality import Agreement, Comparison, Speed
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.item_page import TASK_NAMES
from instructgpt_jax.labeling.web.visit import Visit

_TASKS = ("ranking", "comparison")
_PAIRS = 6  # pairs of labelers with the least agreement
_WEEKS = 8
_KINDS = 8
_ITEMS = 5  # items with the most disagreement


class LabelerRow(NamedTuple):
  """A labeler on the dashboard."""

  name: str
  held_out: bool
  labels: int
  agreement: Agreement | None
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
  texts = {item.id: queries.excerpt(item.payload) for item in content.items}
  final = {adjudication.item.id for adjudication in content.adjudications}
  disagreement = [
    (row, texts[row.item_id])
    for row in quality.disagreement(comparisons)
    if row.pairs and row.share > 0 and row.item_id not in final
  ]
  return visit.render(
    "dashboard.html",
    task=task,
    tasks=[(name, TASK_NAMES[name]) for name in _TASKS],
    progress=[row for row in progress if row[0] == task],
    labels=len(records),
    agreement=quality.agreement(comparisons),
    groups=quality.agreement_by_group(comparisons),
    alpha=_alpha(records, "ranks"),
    overall_alpha=_alpha(records, "overall"),
    gold=_gold(records),
    minutes=_minutes(records),
    labelers=_labelers(records, comparisons),
    kinds=_largest(quality.agreement_by_kind(comparisons), _KINDS),
    weeks=list(quality.agreement_by_week(comparisons).items())[-_WEEKS:],
    pairs=_worst_pairs(comparisons),
    disagreement=disagreement[:_ITEMS],
  )


def _alpha(records: Sequence[LabelRecord], values: str) -> float | None:
  """Returns Krippendorff's α; None without the package that computes it."""
  try:
    return quality.krippendorff_alpha(records, values)
  except UserError as error:
    if error.code != "missing_package":
      raise
    return None


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
  agreement = quality.agreement_by_labeler(comparisons)
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
      agreement.get(name),
      gold.get(name),
      speed.get(name),
    )
    for name, count in counts.items()
  ]
  return sorted(rows, key=_least_agreement)


def _least_agreement(row: LabelerRow) -> tuple[bool, float, str]:
  known = row.agreement is not None and row.agreement.pairs > 0
  share = row.agreement.share if row.agreement and known else 0.0
  return not known, share, row.name


def _largest(
  groups: Mapping[str, Agreement], count: int
) -> list[tuple[str, Agreement]]:
  """Returns the groups with the most compared pairs."""
  rows = sorted(groups.items(), key=lambda row: (-row[1].pairs, row[0]))
  return rows[:count]


def _worst_pairs(
  comparisons: Sequence[Comparison],
) -> list[tuple[tuple[str, str], Agreement]]:
  rows: list[Any] = [
    row
    for row in quality.agreement_by_labelers(comparisons).items()
    if row[1].pairs
  ]
  return sorted(rows, key=lambda row: (row[1].share, row[0]))[:_PAIRS]
