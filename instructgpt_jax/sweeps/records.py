"""Logs, wall times and locks that a sweep keeps next to its runs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

from instructgpt_jax.runs import files, locks
from instructgpt_jax.sweeps import jobs

acquire, locked = locks.acquire, locks.locked
SECONDS = "seconds.json"
LOCKS = ".locks"
SPANS = ".spans"
_LINES = 10


def log_path(root: str, name: str) -> str:
  """Returns the path of a job's log.

  The log is outside the workdir, because an experiment that refuses its flags
  removes its workdir only if that is empty.
  """
  return os.path.join(root, jobs.LOGS, *name.split("/")) + ".txt"


def last_lines(path: str, start: int = 0) -> str:
  """Reads the last lines of a log, from the byte `start` on."""
  try:
    with open(path, "rb") as file:
      file.seek(max(start, os.path.getsize(path) - 65536))
      text = file.read().decode(errors="replace")
  except OSError:
    return ""
  lines = [line.rstrip() for line in text.splitlines() if line.strip()]
  return "\n".join(lines[-_LINES:])


def lock_path(root: str, name: str) -> str:
  """Returns the path of a lock of the sweep."""
  return os.path.join(root, LOCKS, *name.split("/")) + ".lock"


def read_seconds(root: str) -> dict[str, float]:
  """Reads job → wall time in seconds, over all calls."""
  path = pathlib.Path(root) / SECONDS
  return files.read_json(path) if path.exists() else {}


def begin_span(root: str, job: jobs.Job) -> None:
  """Records the start of a job, in case this process is killed.

  Adds the time of an earlier start without a recorded end first. The caller
  holds the job's lock.
  """
  settle_span(root, job)
  files.write_text_atomic(_span_path(root, job.name), repr(time.time()))


def end_span(root: str, name: str, spent: float) -> None:
  """Adds the time since `begin_span` to a job's wall time."""
  pathlib.Path(_span_path(root, name)).unlink(missing_ok=True)
  add_seconds(root, name, spent)


def settle_span(root: str, job: jobs.Job) -> None:
  """Adds the time of a start whose process was killed before `end_span`.

  It ends when the job last wrote to its log or to a file of its workdir. The
  caller holds the job's lock.
  """
  path = pathlib.Path(_span_path(root, job.name))
  try:
    began = float(path.read_text())
  except (OSError, ValueError):
    return
  written = [log_path(root, job.name)]
  with contextlib.suppress(OSError):
    written += [entry.path for entry in os.scandir(job.workdir(root))]
  times = [began]
  for one in written:
    with contextlib.suppress(OSError):
      times.append(os.stat(one).st_mtime)
  end_span(root, job.name, max(times) - began)


def _span_path(root: str, name: str) -> str:
  return os.path.join(root, SPANS, *name.split("/")) + ".began"


def add_seconds(root: str, name: str, spent: float) -> None:
  """Adds seconds to a job's wall time."""
  with locked(lock_path(root, "seconds")):
    seconds = read_seconds(root)
    seconds[name] = round(seconds.get(name, 0.0) + spent, 3)
    files.write_json_atomic(pathlib.Path(root) / SECONDS, seconds)
