"""Runs jobs in the order of their dependencies.

A job is complete when its workdir holds complete.json. A failed job does not
stop the others; jobs that depend on it are skipped. When the runner ends, so do
its processes. A second call runs what is missing and resumes from checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import tqdm

from instructgpt_jax.distributed import preemption
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files, progress
from instructgpt_jax.sweeps import processes, records
from instructgpt_jax.sweeps.cluster import Slurm, SubmititLauncher
from instructgpt_jax.sweeps.jobs import Job, check_same_flags, order_jobs

LAUNCHERS = ("local", "slurm", "submitit-local")
# Processes of a killed runner are gone within this time (seconds).
_LOCK_TIMEOUT = 3.0


@dataclasses.dataclass
class Outcome:
  """Results of all jobs.

  Attributes:
    done: complete jobs.
    failed: job → how it ended and the last lines of its log.
    skipped: job → the failed job that it depends on.
    seconds: job → wall time over all calls.
  """

  done: list[str] = dataclasses.field(default_factory=list)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class Launcher(Protocol):
  """Starts jobs and collects those that have ended.

  Attributes:
    poll: seconds between two checks for ended jobs.
  """

  poll: float

  @property
  def running(self) -> list[str]: ...

  @property
  def free_slots(self) -> int: ...

  def start(self, job: Job, lock: int, alone: bool = False) -> None: ...

  def pop_finished(self) -> list[processes.FinishedJob]: ...

  def stop(self) -> None: ...


def log_line(text: str) -> None:
  """Prints a line to standard error, above the progress bar."""
  tqdm.tqdm.write(text, file=sys.stderr)


def run_jobs(
  jobs: Sequence[Job],
  root: str,
  *,
  workers: int = 1,
  launcher: str = "local",
  slurm: Slurm | None = None,
  title: str = "sweep",
  wait: bool = False,
  log: Callable[[str], None] = log_line,
) -> Outcome:
  """Runs all jobs that are not complete.

  Args:
    jobs: the jobs; their order is kept as far as dependencies allow.
    root: directory of all workdirs.
    workers: jobs at once; on a cluster, 0 runs all that are ready.
    launcher: one of LAUNCHERS.
    slurm: resources of each job on a cluster.
    title: title of the progress bar.
    wait: whether to wait for another runner in `root` instead of refusing.
    log: called with a line for each job that ends.

  Returns:
    The results of all jobs.

  Raises:
    UserError: another runner works in `root`, or a complete job was run with
      other settings.
    ValueError: the jobs contradict each other.
    KeyboardInterrupt: after SIGINT, once all processes have ended.
    Preempted: the same after SIGTERM.
  """
  ordered = order_jobs(jobs)
  files.make_directory(root)
  lock = records.acquire(
    os.path.join(root, ".lock"), math.inf if wait else _LOCK_TIMEOUT
  )
  if lock is None:
    raise UserError(
      "another sweep is running in this directory",
      file=root,
      fix="wait until it has ended, or choose another --workdir",
      code="sweep_running",
    )
  try:
    opened = open_launcher(launcher, root, workers, slurm)
    outcome = _run_loop(ordered, root, opened, lock, title, log)
  finally:
    os.close(lock)
  seconds = records.read_seconds(root)
  outcome.seconds = {
    job.name: seconds[job.name] for job in ordered if job.name in seconds
  }
  return outcome


def open_launcher(
  name: str, root: str, workers: int, slurm: Slurm | None
) -> Launcher:
  """Returns the launcher of a name."""
  if name == "local":
    return processes.LocalLauncher(root, workers)
  if name not in LAUNCHERS:
    raise UserError(
      f"there is no launcher {name!r}",
      field="--launcher",
      fix=f"give one of {', '.join(LAUNCHERS)}",
      code="unknown_launcher",
    )
  cluster = "slurm" if name == "slurm" else "local"
  return SubmititLauncher(root, workers, cluster, slurm or Slurm())


def _run_loop(
  ordered: Sequence[Job],
  root: str,
  launcher: Launcher,
  lock: int,
  title: str,
  log: Callable[[str], None],
) -> Outcome:
  outcome = Outcome()
  waiting: dict[str, Job] = {}
  for job in ordered:
    if job.is_complete(root):
      check_same_flags(job, root)
      _settle_span(job, root)
      outcome.done.append(job.name)
    else:
      waiting[job.name] = job
  with monitor_sweep(
    len(ordered), len(outcome.done), title, launcher, log
  ) as monitor:
    try:
      while waiting or launcher.running:
        monitor.check()
        ready = _ready_jobs(waiting, outcome)
        alone = len(ready) == 1 and not launcher.running
        for job in ready[: launcher.free_slots]:
          launcher.start(waiting.pop(job.name), lock, alone)
          monitor.started()
        for ended in launcher.pop_finished():
          if ended.error:
            outcome.failed[ended.name] = ended.error
          else:
            outcome.done.append(ended.name)
          monitor.ended(ended)
        if launcher.running:
          time.sleep(launcher.poll)
    finally:
      launcher.stop()
  return outcome


def _settle_span(job: Job, root: str) -> None:
  """Adds the time of a complete job whose runner was killed.

  On a cluster, the job's own process may hold the lock and do so itself.
  """
  lock = records.acquire(records.lock_path(root, f"runs/{job.name}"))
  if lock is not None:
    try:
      records.settle_span(root, job)
    finally:
      os.close(lock)


def _ready_jobs(waiting: dict[str, Job], outcome: Outcome) -> list[Job]:
  """Returns the jobs that can start; moves those that never can to skipped."""
  ready = []
  for job in list(waiting.values()):
    failed = [
      n for n in job.needs if n in outcome.failed or n in outcome.skipped
    ]
    if failed:
      outcome.skipped[job.name] = outcome.skipped.get(failed[0], failed[0])
      del waiting[job.name]
    elif all(need in outcome.done for need in job.needs):
      ready.append(job)
  return ready


class SweepMonitor:
  """Shows the progress of a sweep, and raises when it is to stop."""

  def __init__(
    self,
    bar: progress.Progress,
    launcher: Launcher,
    log: Callable[[str], None],
    title: str,
  ):
    self._bar, self._launcher = bar, launcher
    self._log, self._title = log, title
    self._signal = 0
    self._began: dict[str, float] = {}

  def check(self) -> None:
    """Raises KeyboardInterrupt or Preempted after a signal."""
    if self._signal == signal.SIGTERM:
      raise preemption.Preempted
    if self._signal:
      raise KeyboardInterrupt

  def stop(self, number: int, *unused: object) -> None:
    """Handles SIGINT and SIGTERM."""
    self._signal = number

  def count(self, done: int) -> None:
    """Shows the number of jobs done, by this process and others."""
    self._bar.update(max(0, done - self._bar.done))

  def started(self) -> None:
    """Shows the running jobs."""
    for name in self._launcher.running:
      self._began.setdefault(name, time.monotonic())
    self._show(0)

  def ended(self, ended: processes.FinishedJob) -> None:
    """Counts a job; logs it if it failed or there is no progress bar."""
    self._show(1)
    began = self._began.pop(ended.name, time.monotonic())
    spent = progress.clock(time.monotonic() - began)
    verb = "failed after" if ended.error else "done in"
    if ended.error or not sys.stderr.isatty():
      count = f"{self._bar.done}/{self._bar.total}"
      self._log(f"{self._title} {count}: {ended.name}: {verb} {spent}")

  def _show(self, count: int) -> None:
    names = self._launcher.running
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    self._bar.update(count, running=", ".join(names[:2]) + more or "nothing")


@contextlib.contextmanager
def monitor_sweep(
  total: int,
  done: int,
  title: str,
  launcher: Launcher,
  log: Callable[[str], None],
) -> Iterator[SweepMonitor]:
  """Shows progress; makes signals raise in `SweepMonitor.check`."""
  with progress.Progress(
    total, title, initial=done, unit="job", every=math.inf
  ) as bar:
    monitor = SweepMonitor(bar, launcher, log, title)
    previous = {}
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        # A background job of a shell keeps ignoring SIGINT.
        if signal.getsignal(number) is not signal.SIG_IGN:
          previous[number] = signal.signal(number, monitor.stop)
    try:
      yield monitor
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
