"""One command of a sweep, and the order in which several can run."""

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

# Folders of the root that are not a job's.
LOGS = "logs"


@dataclasses.dataclass(frozen=True)
class Job:
  """One command of a sweep, in a folder of its own below the root."""

  name: str  # the folder below the root; may contain "/"
  experiment: str  # run as python -m experiments.<experiment>
  flags: Mapping[str, Any]  # dotted flag → str, int, float or bool
  needs: tuple[str, ...] = ()  # names of jobs that must be complete before
  module: str = "experiments"  # the package that holds the experiment

  def __post_init__(self):
    first, *rest = self.name.split("/")
    if first == LOGS or any(p == "" or p[0] == "." for p in (first, *rest)):
      raise ValueError(f"{self.name!r} cannot be the folder of a job")

  def folder(self, root: str) -> str:
    """Its workdir."""
    return os.path.join(root, *self.name.split("/"))

  def command(self, root: str) -> list[str]:
    """The arguments of its process, the interpreter first."""
    return [
      sys.executable,
      "-m",
      f"{self.module}.{self.experiment}",
      f"--workdir={self.folder(root)}",
      *(f"--{name}={flag_text(value)}" for name, value in self.flags.items()),
    ]

  def complete(self, root: str) -> bool:
    """Whether it has run to its end."""
    return files.read_complete(self.folder(root)) is not None


def flag_text(value: Any) -> str:
  """A value as it stands on a command line."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def shown(command: Sequence[str]) -> str:
  """A command as a line for the shell, run at the repository's root."""
  return shlex.join(["python", *command[1:]])


def in_order(jobs: Sequence[Job]) -> list[Job]:
  """Each job once, in the given order, but what one needs stands before it.

  Raises:
    ValueError: two jobs of one name differ, a need is no job's name, or jobs
      need each other in a circle.
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
        raise ValueError(f"{job.name!r} needs {need!r}, which is no job")
  graph = {job.name: job.needs for job in named.values()}
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    circle = " needs ".join(reversed(error.args[1]))
    raise ValueError(f"jobs need each other: {circle}") from error
  order: dict[str, Job] = {}

  def put(job: Job) -> None:
    if job.name not in order:
      for need in job.needs:
        put(named[need])
      order[job.name] = job

  for job in named.values():
    put(job)
  return list(order.values())


def check_complete(job: Job, root: str) -> None:
  """Refuses a complete folder that another value of a flag has filled.

  Paths are not compared: a folder may have moved. Nor is the network, which a
  stage takes over from the one it starts from.
  """
  path = os.path.join(job.folder(root), files.CONFIG)
  if not os.path.exists(path):
    return
  held = files.read_json(path)
  config = held.get("config") if isinstance(held, dict) else None
  for name, value in job.flags.items():
    if isinstance(value, str) or name.startswith(("model.", "run.")):
      continue
    old = config
    for part in name.split("."):
      old = old.get(part) if isinstance(old, dict) else None
    if old is not None and old != value:
      raise UserError(
        f"was run with --{name}={flag_text(old)}, not {flag_text(value)}",
        file=job.folder(root),
        fix="delete it to run it again, or choose another --workdir",
      )
