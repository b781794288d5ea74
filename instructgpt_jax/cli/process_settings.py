"""Settings of a program's own process: libraries' output, threads, memory.

Programs apply these when they start; importing the package changes none.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import re
import sys
import threading
from collections.abc import MutableMapping
from importlib import metadata, util
from typing import Any

_GC_THRESHOLD = 50_000  # new objects between two collections; Python's is 700
_MIN_COMPILE_SECONDS = 0.2  # shorter compilations leave little memory to trim
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def silence_libraries() -> None:
  """Suppresses log output of libraries.

  On a full disk, orbax logs a traceback in each of its threads, and tensorstore
  reports each write whose result nobody awaits. The error itself is raised as
  well, and the program prints it.
  """
  from absl import logging

  _ignore_libtpu_without_tpu()
  logging.set_verbosity(logging.FATAL)
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _unraisable_hook


def _ignore_libtpu_without_tpu() -> None:
  """Selects the CPU if libtpu is installed on a host without a TPU.

  libtpu may be installed for the planner only. JAX would load its 70 MB and
  print several lines about the missing TPU.
  """
  import jax

  no_tpu = os.environ.get("TPU_SKIP_MDS_QUERY") == "1"  # JAX sets it then.
  other_plugins = util.find_spec("jax_plugins") or metadata.entry_points(
    group="jax_plugins"
  )
  if no_tpu and util.find_spec("libtpu") and not other_plugins:
    if jax.config.jax_platforms is None:
      jax.config.update("jax_platforms", "cpu")


def _unraisable_hook(unraisable: Any) -> None:
  """Prints exceptions that cannot be raised, except those of I/O threads."""
  in_main_thread = threading.current_thread() is threading.main_thread()
  if in_main_thread or unraisable.object is not None:
    sys.__unraisablehook__(unraisable)


def set_cpu_device_threads(env: MutableMapping[str, str] = os.environ) -> None:
  """Sets two threads per simulated CPU device, if XLA_FLAGS simulate any.

  XLA runs a program on all devices, and the next program, in one thread pool.
  With one thread per device, devices in a collective can wait forever for one
  that has no thread; XLA then ends the process after 40 seconds.
  """
  match = _DEVICE_COUNT.search(env.get("XLA_FLAGS", ""))
  if match:
    env.setdefault("PJRT_NPROC", str(2 * int(match[1])))


@functools.cache
def trim_malloc_after_compile() -> None:
  """Calls `malloc_trim` after each long compilation.

  glibc keeps freed memory for later allocations. After a few compilations that
  is a third of the memory of a small run.
  """
  if os.name != "posix":
    return
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is None:
    return  # The C library is not glibc.
  from jax import monitoring

  def listen(event: str, seconds: float, **unused: Any) -> None:
    if event == _COMPILE_EVENT and seconds > _MIN_COMPILE_SECONDS:
      trim(0)

  monitoring.register_event_duration_secs_listener(listen)


@functools.cache
def tune_gc() -> None:
  """Raises the garbage collector's threshold, and freezes imported objects.

  Tracing a program makes a million objects, and most stay alive. Scanning
  them repeatedly takes a tenth of the start-up time.
  """
  gc.freeze()
  gc.set_threshold(_GC_THRESHOLD)
