"""The device at hand: platform, number and memory."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from instructgpt_jax.distributed import processes
from instructgpt_jax.planner import hardware

_MEMINFO = "/proc/meminfo"
_CONTAINER_LIMITS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
# Share of the free memory that a run may use, beside other programs.
_CPU_SHARE = 0.6


class Device(NamedTuple):
  """The devices of a run.

  Attributes:
    platform: "cpu", "cuda" or "tpu".
    count: number of devices of the run.
    memory: bytes that the run may use on one of them; None if unknown.
  """

  platform: str
  count: int
  memory: float | None


def find_device() -> Device:
  """Returns the devices of this run, with the least memory of all processes."""
  platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
  if platform == "cpu":
    free = available_memory()
    memory = free and _CPU_SHARE * free / jax.local_device_count()
  else:
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    memory = limit and (1 - hardware.MARGIN) * limit
  if processes.process_count() > 1:
    memory = _least(memory)
  return Device(platform, jax.device_count(), memory)


def _least(memory: float | None) -> float | None:
  """Returns the least memory of all processes; None if one is unknown."""
  from jax.experimental import multihost_utils

  # In MiB, which float32 holds.
  mebibytes = np.float32((memory or 0) / 2**20)
  least = float(np.min(multihost_utils.process_allgather(mebibytes)))
  return least * 2**20 or None


def available_memory() -> float | None:
  """Returns the bytes of main memory that new programs can use."""
  limits = [_read(path).strip() for path in _CONTAINER_LIMITS]
  bounds = [float(text) for text in limits if text.isdigit()]  # not "max"
  for line in _read(_MEMINFO).splitlines():
    if line.startswith("MemAvailable:"):
      bounds.append(1024.0 * int(line.split()[1]))
  return min(bounds) if bounds else _physical_memory()


def _physical_memory() -> float | None:
  names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
  if not set(names) <= set(getattr(os, "sysconf_names", ())):
    return None
  size, pages = (os.sysconf(name) for name in names)
  return float(size * pages)


def _read(path: str) -> str:
  """Returns a file's text; "" where the system has no such file."""
  try:
    return pathlib.Path(path).read_text()
  except OSError:
    return ""
