"""Runs jobs in the order of their needs, and what is missing on a second call.

A job is complete when its folder holds complete.json. One that fails does not
stop the others; those that need it are skipped. Whatever ends the runner, its
processes end with it, and a second call goes on from their checkpoints.
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
from instructgpt_jax.sweeps.cluster import Slurm, Submitit
from instructgpt_jax.sweeps.jobs import Job, check_complete, in_order

LAUNCHERS = ("local", "slurm", "submitit-local")
# The processes of a runner that was killed are gone within this time.
_LEFT_OVER = 3.0


@dataclasses.dataclass
class Outcome:
  """What became of the jobs."""

  done: list[str] = dataclasses.field(default_factory=list)
  # Job → how it ended and the last lines of its log.
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  # Job → the failed job that it needs.
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  # Job → wall time over all calls.
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class Launcher(Protocol):
  """Where jobs run."""

  poll: float  # seconds between two looks at them

  @property
  def names(self) -> list[str]: ...

  @property
  def free(self) -> int: ...

  def start(self, job: Job, lock: int, alone: bool = False) -> None: ...

  def ended(self) -> list[processes.Ended]: ...

  def stop(self) -> None: ...


def say(text: str) -> None:
  """One line on standard error, above a progress bar."""
  tqdm.tqdm.write(text, file=sys.stderr)


def execute(
  jobs: Sequence[Job],
  root: str,
  *,
  workers: int = 1,
  launcher: str = "local",
  slurm: Slurm | None = None,
  title: str = "sweep",
  wait: bool = False,
  log: Callable[[str], None] = say,
) -> Outcome:
  """Runs all jobs that are not complete.

  Args:
    jobs: in any order; the given one is kept where needs allow it.
    root: folder of all jobs' folders.
    workers: jobs at once; on a cluster 0 means all that are ready.
    launcher: one of LAUNCHERS.
    slurm: what a job asks of the cluster.
    title: what the progress is called.
    wait: waits for another runner in the same root instead of refusing.
    log: is told one line for each job that ends.

  Returns:
    What became of each.

  Raises:
    UserError: another runner works in the same root, or a complete job was
      run with other settings.
    ValueError: the jobs contradict each other.
    KeyboardInterrupt: SIGINT has come; all processes have ended.
    Preempted: the same with SIGTERM.
  """
  ordered = in_order(jobs)
  files.make_directory(root)
  lock = records.acquire(
    os.path.join(root, ".lock"), math.inf if wait else _LEFT_OVER
  )
  if lock is None:
    raise UserError(
      "another sweep runs there",
      file=root,
      fix="wait until it has ended, or choose another --workdir",
    )
  try:
    place = open_launcher(launcher, root, workers, slurm)
    outcome = _drive(ordered, root, place, lock, title, log)
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
  """The launcher of a name."""
  if name == "local":
    return processes.Local(root, workers)
  if name not in LAUNCHERS:
    raise UserError(
      f"there is no launcher {name!r}",
      field="--launcher",
      fix=f"give one of {', '.join(LAUNCHERS)}",
    )
  cluster = "slurm" if name == "slurm" else "local"
  return Submitit(root, workers, cluster, slurm or Slurm())


def _drive(
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
    if job.complete(root):
      check_complete(job, root)
      _settle(job, root)
      outcome.done.append(job.name)
    else:
      waiting[job.name] = job
  with following(
    len(ordered), len(outcome.done), title, launcher, log
  ) as watch:
    try:
      while waiting or launcher.names:
        watch.check()
        ready = _ready(waiting, outcome)
        alone = len(ready) == 1 and not launcher.names
        for job in ready[: launcher.free]:
          launcher.start(waiting.pop(job.name), lock, alone)
          watch.started()
        for ended in launcher.ended():
          if ended.error:
            outcome.failed[ended.name] = ended.error
          else:
            outcome.done.append(ended.name)
          watch.ended(ended)
        if launcher.names:
          time.sleep(launcher.poll)
    finally:
      launcher.stop()
  return outcome


def _settle(job: Job, root: str) -> None:
  """Counts the time of a complete job whose runner was killed as it ended.

  On a cluster the job's own process may be about to do so.
  """
  lock = records.acquire(records.lock_path(root, f"runs/{job.name}"))
  if lock is not None:
    try:
      records.settle_span(root, job)
    finally:
      os.close(lock)


def _ready(waiting: dict[str, Job], outcome: Outcome) -> list[Job]:
  """Those that can start; those that never can are taken out."""
  ready = []
  for job in list(waiting.values()):
    lost = [n for n in job.needs if n in outcome.failed or n in outcome.skipped]
    if lost:
      outcome.skipped[job.name] = outcome.skipped.get(lost[0], lost[0])
      del waiting[job.name]
    elif all(need in outcome.done for need in job.needs):
      ready.append(job)
  return ready


class Watch:
  """Tells how far a sweep is, and when it is to stop."""

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
    """Raises KeyboardInterrupt or Preempted once a signal has come."""
    if self._signal == signal.SIGTERM:
      raise preemption.Preempted
    if self._signal:
      raise KeyboardInterrupt

  def stop(self, number: int, *unused: object) -> None:
    """The signals' handler."""
    self._signal = number

  def count(self, done: int) -> None:
    """Shows how many are done, by this process and others."""
    self._bar.update(max(0, done - self._bar.done))

  def started(self) -> None:
    """Shows what runs now."""
    for name in self._launcher.names:
      self._began.setdefault(name, time.monotonic())
    self._show(0)

  def ended(self, ended: processes.Ended) -> None:
    """Counts a job, and tells it where there is no bar or it has failed."""
    self._show(1)
    began = self._began.pop(ended.name, time.monotonic())
    spent = progress.clock(time.monotonic() - began)
    how = "failed after" if ended.error else "done in"
    if ended.error or not sys.stderr.isatty():
      count = f"{self._bar.done}/{self._bar.total}"
      self._log(f"{self._title} {count}: {ended.name}: {how} {spent}")

  def _show(self, count: int) -> None:
    names = self._launcher.names
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    self._bar.update(count, running=", ".join(names[:2]) + more or "nothing")


@contextlib.contextmanager
def following(
  total: int,
  done: int,
  title: str,
  launcher: Launcher,
  log: Callable[[str], None],
) -> Iterator[Watch]:
  """Shows progress, and turns SIGINT and SIGTERM into `Watch.check`."""
  with progress.Progress(
    total, title, initial=done, unit="job", every=math.inf
  ) as bar:
    watch = Watch(bar, launcher, log, title)
    old = {}
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        # A background job of a shell ignores SIGINT, and goes on doing so.
        if signal.getsignal(number) is not signal.SIG_IGN:
          old[number] = signal.signal(number, watch.stop)
    try:
      yield watch
    finally:
      for number, handler in old.items():
        signal.signal(number, handler)
