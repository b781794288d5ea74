"""Times of steps, what else the machine did meanwhile, and its limits."""

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

# A step is clean when everything else took fewer cores than this.
FOREIGN_CORES = 0.15
CLEAN_STEPS = 5
_TICKS = os.sysconf("SC_CLK_TCK")


def _busy() -> float:
  """Seconds that all cores have worked, or were taken by the host."""
  with open("/proc/stat", encoding="ascii") as file:
    ticks = [int(x) for x in file.readline().split()[1:]]
  user, nice, system, _, _, interrupts, soft, stolen = ticks[:8]
  return (user + nice + system + interrupts + soft + stolen) / _TICKS


def _own() -> float:
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, least, most, and of how many."""
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
    "n": len(values),
  }


def time_steps(
  step: Callable[[int], Any], count: int, warmup: int
) -> dict[str, Any]:
  """Runs a step so many times, each waited for.

  Returns:
    `first_step_s`; `step_s`, the spread over the clean steps (all steps, and
    `contaminated` true, where fewer than 5 were clean); `foreign_cores`.
  """
  seconds, foreign = [], []
  for index in range(warmup + count):
    busy, own, began = _busy(), _own(), time.perf_counter()
    jax.block_until_ready(step(index))
    seconds.append(time.perf_counter() - began)
    others = (_busy() - busy) - (_own() - own)
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
  """The most memory this process has held, on an accelerator if it has one."""
  found = jax.devices()[0].memory_stats()
  if found:
    return found["peak_bytes_in_use"] / 2**20
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
      return int(line.split()[1]) / 1024
  raise RuntimeError("/proc/self/status has no VmHWM")


def _best(run: Callable[[], Any], seconds: float) -> float:
  """The least time of a call, over so many seconds of calls."""
  jax.block_until_ready(run())
  least, end = float("inf"), time.perf_counter() + seconds
  while time.perf_counter() < end:
    began = time.perf_counter()
    jax.block_until_ready(run())
    least = min(least, time.perf_counter() - began)
  return least


def ceilings(dtype: str = "float32", seconds: float = 2.0) -> dict[str, float]:
  """What this machine can do now: products of a type, copying and reading.

  Returns:
    `gflops`, of the best of square products; `copy_gb_per_s`, bytes read and
    written when a large array is copied; `read_gb_per_s`, when it is summed.
  """
  cpu = jax.default_backend() == "cpu"
  best = 0.0
  for side in (1024, 2048) if cpu else (4096, 8192):
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    least = _best(lambda a=a, product=product: product(a, a), seconds / 2)
    best = max(best, 2 * side**3 / least / 1e9)
  # Written to where it was read from, so that no page is new.
  copy = jax.jit(lambda x: x * 1.0000001, donate_argnums=0)
  held = [jnp.ones((64 if cpu else 512, 1024, 1024), jnp.float32)]

  def turn():
    held[0] = copy(held[0])
    return held[0]

  copied = 2 * held[0].nbytes / _best(turn, seconds / 2) / 1e9
  total = jax.jit(jnp.sum)
  read = held[0].nbytes / _best(lambda: total(held[0]), seconds / 2) / 1e9
  return {"gflops": best, "copy_gb_per_s": copied, "read_gb_per_s": read}


def versions() -> dict[str, str]:
  found = {"python": platform.python_version()}
  for name in ("jax", "jaxlib", "flax", "optax"):
    found[name] = metadata.version(name)
  return found


def machine() -> dict[str, Any]:
  """The device, cores and load of the machine."""
  return {
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],
    "malloc": os.environ.get("GLIBC_TUNABLES", ""),
  }
