"""Launcher for processes on this host."""

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
class FinishedJob:
  """Job that has ended; it is complete if there is no error."""

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


class LocalLauncher:
  """Launcher that runs jobs as processes.

  Each worker has its own CPU cores if there are enough.
  """

  poll = 0.1

  def __init__(self, root: str, workers: int):
    self._root, self._workers = root, max(1, workers)
    self._cores = split_cores(self._workers)
    self._running: list[_Running] = []

  @property
  def running(self) -> list[str]:
    """Returns the names of running jobs."""
    return [running.job.name for running in self._running]

  @property
  def free_slots(self) -> int:
    """Returns how many more jobs may be started."""
    return self._workers - len(self._running)

  def start(self, job: jobs.Job, lock: int, alone: bool = False) -> None:
    """Starts a job, whose process also holds the lock in case this one dies.

    Args:
      job: the job.
      lock: file descriptor of the lock.
      alone: whether it may use all cores, since no other job runs.
    """
    used = {running.slot for running in self._running}
    slot = min(set(range(self._workers)) - used)
    log = records.log_path(self._root, job.name)
    files.make_directory(os.path.dirname(log))
    command = job.command(self._root)
    records.begin_span(self._root, job)
    with files.disk_errors_as_user_errors(log), open(log, "ab") as file:
      start = file.tell()
      file.write(f"$ {jobs.shell_line(command)}\n".encode())
      file.flush()
      cores = [] if alone else self._cores[slot]
      process = start_process(command, file, cores, lock)
    self._running.append(
      _Running(job, process, slot, lock, alone, log, start, time.monotonic())
    )

  def pop_finished(self) -> list[FinishedJob]:
    """Returns the jobs that have ended since the last call.

    Restarts jobs that another process has preempted.
    """
    ended = [
      running for running in self._running if running.process.poll() is not None
    ]
    finished = []
    for running in ended:
      self._remove(running)
      error = self._error_text(running)
      if error and was_preempted(
        running.process.returncode, running.log, running.start
      ):
        self.start(running.job, running.lock, running.alone)
      else:
        finished.append(FinishedJob(running.job.name, error))
    return finished

  def stop(self) -> None:
    """Ends all running jobs and waits for them."""
    for running in self._running:
      terminate(running.process)
    for running in self._running:
      wait_or_kill(running.process)
    for running in list(self._running):
      self._remove(running)

  def _remove(self, running: _Running) -> None:
    self._running.remove(running)
    spent = time.monotonic() - running.began
    records.end_span(self._root, running.job.name, spent)

  def _error_text(self, running: _Running) -> str:
    status = running.process.returncode
    if status == 0 and running.job.is_complete(self._root):
      return ""
    last_lines = records.last_lines(running.log, running.start)
    return f"{describe_exit(status)}\n{last_lines}"


def was_preempted(status: int, log: str, start: int) -> bool:
  """Returns whether a process has ended because of SIGTERM.

  Args:
    status: exit status.
    log: file of its output.
    start: byte at which its output begins.
  """
  last = records.last_lines(log, start).splitlines()[-1:]
  return status == 0 and last == [preemption.STOPPED]


def describe_exit(status: int) -> str:
  """Describes an exit status in words."""
  if status >= 0:
    return f"ended with status {status}, not complete"
  return f"killed by {signal.Signals(-status).name}"


def start_process(
  command: Sequence[str], log, cores: Sequence[int] = (), lock: int = -1
) -> subprocess.Popen:
  """Starts a command in its own process group; it dies with this process."""
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


def terminate(process: subprocess.Popen) -> None:
  """Sends SIGTERM to the process group of a process."""
  if process.poll() is None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGTERM)


def wait_or_kill(process: subprocess.Popen) -> None:
  """Waits for a process after SIGTERM; kills its group after a time-out."""
  try:
    process.wait(_GRACE)
  except subprocess.TimeoutExpired:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
  """Returns the environment, with this package on the import path."""
  root = str(pathlib.Path(instructgpt_jax.__file__).parent.parent)
  paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
  return {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(paths),
    "PYTHONUNBUFFERED": "1",
  }


def split_cores(workers: int) -> list[list[int]]:
  """Returns the CPU cores of each worker; [] where workers share all."""
  if not hasattr(os, "sched_getaffinity"):
    return [[]] * workers
  cores = sorted(os.sched_getaffinity(0))
  if not 1 < workers <= len(cores):
    return [[]] * workers
  ends = [i * len(cores) // workers for i in range(workers + 1)]
  return [cores[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
