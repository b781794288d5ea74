"""Which process of a run this is, by flags or by what a scheduler says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError


class ProcessInfo(NamedTuple):
  """Which process of a run this is."""

  host: str
  port: int
  count: int
  index: int


def detect(
  section: configs.Processes, env: Mapping[str, str] = os.environ
) -> ProcessInfo | None:
  """Where this process stands; None when it is alone.

  Args:
    section: the flags.
    env: for `auto`: variables of Slurm, of a TPU slice, or JAX's own.

  Raises:
    UserError: the flags or the variables do not say it.
  """
  if not section.coordinator:
    return None
  if section.coordinator == "auto":
    address, number, index = _detected(env)
  else:
    address, number, index = section.coordinator, section.count, section.index
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(
      f"{address!r} is not an address",
      field="processes.coordinator",
      fix="give HOST:PORT of process 0, or auto",
    )
  if not 0 <= index < number:
    raise UserError(
      f"process {index} is not one of {number}",
      field="processes.index",
      fix="give --processes.count=N and --processes.index from 0 to N - 1",
    )
  if number == 1:
    return None
  return ProcessInfo(host.strip("[]"), int(port), number, index)


def _detected(env: Mapping[str, str]) -> tuple[str, int, int]:
  """Address of process 0, number of processes, and which one this is."""
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
      f"is auto, but {error} in the environment does not say which process"
      " this is",
      field="processes.coordinator",
      fix="give HOST:PORT, --processes.count and --processes.index",
    ) from error
  raise UserError(
    "is auto, but neither Slurm, nor a TPU slice, nor JAX_COORDINATOR_ADDRESS"
    " is in the environment",
    field="processes.coordinator",
    fix="give HOST:PORT, --processes.count and --processes.index",
  )


def first_node(nodes: str) -> str:
  """The first host of Slurm's list: "n[003-005,9],m1" begins with n003."""
  found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
  if found is None:
    raise ValueError(f"node list {nodes!r}")
  return "".join(part or "" for part in found.groups())
