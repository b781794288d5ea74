"""Jobs on a Slurm cluster, by submitit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import jobs, processes, records

FOLDER = "submitit"
_REQUEUES = 50  # times that a job may reach its time limit and go on
_ENDING = 10.0


@dataclasses.dataclass(frozen=True)
class Slurm:
  """What each job asks of the cluster; 0 and "" leave it to the cluster."""

  partition: str = ""
  minutes: int = 60
  gpus: int = 0
  cpus: int = 0
  memory_gb: float = 0.0
  # More options of sbatch, as {"account": "name"}.
  extra: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def asked(self) -> dict[str, Any]:
    """What submitit has a name of its own for."""
    wanted = dict(
      timeout_min=self.minutes,
      gpus_per_node=self.gpus,
      cpus_per_task=self.cpus,
      mem_gb=self.memory_gb,
    )
    return {name: value for name, value in wanted.items() if value}

  def asked_of_slurm(self) -> dict[str, Any]:
    """What goes to sbatch as it is."""
    wanted = dict(
      partition=self.partition, additional_parameters=dict(self.extra)
    )
    return {name: value for name, value in wanted.items() if value}


class Task:
  """A job as a cluster's machine runs it.

  Its lock makes a second copy wait, such as one that another runner submitted
  after the first had been killed. When its time is up it is queued again, and
  goes on from its checkpoint.
  """

  def __init__(self, job: jobs.Job, root: str):
    self.job, self.root = job, root

  def __call__(self) -> None:
    job, root = self.job, self.root
    with records.locked(records.lock_path(root, f"runs/{job.name}")):
      records.settle_span(root, job)
      if job.complete(root):
        return
      log = records.log_path(root, job.name)
      files.make_directory(os.path.dirname(log))
      began = time.monotonic()
      records.begin_span(root, job)
      command = job.command(root)
      with files.disk_errors_as_user_errors(log), open(log, "ab") as file:
        file.write(f"$ {jobs.shown(command)}\n".encode())
        file.flush()
        process = processes.popen(command, file)
        try:
          status = process.wait()
        finally:
          processes.end(process)
          processes.kill(process)
          records.end_span(root, job.name, time.monotonic() - began)
      if status or not job.complete(root):
        raise RuntimeError(processes.ending(status))

  def checkpoint(self) -> Any:
    """What submitit queues when this one's time is up."""
    return submitit().helpers.DelayedSubmission(self)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
  """What is started inside ends when it is interrupted.

  A shell has its background jobs ignore that, and they hand it on; submitit
  cancels its own local jobs so.
  """
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    yield
    return
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Submitit:
  """Submits jobs, at most so many at once, and waits for them."""

  poll = 1.0

  def __init__(self, root: str, workers: int, cluster: str, slurm: Slurm):
    self._root, self._cluster = root, cluster
    self._workers = workers if workers > 0 else 1_000_000
    if cluster == "local":
      self.poll = 0.2
    self._running: dict[str, tuple[Any, int]] = {}
    self._executor = self._open(slurm)

  def _open(self, slurm: Slurm) -> Any:
    try:
      executor = submitit().AutoExecutor(
        os.path.join(self._root, FOLDER),
        cluster=self._cluster,
        slurm_max_num_timeout=_REQUEUES,
      )
    except RuntimeError as error:
      raise UserError(
        "there is no Slurm on this machine: srun is not found",
        field="--launcher",
        fix="start the sweep on a login node, or give --launcher=local",
      ) from error
    more = {f"slurm_{k}": v for k, v in slurm.asked_of_slurm().items()}
    executor.update_parameters(**slurm.asked(), **more)
    return executor

  @property
  def names(self) -> list[str]:
    """What is queued or running."""
    return list(self._running)

  @property
  def free(self) -> int:
    """How many more jobs may be submitted."""
    return self._workers - len(self._running)

  def start(self, job: jobs.Job, lock: int, alone: bool = False) -> None:
    """Submits a job. The lock stays with this process."""
    del lock, alone
    log = records.log_path(self._root, job.name)
    start = os.path.getsize(log) if os.path.exists(log) else 0
    short = job.name.replace("/", ".")
    if self._cluster == "slurm":
      self._executor.update_parameters(slurm_job_name=short)
    with _interruptible():
      submitted = self._executor.submit(Task(job, self._root))
    self._running[job.name] = (submitted, start)

  def ended(self) -> list[processes.Ended]:
    """Those that have ended since the last call."""
    found = []
    for name, (submitted, start) in list(self._running.items()):
      if submitted.done():
        del self._running[name]
        failure = submitted.exception()
        found.append(processes.Ended(name, self._error(name, start, failure)))
    return found

  def _error(self, name: str, start: int, failure: Any) -> str:
    if failure is None:
      return ""
    lines = str(failure).splitlines()
    raised = [line for line in lines if "Error: " in line]
    # Without an error of ours, the first lines have what Slurm says.
    how = raised[-1] if raised else " ".join(lines[:2])
    log = records.last_lines(records.log_path(self._root, name), start)
    return f"{how}\n{log}"

  def stop(self) -> None:
    """Cancels all that is queued or running."""
    left = [submitted for submitted, _ in self._running.values()]
    for submitted in left:
      submitted.cancel(check=False)
    until = time.monotonic() + _ENDING
    # Slurm ends them itself; here it is seen to.
    while self._cluster == "local" and time.monotonic() < until:
      if all(submitted.done() for submitted in left):
        break
      time.sleep(0.05)
    self._running.clear()


def batch_script(root: str, slurm: Slurm, name: str) -> str:
  """The text that would be given to sbatch for a job; needs no Slurm."""
  executors = submitit().SlurmExecutor

  class Anywhere(executors):
    """Does not look for srun."""

    @classmethod
    def affinity(cls) -> int:
      return 2

  executor = Anywhere(os.path.join(root, FOLDER), max_num_timeout=_REQUEUES)
  asked = {**slurm.asked(), "name": name.replace("/", ".")}
  executor.update_parameters(
    **executor._convert_parameters(asked), **slurm.asked_of_slurm()
  )
  return executor._make_submission_file_text(
    executor._submitit_command_str, "0"
  )


def submitit() -> ModuleType:
  """The package; a UserError where it is not installed."""
  try:
    import submitit
    import submitit.helpers
  except ImportError as error:
    raise UserError(
      "the package submitit is not installed",
      field="--launcher",
      fix="pip install submitit (extra 'sweeps'), or give --launcher=local",
    ) from error
  return submitit
