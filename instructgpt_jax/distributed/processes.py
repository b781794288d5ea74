"""The processes of one run, which start and end together.

`distributed_context` makes this process part of a run: it connects the
processes (`rendezvous.py`), starts JAX's distributed service, and ends all
processes when one fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.distributed import cluster, connection, rendezvous
from instructgpt_jax.errors import UserError

# Time for another process's error to arrive before this one reports its own,
# in seconds.
_GRACE = 3.0

_index, _count = 0, 1  # outside `distributed_context` there is one process
_failed = False  # whether this process of several has failed


def process_count() -> int:
  """Returns the number of processes of the run."""
  return _count


def is_main_process() -> bool:
  """Returns whether this is process 0, which writes the run's files."""
  return _index == 0


def barrier(name: str) -> None:
  """Waits until all processes have reached the barrier of this name."""
  if _count > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def distributed_context(
  section: configs.Processes, flags: Mapping[str, Any]
) -> Iterator[None]:
  """Makes this process part of a run during the block.

  At the end of the block it waits for the other processes, also if the block
  raises SystemExit with status 0 (SIGTERM in all processes). Another exception
  ends all processes.

  Args:
    section: the flags --processes.*; a run of one process needs none.
    flags: values that must be equal in all processes: dotted name → value.

  Raises:
    UserError: an error of `cluster.detect`; or a process did not connect in
      time, or has other flags.
  """
  info = cluster.detect(section)
  if info is None:
    yield
    return
  role = rendezvous.Coordinator if info.index == 0 else rendezvous.Participant
  endpoint = role(info, section.timeout)
  heartbeat: connection.Heartbeat | None = None
  clean_exit: SystemExit | None = None
  try:
    port = endpoint.connect(dict(flags))
    heartbeat = connection.Heartbeat(
      endpoint.send, section.timeout, flags.get("workdir")
    )
    _start_jax(info, port, section)
    _set_process(info.index, info.count)
    endpoint.monitor()
    try:
      yield
    except SystemExit as error:
      if error.code:
        raise
      clean_exit = error
    endpoint.finish()
  except BaseException as error:
    _report_failure(error, endpoint)
    raise
  finally:
    _set_process(0, 1)
    if heartbeat is not None:
      heartbeat.stop()
    endpoint.close()
  if clean_exit is not None:
    raise clean_exit


def exit_after_error(status: int) -> None:
  """Exits immediately if this process of several has failed.

  At a normal exit JAX would wait for the other processes.
  """
  if _failed:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _report_failure(
  error: BaseException,
  endpoint: rendezvous.Coordinator | rendezvous.Participant,
) -> None:
  """Sends the other processes the reason why this one ends."""
  global _failed
  if not isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
    # A collective also fails if another process has ended. The message of that
    # process has the cause. Once it arrives, `monitor` ends this process.
    time.sleep(_GRACE)
  _failed = True
  if isinstance(error, KeyboardInterrupt):
    reason = "interrupted"
  else:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
  endpoint.fail(reason)


def _set_process(index: int, count: int) -> None:
  global _index, _count
  _index, _count = index, count


def _start_jax(
  info: cluster.ProcessInfo, port: int, section: configs.Processes
) -> None:
  """Starts JAX's distributed service, or connects to it."""
  import jax

  # Without recoverability, JAX aborts this process with a stack trace when
  # another one ends, before the rendezvous can name it.
  jax.config.update("jax_enable_recoverability", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  host = f"[{info.host}]" if ":" in info.host else info.host
  bind_host = rendezvous.bind_host(info.host) or "[::]"
  jax.distributed.initialize(
    f"{host}:{port}",
    info.count,
    info.index,
    initialization_timeout=max(1, round(section.timeout)),
    coordinator_bind_address=f"{bind_host}:{port}",
  )
