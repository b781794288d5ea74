"""Detects which process of a run this is, from flags or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError


class ProcessInfo(NamedTuple):
  """The processes of a run, and which of them this one is."""

  host: str  # of process 0
  port: int  # of process 0
  count: int  # number of processes
  index: int  # of this process


def detect(
  section: configs.Processes, env: Mapping[str, str] = os.environ
) -> ProcessInfo | None:
  """Detects which process of a run this is.

  Args:
    section: the flags --processes.*.
    env: environment variables. With --processes.coordinator=auto they must
      contain JAX's own variables, Slurm's, or those of a TPU slice.

  Returns:
    The process, or None if the run has only one.

  Raises:
    UserError: `bad_address` or `bad_index`, a flag is invalid; `no_cluster` or
      `bad_environment`, the address is "auto" and the variables are missing or
      invalid.
  """
  if not section.coordinator:
    return None
  if section.coordinator == "auto":
    address, count, index = _detect_from_environment(env)
  else:
    address, count, index = section.coordinator, section.count, section.index
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(
      f"{address!r} is not an address",
      field="processes.coordinator",
      fix="use HOST:PORT of process 0, or auto",
      code="bad_address",
    )
  if not 0 <= index < count:
    raise UserError(
      f"index {index} is out of range for {count} processes",
      field="processes.index",
      fix="use --processes.count=N and --processes.index from 0 to N - 1",
      code="bad_index",
    )
  if count == 1:
    return None
  # An IPv6 address is in brackets.
  return ProcessInfo(host.strip("[]"), int(port), count, index)


def _detect_from_environment(
  env: Mapping[str, str],
) -> tuple[str, int, int]:
  """Returns the address of process 0, the number of processes and the index."""
  if "JAX_COORDINATOR_ADDRESS" in env:
    index_name = "JAX_PROCESS_ID"
    if index_name not in env and "JOB_COMPLETION_INDEX" in env:
      index_name = "JOB_COMPLETION_INDEX"  # set by indexed Kubernetes jobs
    return (
      env["JAX_COORDINATOR_ADDRESS"],
      _integer(env, "JAX_NUM_PROCESSES"),
      _integer(env, index_name),
    )
  if "SLURM_PROCID" in env:
    nodes = env.get("SLURM_STEP_NODELIST") or _text(env, "SLURM_JOB_NODELIST")
    # The processes of a job derive the same port. Two jobs rarely do.
    port = 20_000 + _integer(env, "SLURM_JOB_ID") % 10_000
    return (
      f"{first_node(nodes)}:{port}",
      _integer(env, "SLURM_NTASKS"),
      _integer(env, "SLURM_PROCID"),
    )
  if "TPU_WORKER_HOSTNAMES" in env:
    hosts = env["TPU_WORKER_HOSTNAMES"].split(",")
    # The workers have no variable for a port; all use this one.
    return f"{hosts[0]}:8476", len(hosts), _integer(env, "TPU_WORKER_ID")
  raise UserError(
    "is auto, but the environment has no variables of Slurm or a TPU slice,"
    " and no JAX_COORDINATOR_ADDRESS",
    field="processes.coordinator",
    fix="use HOST:PORT, --processes.count and --processes.index",
    code="no_cluster",
  )


def _text(env: Mapping[str, str], name: str) -> str:
  if name not in env:
    raise _environment_error(f"the environment variable {name} is missing")
  return env[name]


def _integer(env: Mapping[str, str], name: str) -> int:
  text = _text(env, name)
  try:
    return int(text)
  except ValueError as error:
    raise _environment_error(
      f"the environment variable {name} is {text!r}, not an integer"
    ) from error


def _environment_error(problem: str) -> UserError:
  return UserError(
    f"is auto, but {problem}",
    field="processes.coordinator",
    fix="use HOST:PORT, --processes.count and --processes.index",
    code="bad_environment",
  )


def first_node(nodes: str) -> str:
  """Returns the first host of a Slurm list: n003 of "n[003-005,9],m1"."""
  match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
  if match is None:
    raise _environment_error(f"Slurm's node list {nodes!r} names no host")
  return "".join(part or "" for part in match.groups())
