"""Connects the processes of one run, which start and end together.

Process 0 listens at the coordinator's address. The others send it their index
and their flags, and keep the connection: where one ends early, or never comes,
all end with one error that names it. Each sends heartbeats, so a frozen process
is named as well. JAX's own service, which ends a
process with a stack trace, starts when everyone is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.distributed import cluster
from instructgpt_jax.errors import UserError

ENDED_EARLY = 1  # exit status of a process because of another one
_GRACE = 3.0  # seconds
_LINE = 1 << 22  # most bytes of a message
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FIX = "see its own error; the same command resumes from the last checkpoint"
_FIX_SILENT = (
  "see whether it is stopped, or its disk or network hangs; the same command"
  " resumes from the last checkpoint. --processes.timeout is how long a process"
  " may be silent"
)
_BEATS = 10  # heartbeats within processes.timeout
_SELDOM = 5.0  # seconds between two of them at most


_index, _count = 0, 1
_failed = False  # this process, of several


def process_count() -> int:
  """How many processes there are."""
  return _count


def is_main_process() -> bool:
  """Whether this process is the one that writes what all of them know."""
  return _index == 0


def barrier(name: str) -> None:
  """Waits until all processes have come here."""
  if _count > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def distributed_context(
  section: configs.Processes, flags: Mapping[str, Any]
) -> Iterator[None]:
  """During the block this process is one of its run's.

  Args:
    section: the flags.
    flags: values on which all processes must agree: dotted name → value.

  Raises:
    UserError: a process did not come in time, or has other flags.
  """
  place = cluster.detect(section)
  if place is None:
    yield
    return
  line = (_Server if place.index == 0 else _Client)(place, section.timeout)
  beats: _Heartbeat | None = None
  try:
    port = line.meet(dict(flags))
    beats = _Heartbeat(line.say, section.timeout, flags.get("workdir"))
    _start_jax(place, port, section)
    _set(place.index, place.count)
    line.watch()
    try:
      yield
    except SystemExit as error:  # as all were asked to
      if error.code:
        raise
      line.leave()
      raise
    line.leave()
  except BaseException as error:
    if not isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
      # A collective fails where another process has ended, which is the reason
      # to tell; the word of it may be on its way.
      time.sleep(_GRACE)
    global _failed
    _failed = True
    line.fail(_first_line(error))
    raise
  finally:
    _set(0, 1)
    if beats is not None:
      beats.stop()
    line.close()


def end_after_error(status: int) -> None:
  """Ends a process of several at once: JAX would wait for the others."""
  if _failed:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error: BaseException) -> str:
  if isinstance(error, KeyboardInterrupt):
    return "interrupted"
  return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _set(index: int, number: int) -> None:
  global _index, _count
  _index, _count = index, number


def _start_jax(
  found: cluster.ProcessInfo, port: int, section: configs.Processes
) -> None:
  import jax

  # A peer's end is told here; JAX would end this process with a stack trace.
  jax.config.update("jax_enable_recoverability", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  host = f"[{found.host}]" if ":" in found.host else found.host
  jax.distributed.initialize(
    f"{host}:{port}",
    found.count,
    found.index,
    initialization_timeout=max(1, round(section.timeout)),
    coordinator_bind_address=f"{_bound(found.host) or '[::]'}:{port}",
  )


def _stop_jax() -> None:
  import jax

  jax.distributed.shutdown()


def _bound(host: str) -> str:
  """Where to listen: a loopback address stays one."""
  return host if host in _LOOPBACK else ""


class _Line:
  """Messages of JSON, a line each, between process 0 and one other."""

  def __init__(self, connection: socket.socket):
    self._socket = connection
    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A machine that is gone says nothing: it is asked every few seconds.
    for name, value in (("KEEPIDLE", 10), ("KEEPINTVL", 5), ("KEEPCNT", 4)):
      if hasattr(socket, f"TCP_{name}"):
        number = getattr(socket, f"TCP_{name}")
        with contextlib.suppress(OSError):  # not of a pair without addresses
          self._socket.setsockopt(socket.IPPROTO_TCP, number, value)
    self._unread = b""
    self._sending = threading.Lock()

  def say(self, **message: Any) -> None:
    """Sends a message; nothing happens where nobody is left to hear it."""
    with contextlib.suppress(OSError), self._sending:
      self._socket.sendall(json.dumps(message).encode() + b"\n")

  def hear(self, seconds: float) -> dict[str, Any] | None:
    """The next message; None where the other side is gone or too slow."""
    try:
      return self._next(seconds)
    except (OSError, ValueError):
      return None

  def follow(self, seconds: float, name: str) -> dict[str, Any] | None:
    """Returns the next message but heartbeats; None if the other side is gone.

    Args:
      seconds: how long the other side may be silent; half of it is warned of.
      name: what the other side is called.

    Raises:
      TimeoutError: not even a heartbeat has come for so long.
    """
    warned = False
    while True:
      try:
        message = self._next(seconds / 2)
      except TimeoutError:
        if warned:
          raise
        warned = True
        _warn(
          f"{name} has sent nothing for {seconds / 2:g} s; after"
          f" {seconds:g} s all processes end"
        )
        continue
      except (OSError, ValueError):
        return None
      if "beat" not in message:
        return message
      if warned:
        _warn(f"{name} is there again")
        warned = False

  def _next(self, seconds: float) -> dict[str, Any]:
    """Returns the next message.

    Raises:
      TimeoutError: it has not come in time; the part that has is kept.
      ConnectionError: the other side is gone.
      ValueError: it is no message.
    """
    until = time.monotonic() + seconds
    while b"\n" not in self._unread:
      self._socket.settimeout(max(1e-3, until - time.monotonic()))
      try:
        more = self._socket.recv(1 << 16)
      except TimeoutError as error:
        if error.errno is None:
          raise
        raise ConnectionError from error  # by TCP's own count
      if not more or len(self._unread) > _LINE:
        raise ConnectionError
      self._unread += more
    line, _, self._unread = self._unread.partition(b"\n")
    message = json.loads(line)
    if not isinstance(message, dict):
      raise ValueError(f"{message!r} is no message")
    return message

  def close(self) -> None:
    """Ends the connection."""
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    self._socket.close()


class _Heartbeat:
  """A thread that shows other processes that this one is not frozen.

  It also asks the workdir's file system each time: where that hangs, so does
  the thread, and the process is named.
  """

  def __init__(
    self, say: Callable[..., None], timeout: float, workdir: str | None
  ):
    self._say, self._workdir = say, workdir
    self._every = min(_SELDOM, timeout / _BEATS)
    self._over = threading.Event()
    threading.Thread(target=self._beat, daemon=True).start()

  def _beat(self) -> None:
    while not self._over.wait(self._every):
      if self._workdir:
        with contextlib.suppress(OSError):  # it may not exist as yet
          os.statvfs(self._workdir)
      self._say(beat=True)

  def stop(self) -> None:
    """Ends the thread."""
    self._over.set()


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)


def _silent(name: str, seconds: float) -> str:
  return f"{name} has been silent for {seconds:g} s: it is frozen"


def _end(error: str, fix: str = _FIX) -> None:
  """Ends this process because of another one."""
  print(f"error: {error}\n  fix: {fix}", file=sys.stderr, flush=True)
  os._exit(ENDED_EARLY)


class _Server:
  """Process 0's end of all lines."""

  def __init__(self, found: cluster.ProcessInfo, timeout: float):
    self._place, self._timeout = found, timeout
    self._lines: dict[int, _Line] = {}
    self._spare: list[_Line] = []  # of a number that is given twice
    self._left: set[int] = set()
    self._changed = threading.Condition()
    family = socket.AF_INET6 if ":" in found.host else socket.AF_INET
    try:
      self._listener = socket.create_server(
        (_bound(found.host), found.port), family=family, backlog=found.count
      )
    except OSError as error:
      raise UserError(
        f"cannot listen at {found.host}:{found.port}"
        f" ({error.strerror or error})",
        field="processes.coordinator",
        fix="give a port that is free",
      ) from error

  def meet(self, told: dict[str, Any]) -> int:
    """Waits for all; the port of JAX's service."""
    until = time.monotonic() + self._timeout
    problems: list[tuple[str, str]] = []
    while len(self._lines) + len(self._spare) < self._place.count - 1:
      self._listener.settimeout(max(1e-3, until - time.monotonic()))
      try:
        connection, _ = self._listener.accept()
      except OSError:
        problems.append(self._missing())
        break
      line = _Line(connection)
      first = line.hear(5)
      if first is None or first.get("index") not in range(1, self._place.count):
        line.close()  # not one of ours
      elif first["index"] in self._lines:
        self._spare.append(line)
        problems.append(
          (
            f"two processes say that they are number {first['index']}",
            "give each its own --processes.index",
          )
        )
      else:
        self._lines[first["index"]] = line
        problems += self._differences(first, told)
    if problems:  # when all are here to be told
      problem, fix = problems[0]
      for line in (*self._lines.values(), *self._spare):
        line.say(error=problem, fix=fix)
      raise UserError(problem, field="processes", fix=fix)
    with socket.create_server((_bound(self._place.host), 0)) as free:
      port = free.getsockname()[1]
    for line in self._lines.values():
      line.say(port=port)
    return port

  def _missing(self) -> tuple[str, str]:
    others = sorted(set(range(1, self._place.count)) - set(self._lines))
    return (
      f"of {self._place.count} processes, number"
      f" {', '.join(map(str, others))} did not come within"
      f" {self._timeout:g} s",
      "see that each was started with the same --processes.coordinator and can"
      " reach it; --processes.timeout is how long to wait",
    )

  def _differences(
    self, first: dict[str, Any], told: dict[str, Any]
  ) -> Iterator[tuple[str, str]]:
    index, theirs = first["index"], first.get("told", {})
    if first.get("count") != self._place.count:
      yield (
        f"process {index} counts {first.get('count')} processes, process 0"
        f" {self._place.count}",
        "give all the same --processes.count",
      )
    for name in sorted({*told, *theirs}):
      if told.get(name) != theirs.get(name):
        yield (
          f"process {index} was given --{name}={theirs.get(name)!r}, process 0"
          f" {told.get(name)!r}",
          "give all processes the same flags",
        )

  def watch(self) -> None:
    """From now on, the early end of one is the end of all."""
    for index, line in self._lines.items():
      threading.Thread(
        target=self._listen, args=(index, line), daemon=True
      ).start()

  def _listen(self, index: int, line: _Line) -> None:
    fix = _FIX
    try:
      message = line.follow(self._timeout, f"process {index}")
      with self._changed:
        if message is not None and not message.get("error"):
          self._left.add(index)
          self._changed.notify_all()
          return
      why = f": {message['error']}" if message else " without a word"
      problem = f"process {index} has ended{why}"
    except TimeoutError:
      problem = _silent(f"process {index}", self._timeout)
      fix = _FIX_SILENT
    for other in self._lines.values():
      other.say(error=problem, fix=fix)
    _end(problem, fix)

  def say(self, **message: Any) -> None:
    """Sends a message to all others."""
    for line in self._lines.values():
      line.say(**message)

  def leave(self) -> None:
    """Waits until the others are done, and ends JAX's service after them."""
    with self._changed:
      self._changed.wait_for(
        lambda: len(self._left) == len(self._lines), self._timeout
      )
    _stop_jax()
    for line in self._lines.values():
      line.say(end=True)

  def fail(self, error: str) -> None:
    """Tells the others why there is no going on."""
    for line in self._lines.values():
      line.say(error=f"process 0 has ended: {error}")

  def close(self) -> None:
    """Ends all lines."""
    self._listener.close()
    for line in (*self._lines.values(), *self._spare):
      line.close()


class _Client:
  """Another process's end of its line."""

  def __init__(self, found: cluster.ProcessInfo, timeout: float):
    self._place, self._timeout = found, timeout
    self._line: _Line | None = None
    self._over = threading.Event()
    self._watcher: threading.Thread | None = None

  def meet(self, told: dict[str, Any]) -> int:
    """Waits for process 0; the port of JAX's service."""
    until = time.monotonic() + self._timeout
    where = (self._place.host, self._place.port)
    first: dict[str, Any] | None = None
    while first is None and time.monotonic() < until:
      try:
        line = _Line(socket.create_connection(where, timeout=5))
      except OSError:
        time.sleep(0.1)
        continue
      self._line = line
      line.say(index=self._place.index, count=self._place.count, told=told)
      # Process 0 says by then who is missing.
      first = line.hear(max(1.0, until + 5 - time.monotonic()))
    if first is None:
      raise UserError(
        f"process 0 did not answer at {where[0]}:{where[1]} within"
        f" {self._timeout:g} s",
        field="processes.coordinator",
        fix="see that it was started and can be reached from here",
      )
    if "error" in first:
      raise UserError(
        first["error"], field="processes", fix=first.get("fix", "")
      )
    return int(first["port"])

  def watch(self) -> None:
    """From now on, the early end of one is the end of all."""
    self._watcher = threading.Thread(target=self._listen, daemon=True)
    self._watcher.start()

  def _listen(self) -> None:
    assert self._line is not None
    try:
      message = self._line.follow(self._timeout, "process 0") or {}
    except TimeoutError:
      message = {
        "error": _silent("process 0", self._timeout), "fix": _FIX_SILENT
      }  # fmt: skip
    if self._over.is_set() or message.get("end"):
      return
    _end(
      message.get("error", "process 0 has ended without a word"),
      message.get("fix", _FIX),
    )

  def say(self, **message: Any) -> None:
    """Sends a message to process 0."""
    if self._line is not None:
      self._line.say(**message)

  def leave(self) -> None:
    """Tells process 0 that this one is done, and waits for the others."""
    assert self._line is not None and self._watcher is not None
    _stop_jax()
    self._line.say(end=True)
    self._watcher.join(self._timeout)
    self._over.set()

  def fail(self, error: str) -> None:
    """Tells process 0 why there is no going on."""
    self._over.set()
    self.say(error=error)

  def close(self) -> None:
    """Ends the line."""
    if self._line is not None:
      self._line.close()
