"""Jobs, which are commands of a sweep, and their order."""

from __future__ import annotations

import dataclasses
import graphlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

# Directory in the root that holds the logs.
LOGS = "logs"


@dataclasses.dataclass(frozen=True)
class Job:
  """One command of a sweep, with its own workdir.

  Attributes:
    name: workdir relative to the root; may contain "/".
    experiment: run as python -m MODULE.EXPERIMENT.
    flags: dotted flag → str, int, float or bool.
    needs: names of jobs that must be complete before.
    module: package that holds the experiment.
  """

  name: str
  experiment: str
  flags: Mapping[str, Any]
  needs: tuple[str, ...] = ()
  module: str = "experiments"

  def __post_init__(self):
    first, *rest = self.name.split("/")
    if first == LOGS or any(p == "" or p[0] == "." for p in (first, *rest)):
      raise ValueError(f"{self.name!r} cannot be the name of a job")

  def workdir(self, root: str) -> str:
    """Returns the job's workdir."""
    return os.path.join(root, *self.name.split("/"))

  def command(self, root: str) -> list[str]:
    """Returns the command line, the interpreter first."""
    return [
      sys.executable,
      "-m",
      f"{self.module}.{self.experiment}",
      f"--workdir={self.workdir(root)}",
      *(f"--{name}={format_flag(value)}" for name, value in self.flags.items()),
    ]

  def is_complete(self, root: str) -> bool:
    """Returns whether the job has run to its end."""
    return files.read_complete(self.workdir(root)) is not None


def format_flag(value: Any) -> str:
  """Formats a value for a command line."""
  return (
    str(value).lower()
    if value is None or isinstance(value, bool)
    else str(value)
  )


def shell_line(command: Sequence[str]) -> str:
  """Formats a command for a shell at the root of the repository."""
  return shlex.join(["python", *command[1:]])


def order_jobs(jobs: Sequence[Job]) -> list[Job]:
  """Orders jobs so that each comes after those that it needs.

  Duplicates are merged; otherwise the order is kept.

  Raises:
    ValueError: two jobs of one name differ, a needed job is missing, or jobs
      need each other in a cycle.
  """
  named: dict[str, Job] = {}
  for job in jobs:
    old = named.setdefault(job.name, job)
    if old.command("") != job.command(""):
      raise ValueError(f"two jobs named {job.name!r} have different commands")
    needs = tuple(dict.fromkeys((*old.needs, *job.needs)))
    named[job.name] = dataclasses.replace(old, needs=needs)
  for job in named.values():
    for need in job.needs:
      if need not in named:
        raise ValueError(f"{job.name!r} needs {need!r}, which is not a job")
  graph = {job.name: job.needs for job in named.values()}
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    cycle = " needs ".join(reversed(error.args[1]))
    raise ValueError(f"jobs need each other: {cycle}") from error
  order: dict[str, Job] = {}

  def add(job: Job) -> None:
    if job.name not in order:
      for need in job.needs:
        add(named[need])
      order[job.name] = job

  for job in named.values():
    add(job)
  return list(order.values())


def check_same_flags(job: Job, root: str) -> None:
  """Checks that a complete job was run with the same flags.

  Paths are not compared, since a directory may have moved. Nor is the network,
  which a stage inherits from the stage that it starts from.

  Raises:
    UserError: a flag had another value.
  """
  path = os.path.join(job.workdir(root), files.CONFIG)
  if not os.path.exists(path):
    return
  content = files.read_json(path)
  config = content.get("config") if isinstance(content, dict) else None
  for name, value in job.flags.items():
    if isinstance(value, str) or name.startswith(("model.", "run.")):
      continue
    old = config
    for part in name.split("."):
      old = old.get(part) if isinstance(old, dict) else None
    if old is not None and old != value:
      raise UserError(
        f"was run with --{name}={format_flag(old)}, not {format_flag(value)}",
        file=job.workdir(root),
        fix="delete it to run it again, or choose another --workdir",
        code="other_flags",
      )
