"""Launcher for Slurm clusters, through submitit."""

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

DIRECTORY = "submitit"
_MAX_REQUEUES = 50  # times that a job may be queued again at its time limit
_CANCEL_TIMEOUT = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class Slurm:
  """Resources of each job; the cluster decides where a value is 0 or "".

  Attributes:
    partition: Slurm partition.
    minutes: time limit in minutes.
    gpus: accelerators.
    cpus: CPU cores.
    memory_gb: memory in GB.
    extra: further options of sbatch, as {"account": "name"}.
  """

  partition: str = ""
  minutes: int = 60
  gpus: int = 0
  cpus: int = 0
  memory_gb: float = 0.0
  extra: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def submitit_options(self) -> dict[str, Any]:
    """Returns the options that submitit has names for."""
    options = dict(
      timeout_min=self.minutes,
      gpus_per_node=self.gpus,
      cpus_per_task=self.cpus,
      mem_gb=self.memory_gb,
    )
    return {name: value for name, value in options.items() if value}

  def sbatch_options(self) -> dict[str, Any]:
    """Returns the options that go to sbatch unchanged."""
    options = dict(
      partition=self.partition, additional_parameters=dict(self.extra)
    )
    return {name: value for name, value in options.items() if value}


class ClusterTask:
  """Job as a host of the cluster runs it.

  A lock makes a second copy wait, such as one that a new runner submits after
  the first runner was killed. At its time limit, the job is queued again and
  resumes from its checkpoint.
  """

  def __init__(self, job: jobs.Job, root: str):
    self.job, self.root = job, root

  def __call__(self) -> None:
    job, root = self.job, self.root
    with records.locked(records.lock_path(root, f"runs/{job.name}")):
      records.settle_span(root, job)
      if job.is_complete(root):
        return
      log = records.log_path(root, job.name)
      files.make_directory(os.path.dirname(log))
      began = time.monotonic()
      records.begin_span(root, job)
      command = job.command(root)
      with files.disk_errors_as_user_errors(log), open(log, "ab") as file:
        file.write(f"$ {jobs.shell_line(command)}\n".encode())
        file.flush()
        process = processes.start_process(command, file)
        try:
          status = process.wait()
        finally:
          processes.terminate(process)
          processes.wait_or_kill(process)
          records.end_span(root, job.name, time.monotonic() - began)
      if status or not job.is_complete(root):
        raise RuntimeError(processes.describe_exit(status))

  def checkpoint(self) -> Any:
    """Returns what submitit queues at the time limit."""
    return load_submitit().helpers.DelayedSubmission(self)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
  """Restores the default action of SIGINT for processes started inside.

  A background job of a shell ignores SIGINT, and its children inherit this.
  Submitit cancels local jobs with SIGINT.
  """
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    yield
    return
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class SubmititLauncher:
  """Launcher that submits jobs, at most `workers` at once."""

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
      executor = load_submitit().AutoExecutor(
        os.path.join(self._root, DIRECTORY),
        cluster=self._cluster,
        slurm_max_num_timeout=_MAX_REQUEUES,
      )
    except RuntimeError as error:
      raise UserError(
        "no Slurm on this host: srun is not installed",
        field="--launcher",
        fix="start the sweep on a login node, or give --launcher=local",
        code="no_slurm",
      ) from error
    more = {f"slurm_{k}": v for k, v in slurm.sbatch_options().items()}
    executor.update_parameters(**slurm.submitit_options(), **more)
    return executor

  @property
  def running(self) -> list[str]:
    """Returns the names of queued and running jobs."""
    return list(self._running)

  @property
  def free_slots(self) -> int:
    """Returns how many more jobs may be submitted."""
    return self._workers - len(self._running)

  def start(self, job: jobs.Job, lock: int, alone: bool = False) -> None:
    """Submits a job; this process keeps the lock."""
    del lock, alone
    log = records.log_path(self._root, job.name)
    start = os.path.getsize(log) if os.path.exists(log) else 0
    job_name = job.name.replace("/", ".")
    if self._cluster == "slurm":
      self._executor.update_parameters(slurm_job_name=job_name)
    with _interruptible():
      submitted = self._executor.submit(ClusterTask(job, self._root))
    self._running[job.name] = (submitted, start)

  def pop_finished(self) -> list[processes.FinishedJob]:
    """Returns the jobs that have ended since the last call."""
    finished = []
    for name, (submitted, start) in list(self._running.items()):
      if submitted.done():
        del self._running[name]
        failure = submitted.exception()
        finished.append(
          processes.FinishedJob(name, self._error_text(name, start, failure))
        )
    return finished

  def _error_text(self, name: str, start: int, failure: Any) -> str:
    if failure is None:
      return ""
    lines = str(failure).splitlines()
    raised = [line for line in lines if "Error: " in line]
    # Otherwise the first lines hold Slurm's message.
    message = raised[-1] if raised else " ".join(lines[:2])
    log = records.last_lines(records.log_path(self._root, name), start)
    return f"{message}\n{log}"

  def stop(self) -> None:
    """Cancels all queued and running jobs."""
    remaining = [submitted for submitted, _ in self._running.values()]
    for submitted in remaining:
      submitted.cancel(check=False)
    until = time.monotonic() + _CANCEL_TIMEOUT
    # Slurm ends its jobs; local jobs are waited for here.
    while self._cluster == "local" and time.monotonic() < until:
      if all(submitted.done() for submitted in remaining):
        break
      time.sleep(0.05)
    self._running.clear()


def batch_script(root: str, slurm: Slurm, name: str) -> str:
  """Returns the batch script of a job; needs no Slurm."""
  executors = load_submitit().SlurmExecutor

  class Anywhere(executors):
    """Executor that does not need srun."""

    @classmethod
    def affinity(cls) -> int:
      return 2

  executor = Anywhere(
    os.path.join(root, DIRECTORY), max_num_timeout=_MAX_REQUEUES
  )
  options = {**slurm.submitit_options(), "name": name.replace("/", ".")}
  executor.update_parameters(
    **executor._convert_parameters(options), **slurm.sbatch_options()
  )
  return executor._make_submission_file_text(
    executor._submitit_command_str, "0"
  )


def load_submitit() -> ModuleType:
  """Imports submitit.

  Raises:
    UserError: it is not installed.
  """
  try:
    import submitit
    import submitit.helpers
  except ImportError as error:
    raise UserError(
      "the package submitit is not installed",
      field="--launcher",
      fix="pip install submitit (extra 'sweeps'), or give --launcher=local",
      code="missing_package",
    ) from error
  return submitit
