"""Metrics as JSON lines, and in the trackers of the run.

`metrics.jsonl` has all metrics; `step_lines` describes its lines. Trackers show
the same values: TensorBoard, Weights & Biases and MLflow, see `trackers`.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import step_lines, trackers
from instructgpt_jax.runs.progress import log_line

METRICS = "metrics.jsonl"


class MetricWriter:
  """Writes the metrics of a run, in its main process."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    settings: configs.Run,
    *,
    name: str = "",
    resume_step: int = 0,
  ):
    """Opens the files and trackers of a run.

    Args:
      workdir: directory of the run.
      settings: says which trackers it has.
      name: name of the stage, shown by trackers.
      resume_step: step that the run resumes from; later lines are deleted.
    """
    path = pathlib.Path(workdir) / METRICS
    self._lines = step_lines.StepLines(path, resume_step=resume_step)
    self._trackers: list[trackers.Tracker] = []
    if not processes.is_main_process():
      return
    run = trackers.TrackedRun(
      pathlib.Path(workdir), name, resume_step, self._lines.last_step
    )
    try:
      self._trackers = trackers.open_trackers(settings, run)
    except BaseException:
      self._lines.close()
      raise

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line, and sends its finite values to the trackers.

    Args:
      step: number of updates done.
      values: numbers or scalar arrays.
    """
    row = {name: _number(value) for name, value in values.items()}
    self._lines.write(step, row)
    finite = {k: v for k, v in row.items() if math.isfinite(v)}
    self._track(lambda tracker: tracker.scalars(int(step), finite))

  def write_text(self, step: int, name: str, markdown: str) -> None:
    """Sends a text to the trackers.

    Args:
      step: number of updates done.
      name: name of the text.
      markdown: the text.
    """
    self._track(lambda tracker: tracker.text(int(step), name, markdown))

  def close(self) -> None:
    """Closes files and trackers; may be called twice."""
    self._lines.close()
    self._track(lambda tracker: tracker.close())
    self._trackers = []

  def _track(self, call: Callable[[trackers.Tracker], None]) -> None:
    """Calls each tracker; one that fails is left out from then on.

    Errors of the disk end the run. A service that is away does not, because
    metrics.jsonl has all values.
    """
    for tracker in tuple(self._trackers):
      try:
        call(tracker)
      except UserError:
        raise
      except Exception as error:
        self._trackers.remove(tracker)
        log_line(
          f"warning: {tracker.name} failed ({type(error).__name__}: {error});"
          f" the run continues without it, and {METRICS} has all metrics"
        )

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns all lines of a run, oldest first."""
  return step_lines.read_lines(pathlib.Path(workdir) / METRICS)


def _number(value: Any) -> float | int:
  value = value.item() if hasattr(value, "item") else value
  return value if isinstance(value, int) else float(value)
