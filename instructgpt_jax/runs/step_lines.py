"""JSON lines that belong to steps of a run, such as `metrics.jsonl`.

A line is {"step": 10, …}. A value that is not finite is the string "nan", "inf"
or "-inf", because JSON has no number for it. A run that resumes from step s
first deletes later lines, so that no line occurs twice.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from instructgpt_jax.distributed import processes
from instructgpt_jax.runs import files


class StepLines:
  """Appends JSON lines of a run, in its main process.

  Attributes:
    last_step: step of the last line that an earlier call wrote, deleted or not;
      0 without one.
  """

  def __init__(self, path: str | pathlib.Path, *, resume_step: int = 0):
    """Opens a file.

    Args:
      path: the file; its directory is made when missing.
      resume_step: step that the run resumes from; later lines are deleted. A
        run from step 0 deletes all lines.
    """
    self._path = pathlib.Path(path)
    files.make_directory(self._path.parent)
    self._file: Any = None
    self.last_step = 0
    if not processes.is_main_process():
      return
    self.last_step = _delete_after(self._path, resume_step)
    with files.disk_errors_as_user_errors(self._path):
      self._file = self._path.open("a", encoding="utf-8")

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line, and flushes it.

    Args:
      step: number of updates done.
      values: JSON values, arrays and scalars.
    """
    if self._file is None:
      return
    line = json.dumps({"step": int(step), **files.to_json_values(values)})
    with files.disk_errors_as_user_errors(self._path):
      self._file.write(line + "\n")
      self._file.flush()

  def close(self) -> None:
    """Closes the file; may be called twice."""
    if self._file is not None:
      with files.disk_errors_as_user_errors(self._path):
        self._file.close()

  def __enter__(self) -> StepLines:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def read_lines(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns all lines of a file, oldest first; none if it is missing."""
  return [row for row, _ in _rows(pathlib.Path(path))]


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


def _delete_after(path: pathlib.Path, step: int) -> int:
  """Deletes later lines; returns the step of the last line before that."""
  if not path.exists():
    return 0
  rows = _rows(path)
  remaining = ""
  if step:
    remaining = "".join(text for row, text in rows if row["step"] <= step)
  if len(remaining.encode()) != path.stat().st_size:
    files.write_text_atomic(path, remaining)
  return max((row["step"] for row, _ in rows), default=0)
