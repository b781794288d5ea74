"""Detects which process of a run this is, from flags or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError


class ProcessInfo(NamedTuple):
  """The address of process 0, the number of processes and this one's index."""

  host: str
  port: int
  count: int
  index: int


def detect(
  section: configs.Processes, env: Mapping[str, str] = os.environ
) -> ProcessInfo | None:
  """Detects which process of a run this is.

  Args:
    section: the flags.
    env: environment variables. With --processes.coordinator=auto they must
      contain JAX's own variables, Slurm's, or those of a TPU slice.

  Returns:
    The process, or None if the run has only one.

  Raises:
    UserError: the flags or variables are incomplete or invalid.
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
  return ProcessInfo(host.strip("[]"), int(port), count, index)


def _detect_from_environment(
  env: Mapping[str, str],
) -> tuple[str, int, int]:
  """Returns the address of process 0, the number of processes and the index."""
  try:
    if "JAX_COORDINATOR_ADDRESS" in env:
      index = env.get("JAX_PROCESS_ID", env.get("JOB_COMPLETION_INDEX"))
      if index is None:
        raise KeyError("JAX_PROCESS_ID")
      return (
        env["JAX_COORDINATOR_ADDRESS"],
        int(env["JAX_NUM_PROCESSES"]),
        int(index),
      )
    if "SLURM_PROCID" in env:
      nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
      port = 20_000 + int(env["SLURM_JOB_ID"]) % 10_000
      address = f"{first_node(nodes)}:{port}"
      return address, int(env["SLURM_NTASKS"]), int(env["SLURM_PROCID"])
    if "TPU_WORKER_HOSTNAMES" in env:
      hosts = env["TPU_WORKER_HOSTNAMES"].split(",")
      return f"{hosts[0]}:8476", len(hosts), int(env["TPU_WORKER_ID"])
  except (KeyError, ValueError) as error:
    raise UserError(
      f"is auto, but {error} is missing or invalid in the environment",
      field="processes.coordinator",
      fix="use HOST:PORT, --processes.count and --processes.index",
      code="bad_environment",
    ) from error
  raise UserError(
    "is auto, but the environment has no variables of Slurm or a TPU slice,"
    " and no JAX_COORDINATOR_ADDRESS",
    field="processes.coordinator",
    fix="use HOST:PORT, --processes.count and --processes.index",
    code="no_cluster",
  )


def first_node(nodes: str) -> str:
  """Returns the first host of a Slurm list: n003 of "n[003-005,9],m1"."""
  match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
  if match is None:
    raise ValueError(f"node list {nodes!r}")
  return "".join(part or "" for part in match.groups())
