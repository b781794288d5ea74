"""Times steps, and measures load and limits of the host and its device."""

from __future__ import annotations

import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

# A step is clean when other processes used fewer cores than this.
FOREIGN_CORES = 0.15
CLEAN_STEPS = 5
_TICKS = os.sysconf("SC_CLK_TCK")


def _busy() -> float:
  """Returns the CPU seconds of all processes, stolen time included."""
  with open("/proc/stat", encoding="ascii") as file:
    ticks = [int(x) for x in file.readline().split()[1:]]
  user, nice, system, _, _, interrupts, soft, stolen = ticks[:8]
  return (user + nice + system + interrupts + soft + stolen) / _TICKS


def _own_seconds() -> float:
  """Returns the CPU seconds of this process."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns median, minimum, maximum and count."""
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
    "n": len(values),
  }


def time_steps(
  step: Callable[[int], Any], count: int, warmup: int
) -> dict[str, Any]:
  """Times each of `count` steps after `warmup` steps.

  Returns:
    `first_step_s`; `step_s`, the spread over the clean steps (all steps, and
    `contaminated` true, where fewer than 5 were clean); `foreign_cores`.
  """
  seconds, foreign = [], []
  for index in range(warmup + count):
    busy, process, began = _busy(), _own_seconds(), time.perf_counter()
    jax.block_until_ready(step(index))
    seconds.append(time.perf_counter() - began)
    others = (_busy() - busy) - (_own_seconds() - process)
    foreign.append(max(others, 0.0) / seconds[-1])
  timed = list(zip(seconds, foreign, strict=True))[warmup:]
  clean = [s for s, f in timed if f < FOREIGN_CORES]
  contaminated = len(clean) < min(CLEAN_STEPS, count)
  return {
    "first_step_s": seconds[0],
    "step_s": spread([s for s, _ in timed] if contaminated else clean),
    "foreign_cores": spread([f for _, f in timed]),
    "contaminated": contaminated,
  }


def peak_memory_mib() -> float:
  """Returns the peak memory of the device; on a CPU, of this process."""
  stats = jax.devices()[0].memory_stats()
  if stats:
    return stats["peak_bytes_in_use"] / 2**20
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
      return int(line.split()[1]) / 1024
  raise RuntimeError("/proc/self/status has no VmHWM")


def _best(run: Callable[[], Any], seconds: float) -> float:
  """Returns the minimum time of a call over some seconds of calls."""
  jax.block_until_ready(run())
  least, end = float("inf"), time.perf_counter() + seconds
  while time.perf_counter() < end:
    began = time.perf_counter()
    jax.block_until_ready(run())
    least = min(least, time.perf_counter() - began)
  return least


def ceilings(dtype: str = "float32", seconds: float = 2.0) -> dict[str, float]:
  """Measures the device's limits: matmuls, copying and reading.

  Returns:
    `gflops`, the best of square matmuls; `copy_gb_per_s`, bytes read and
    written when a large array is copied; `read_gb_per_s`, when it is summed.
  """
  cpu = jax.default_backend() == "cpu"
  best = 0.0
  for side in (1024, 2048) if cpu else (4096, 8192):
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    least = _best(lambda a=a, product=product: product(a, a), seconds / 2)
    best = max(best, 2 * side**3 / least / 1e9)
  # Donation writes to the same memory, so that no page is new.
  copy = jax.jit(lambda x: x * 1.0000001, donate_argnums=0)
  arrays = [jnp.ones((64 if cpu else 512, 1024, 1024), jnp.float32)]

  def copy_once():
    arrays[0] = copy(arrays[0])
    return arrays[0]

  copied = 2 * arrays[0].nbytes / _best(copy_once, seconds / 2) / 1e9
  total = jax.jit(jnp.sum)
  read = arrays[0].nbytes / _best(lambda: total(arrays[0]), seconds / 2) / 1e9
  return {"gflops": best, "copy_gb_per_s": copied, "read_gb_per_s": read}


def versions() -> dict[str, str]:
  """Returns the versions of Python and libraries."""
  names = {"python": platform.python_version()}
  for name in ("jax", "jaxlib", "flax", "optax"):
    names[name] = metadata.version(name)
  return names


def machine() -> dict[str, Any]:
  """Returns device, cores and load of the host."""
  return {
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],
    "malloc": os.environ.get("GLIBC_TUNABLES", ""),
  }
