"""The page of win rates by model."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import quality, snapshot
from instructgpt_jax.labeling.label_records import LabelRecord
from instructgpt_jax.labeling.quality import WinRate
from instructgpt_jax.labeling.web.item_page import TASK_NAMES
from instructgpt_jax.labeling.web.quality_page import choose_task
from instructgpt_jax.labeling.web.visit import Visit


def show(visit: Visit) -> Response:
  """Shows how often each model is preferred to each other one.

  Training labelers and held-out ones are apart, as in the paper.
  """
  with visit.store.read() as connection:
    records = snapshot.records_of(snapshot.read_snapshot(connection))
  task = visit.query("task")
  if task not in ("comparison", "ranking"):
    used = {record.task for record in records}
    task = "comparison" if "comparison" in used else choose_task(visit, records)
  chosen = [record for record in records if record.task == task]
  groups = [
    (name, _by_model([r for r in chosen if r.held_out == held_out]))
    for name, held_out in (("training", False), ("held-out", True))
  ]
  return visit.render(
    "evaluation.html",
    task=task,
    tasks=[(name, TASK_NAMES[name]) for name in ("comparison", "ranking")],
    groups=[(name, models) for name, models in groups if models],
  )


def _by_model(
  records: Sequence[LabelRecord],
) -> list[tuple[str, list[WinRate]]]:
  """Returns the win rates of each model."""
  rates = quality.win_rates(records)
  models = sorted({rate.model for rate in rates})
  return [(m, [rate for rate in rates if rate.model == m]) for m in models]
