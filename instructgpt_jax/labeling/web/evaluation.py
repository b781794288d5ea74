"""The page of win rates by model."""

from __future__ import annotations

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import quality, snapshot
from instructgpt_jax.labeling.web.item_page import TASK_NAMES
from instructgpt_jax.labeling.web.quality_page import choose_task
from instructgpt_jax.labeling.web.visit import Visit


def show(visit: Visit) -> Response:
  """Shows how often each model is preferred to each other one."""
  with visit.store.read() as connection:
    records = snapshot.records_of(snapshot.read_snapshot(connection))
  task = visit.query("task")
  if task not in ("comparison", "ranking"):
    used = {record.task for record in records}
    task = "comparison" if "comparison" in used else choose_task(visit, records)
  rates = quality.win_rates([r for r in records if r.task == task])
  models = sorted({rate.model for rate in rates})
  return visit.render(
    "evaluation.html",
    task=task,
    tasks=[(name, TASK_NAMES[name]) for name in ("comparison", "ranking")],
    models=[(m, [r for r in rates if r.model == m]) for m in models],
  )
