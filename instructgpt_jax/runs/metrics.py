"""Metrics as JSON lines and TensorBoard files.

A line of `metrics.jsonl` is {"step": 10, "loss": 1.25, …}. A value that is not
finite is the string "nan", "inf" or "-inf", because JSON has no number for it. A
run that resumes from step s first deletes later lines, so that no step occurs
twice.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from instructgpt_jax.runs import files
from instructgpt_jax.distributed import processes

METRICS = "metrics.jsonl"


class MetricWriter:
  """Appends the metrics of a run, in its main process."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    tensorboard: bool = True,
    resume_step: int = 0,
  ):
    """Opens the files of a run.

    Args:
      workdir: directory of the run.
      tensorboard: whether to write TensorBoard files as well.
      resume_step: step that the run resumes from; later lines are deleted.
    """
    self._path = pathlib.Path(workdir) / METRICS
    files.make_directory(self._path.parent)
    self._file: Any = None
    self._tensorboard: Any = None
    if not processes.is_main_process():
      return
    _delete_after(self._path, resume_step)
    with files.disk_errors_as_user_errors(self._path):
      self._file = self._path.open("a", encoding="utf-8")
    if tensorboard:
      import tensorboardX

      with files.disk_errors_as_user_errors(workdir):
        self._tensorboard = tensorboardX.SummaryWriter(
          str(pathlib.Path(workdir) / "tensorboard"),
          purge_step=resume_step + 1 if resume_step else None,
        )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line.

    Args:
      step: number of updates done.
      values: numbers or scalar arrays.
    """
    if self._file is None:
      return
    row = {name: _number(value) for name, value in values.items()}
    line = json.dumps({"step": int(step), **files.to_json_values(row)})
    with files.disk_errors_as_user_errors(self._path):
      self._file.write(line + "\n")
      self._file.flush()
      if self._tensorboard is not None:
        for name, value in row.items():
          if math.isfinite(value):
            self._tensorboard.add_scalar(name, value, int(step))

  def close(self) -> None:
    """Closes the files; may be called twice."""
    if self._file is None:
      return
    with files.disk_errors_as_user_errors(self._path):
      self._file.close()
      if self._tensorboard is not None:
        self._tensorboard.close()
        self._tensorboard = None

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns all lines of a run, oldest first."""
  path = pathlib.Path(workdir) / METRICS
  return [row for row, _ in _rows(path)]


def _number(value: Any) -> float | int:
  value = value.item() if hasattr(value, "item") else value
  return value if isinstance(value, int) else float(value)


def _rows(path: pathlib.Path) -> list[tuple[dict[str, Any], str]]:
  """Returns each line's value and text, up to one that a kill has truncated."""
  if not path.exists():
    return []
  rows = []
  for line in files.read_text(path).splitlines(keepends=True):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      break
    if not line.endswith("\n") or not isinstance(row, dict):
      break
    rows.append((row, line))
  return rows


def _delete_after(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  remaining = "".join(text for row, text in _rows(path) if row["step"] <= step)
  if len(remaining.encode()) != path.stat().st_size:
    files.write_text_atomic(path, remaining)
