"""SIGTERM: a run that is asked to end saves first, and ends with status 0.

Schedulers send it before they take a machine away. A second signal ends the
process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from instructgpt_jax.distributed import processes

STOPPED = "ended as asked (SIGTERM); the same command goes on from here"


class Preempted(SystemExit):
  """The run was asked to end, and what it has done is saved."""

  def __init__(self):
    super().__init__(0)


class PreemptionWatch:
  """During the block SIGTERM is remembered, for a loop to ask for."""

  def __init__(self):
    self._asked = False
    self._told: Any = None
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> PreemptionWatch:
    self._stack.enter_context(_handled(self._remember))
    return self

  def __exit__(self, kind: Any, *unused: object) -> None:
    self._stack.close()
    if kind is None and self._asked and processes.process_count() == 1:
      raise Preempted

  def requested(self) -> bool:
    """Whether to save and end; all processes hear the same.

    Each of them calls this at every step. What one of several knows is heard a
    step later, so that no device has to wait for it.
    """
    if processes.process_count() == 1:
      return self._asked
    from instructgpt_jax.distributed import agreement

    before, self._told = self._told, agreement.any_process(self._asked)
    return before is not None and bool(before)

  def _remember(self, *unused: object) -> None:
    self._asked = True
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
  """During the block SIGTERM ends the process: nothing is there to be saved."""

  def end(*unused: object) -> None:
    # Not an exception: one that meets a callback is lost. No file is harmed,
    # each is whole or absent.
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(0)

  with _handled(end):
    yield


@contextlib.contextmanager
def _handled(handler: Callable[..., None]) -> Iterator[None]:
  """Handles SIGTERM; both signals are as they were after the block."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.getsignal(number) for number in numbers}
  signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    for number, old in before.items():
      if old is not None:  # None is not Python's to put back.
        signal.signal(number, old)
