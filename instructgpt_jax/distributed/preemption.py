"""Ends a run on SIGTERM, with exit status 0.

Schedulers send SIGTERM before they reclaim a host. Inside a training loop the
signal is remembered until the loop asks for it, saves its state and ends;
elsewhere it ends the process. A second signal ends the process immediately.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from instructgpt_jax.distributed import processes

STOPPED = (
  "Stopped by SIGTERM; progress is saved. Rerun the same command to resume."
)


class Preempted(SystemExit):
  """Ends a run with status 0 after SIGTERM; its state is saved."""

  def __init__(self):
    super().__init__(0)


class PreemptionWatch:
  """Context manager that remembers SIGTERM until the loop asks for it.

  In the block, a training loop calls `requested` at each step. If it is true,
  the loop saves its state and raises Preempted. At the end of the block, a run
  of one process raises Preempted for a signal after the last call.
  """

  def __init__(self):
    self._signalled = False
    # Global result of the previous call of `requested`, still on the device.
    self._previous: Any = None
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> PreemptionWatch:
    self._stack.enter_context(_sigterm_handler(self._remember))
    return self

  def __exit__(self, kind: Any, *unused: object) -> None:
    self._stack.close()
    if kind is None and self._signalled and processes.process_count() == 1:
      raise Preempted

  def requested(self) -> bool:
    """Returns whether to save and end; the same value in all processes.

    All processes call this once per step. With several processes the value is
    that of the step before, which is computed already: no device waits.
    """
    if processes.process_count() == 1:
      return self._signalled
    previous, self._previous = self._previous, _any_process(self._signalled)
    return previous is not None and bool(previous)

  def _remember(self, *unused: object) -> None:
    """Handles the first SIGTERM; the next signal ends the process."""
    self._signalled = True
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, signal.SIG_DFL)


@functools.cache
def _jitted_any() -> Callable[..., Any]:
  import jax
  import jax.numpy as jnp

  return jax.jit(jnp.any)


def _any_process(value: bool) -> Any:
  """Computes whether the value is true in any process; all processes call it.

  Returns:
    [] bool, replicated. The call does not wait until it is computed.
  """
  import jax
  import numpy as np
  from jax.sharding import AxisType, NamedSharding, PartitionSpec

  mesh = jax.make_mesh(
    (jax.device_count(),), ("all",), axis_types=(AxisType.Auto,)
  )
  values = jax.make_array_from_process_local_data(
    NamedSharding(mesh, PartitionSpec("all")),
    np.full(jax.local_device_count(), value),
  )
  return _jitted_any()(values)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
  """Ends the process with status 0 as soon as SIGTERM arrives in the block.

  It is for code that has nothing to save. A PreemptionWatch inside the block
  handles the signal instead.
  """

  def end(*unused: object) -> None:
    # An exception raised here could be swallowed by a library's callback.
    # Ending the process harms no file, because each is published by a rename.
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(0)

  with _sigterm_handler(end):
    yield


@contextlib.contextmanager
def _sigterm_handler(handler: Callable[..., None]) -> Iterator[None]:
  """Installs a handler of SIGTERM, and restores SIGTERM and SIGINT at the end.

  Outside the main thread, where Python allows no handlers, it does nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  previous = {number: signal.getsignal(number) for number in numbers}
  signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    for number, old in previous.items():
      if old is not None:  # None: the handler was not installed by Python.
        signal.signal(number, old)
