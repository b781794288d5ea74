"""Jobs as processes of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import instructgpt_jax
from instructgpt_jax.distributed import preemption
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import child, jobs, records

_GRACE = 10.0  # seconds between asking a process to end and killing it


@dataclasses.dataclass(frozen=True)
class Ended:
  """A job that runs no more; without an error it is complete."""

  name: str
  error: str = ""


@dataclasses.dataclass
class _Running:
  job: jobs.Job
  process: subprocess.Popen
  slot: int
  lock: int
  alone: bool
  log: str
  start: int
  began: float


class Local:
  """Runs so many jobs at once, each on cores of its own where they suffice."""

  poll = 0.1

  def __init__(self, root: str, workers: int):
    self._root, self._workers = root, max(1, workers)
    self._cores = shares(self._workers)
    self._running: list[_Running] = []

  @property
  def names(self) -> list[str]:
    """What is running."""
    return [one.job.name for one in self._running]

  @property
  def free(self) -> int:
    """How many more jobs may be started."""
    return self._workers - len(self._running)

  def start(self, job: jobs.Job, lock: int, alone: bool = False) -> None:
    """Starts a job; its process holds the lock too, in case this one dies.

    Args:
      job: the job.
      lock: an open file.
      alone: no other starts before it has ended, so it may have all cores.
    """
    used = {one.slot for one in self._running}
    slot = min(set(range(self._workers)) - used)
    log = records.log_path(self._root, job.name)
    files.make_directory(os.path.dirname(log))
    command = job.command(self._root)
    records.begin_span(self._root, job)
    with files.disk_errors_as_user_errors(log), open(log, "ab") as file:
      start = file.tell()
      file.write(f"$ {jobs.shown(command)}\n".encode())
      file.flush()
      cores = [] if alone else self._cores[slot]
      process = popen(command, file, cores, lock)
    self._running.append(
      _Running(job, process, slot, lock, alone, log, start, time.monotonic())
    )

  def ended(self) -> list[Ended]:
    """Those that have ended since the last call.

    One that was asked to end, and not by this process, goes on.
    """
    ended = [one for one in self._running if one.process.poll() is not None]
    found = []
    for one in ended:
      self._forget(one)
      error = self._error(one)
      if error and asked_to_end(one.process.returncode, one.log, one.start):
        self.start(one.job, one.lock, one.alone)
      else:
        found.append(Ended(one.job.name, error))
    return found

  def stop(self) -> None:
    """Ends all that runs; returns when nothing is left."""
    for one in self._running:
      end(one.process)
    for one in self._running:
      kill(one.process)
    for one in list(self._running):
      self._forget(one)

  def _forget(self, one: _Running) -> None:
    self._running.remove(one)
    spent = time.monotonic() - one.began
    records.end_span(self._root, one.job.name, spent)

  def _error(self, one: _Running) -> str:
    status = one.process.returncode
    if status == 0 and one.job.complete(self._root):
      return ""
    return f"{ending(status)}\n{records.last_lines(one.log, one.start)}"


def asked_to_end(status: int, log: str, start: int) -> bool:
  """Whether a process that is not complete has ended after SIGTERM.

  Args:
    status: how it ended.
    log: the file of its output.
    start: the byte at which that begins.
  """
  last = records.last_lines(log, start).splitlines()[-1:]
  return status == 0 and last == [preemption.STOPPED]


def ending(status: int) -> str:
  """How a process ended, in words."""
  if status >= 0:
    return f"ended with status {status}, not complete"
  return f"killed by {signal.Signals(-status).name}"


def popen(
  command: Sequence[str], log, cores: Sequence[int] = (), lock: int = -1
) -> subprocess.Popen:
  """Starts a command that dies with this process, in a group of its own."""
  text = ",".join(str(core) for core in cores)
  return subprocess.Popen(
    [sys.executable, "-I", child.__file__, str(os.getpid()), text, *command],
    stdin=subprocess.DEVNULL,
    stdout=log,
    stderr=subprocess.STDOUT,
    env=_environment(),
    start_new_session=True,
    pass_fds=() if lock < 0 else (lock,),
  )


def end(process: subprocess.Popen) -> None:
  """Asks a process and those that it started to end."""
  if process.poll() is None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGTERM)


def kill(process: subprocess.Popen) -> None:
  """Waits for a process that was asked to end, and kills it in the end."""
  try:
    process.wait(_GRACE)
  except subprocess.TimeoutExpired:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
  """This process's, from which the house's own packages can be imported."""
  house = str(pathlib.Path(instructgpt_jax.__file__).parent.parent)
  paths = [house, *filter(None, [os.environ.get("PYTHONPATH")])]
  return {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(paths),
    "PYTHONUNBUFFERED": "1",
  }


def shares(workers: int) -> list[list[int]]:
  """The cores of each worker; none where workers are to share them all."""
  if not hasattr(os, "sched_getaffinity"):
    return [[]] * workers
  cores = sorted(os.sched_getaffinity(0))
  if not 1 < workers <= len(cores):
    return [[]] * workers
  ends = [i * len(cores) // workers for i in range(workers + 1)]
  return [cores[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
