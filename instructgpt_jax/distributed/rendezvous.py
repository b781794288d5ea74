"""Connects the processes of a run before JAX starts, and monitors them.

Process 0 is the coordinator, the others are participants. Their messages are
JSON objects (`connection.py`), in this order:

  {index, count, flags}   each participant, when it connects
  {port}                  the coordinator, once all have connected with the same
                          flags: the port of JAX's distributed service
  {heartbeat}             all, during the run
  {end}                   each participant, after it has finished and left JAX's
                          service; then the coordinator, after all of these, or
                          the timeout, and after it has stopped the service
  {error, fix?, code?}    instead of any of these: all processes end

If a process fails, disappears or sends nothing, all end with one error that
names it. JAX's service (`jax.distributed`) would either abort them with a stack
trace that does not name the process, or wait forever. Heartbeats come from a
thread of their own (`connection.Heartbeat`). A process whose main thread alone
hangs still sends them, and is not detected.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from instructgpt_jax.distributed.cluster import ProcessInfo
from instructgpt_jax.distributed.connection import Connection
from instructgpt_jax.errors import UserError

PEER_FAILED = 1  # exit status of a process that ends because of another one
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FIX_FAILED = (
  "see that process's own error; the same command resumes from the last"
  " checkpoint"
)
_FIX_UNRESPONSIVE = (
  "check whether the process is stopped, or its disk or network hangs; the same"
  " command resumes from the last checkpoint; --processes.timeout is how long a"
  " process may send nothing"
)


class Coordinator:
  """Process 0, with a connection to each participant."""

  def __init__(self, info: ProcessInfo, timeout: float):
    """Listens for the participants.

    Args:
      info: the processes of the run.
      timeout: how long to wait for a process, seconds.

    Raises:
      UserError: `port_in_use`.
    """
    self._info, self._timeout = info, timeout
    self._connections: dict[int, Connection] = {}  # by process index
    self._duplicates: list[Connection] = []  # with an index that is taken
    self._finished: set[int] = set()  # indices of processes that sent {end}
    self._finished_changed = threading.Condition()
    family = socket.AF_INET6 if ":" in info.host else socket.AF_INET
    try:
      self._listener = socket.create_server(
        (bind_host(info.host), info.port), family=family, backlog=info.count
      )
    except OSError as error:
      raise UserError(
        f"cannot listen at {info.host}:{info.port} ({error.strerror or error})",
        field="processes.coordinator",
        fix="choose a free port",
        code="port_in_use",
      ) from error

  def connect(self, flags: dict[str, Any]) -> int:
    """Waits for all participants and compares their flags.

    Args:
      flags: flags of this process that must be equal in all.

    Returns:
      The port of JAX's service.

    Raises:
      UserError: `missing_process`, `duplicate_index` or `flags_differ`; each
        participant that has connected raises the same error.
    """
    errors = self._accept_all(flags)
    if errors:
      error = errors[0]
      for peer in (*self._connections.values(), *self._duplicates):
        peer.send(error=error.problem, fix=error.fix, code=error.code)
      raise error
    # Port 0 makes the system choose a free one, which JAX then takes over.
    with socket.create_server((bind_host(self._info.host), 0)) as server:
      port = server.getsockname()[1]
    self.send(port=port)
    return port

  def _accept_all(self, flags: dict[str, Any]) -> list[UserError]:
    """Accepts a connection of each participant, until the timeout.

    Returns:
      What is wrong. It is reported after all have connected, so that each
      process ends with the error.
    """
    deadline = time.monotonic() + self._timeout
    errors: list[UserError] = []
    while len(self._connections) + len(self._duplicates) < self._info.count - 1:
      self._listener.settimeout(max(1e-3, deadline - time.monotonic()))
      try:
        accepted, _ = self._listener.accept()
      except OSError:
        return [*errors, self._missing_error()]
      peer = Connection(accepted)
      first_message = peer.receive(timeout=5)
      index = first_message and first_message.get("index")
      if first_message is None or index not in range(1, self._info.count):
        peer.close()  # Not a process of this run.
      elif index in self._connections:
        self._duplicates.append(peer)
        errors.append(
          _processes_error(
            f"two processes have index {index}",
            "give each process its own --processes.index",
            "duplicate_index",
          )
        )
      else:
        self._connections[index] = peer
        errors += self._differences(first_message, flags)
    return errors

  def _missing_error(self) -> UserError:
    missing = sorted(set(range(1, self._info.count)) - set(self._connections))
    names = ", ".join(map(str, missing))
    return _processes_error(
      f"process{'es' if len(missing) > 1 else ''} {names} of"
      f" {self._info.count} did not connect within {self._timeout:g} s",
      "check that each was started with the same --processes.coordinator and"
      " can reach it; --processes.timeout is how long to wait",
      "missing_process",
    )

  def _differences(
    self, first_message: dict[str, Any], flags: dict[str, Any]
  ) -> Iterator[UserError]:
    """Yields an error for each flag that a participant has differently."""
    index, count = first_message["index"], first_message.get("count")
    peer_flags = first_message.get("flags", {})
    if count != self._info.count:
      yield _processes_error(
        f"process {index} has --processes.count={count}, process 0 has"
        f" {self._info.count}",
        "start all processes with the same --processes.count",
        "flags_differ",
      )
    for name in sorted({*flags, *peer_flags}):
      if flags.get(name) != peer_flags.get(name):
        yield _processes_error(
          f"process {index} has --{name}={peer_flags.get(name)!r}, process 0"
          f" has {flags.get(name)!r}",
          "start all processes with the same flags",
          "flags_differ",
        )

  def monitor(self) -> None:
    """Starts a thread for each participant: if it fails, all processes end."""
    for index, peer in self._connections.items():
      threading.Thread(
        target=self._monitor, args=(index, peer), daemon=True
      ).start()

  def _monitor(self, index: int, peer: Connection) -> None:
    """Waits until a participant has finished; if it fails, ends all."""
    name = f"process {index}"
    try:
      message = peer.receive_past_heartbeats(self._timeout, name)
    except TimeoutError:
      problem, fix = _unresponsive(name, self._timeout), _FIX_UNRESPONSIVE
    else:
      if message is not None and not message.get("error"):
        with self._finished_changed:
          self._finished.add(index)
          self._finished_changed.notify_all()
        return
      problem, fix = _ended_without_error(name), _FIX_FAILED
      if message is not None:
        problem = _failed(name, message["error"])
    self.send(error=problem, fix=fix)
    _exit_with_error(problem, fix)

  def send(self, **message: Any) -> None:
    """Sends a message to all participants."""
    for peer in self._connections.values():
      peer.send(**message)

  def finish(self) -> None:
    """Waits for the participants, stops JAX's service, then releases them.

    Participants leave the service before they send {end}. After the timeout
    this continues without those that have not sent it.
    """
    with self._finished_changed:
      self._finished_changed.wait_for(
        lambda: len(self._finished) == len(self._connections), self._timeout
      )
    stop_jax()
    self.send(end=True)

  def fail(self, reason: str) -> None:
    """Sends the participants the reason why this process fails."""
    self.send(error=_failed("process 0", reason))

  def close(self) -> None:
    """Closes all connections."""
    self._listener.close()
    for peer in (*self._connections.values(), *self._duplicates):
      peer.close()


class Participant:
  """A process other than process 0, with a connection to the coordinator."""

  def __init__(self, info: ProcessInfo, timeout: float):
    """Prepares to connect.

    Args:
      info: the processes of the run.
      timeout: how long to wait for process 0, seconds.
    """
    self._info, self._timeout = info, timeout
    self._connection: Connection | None = None
    self._ending = threading.Event()  # this process ends for its own reasons
    self._monitor_thread: threading.Thread | None = None

  def connect(self, flags: dict[str, Any]) -> int:
    """Connects to process 0 and sends it this process's flags.

    Args:
      flags: flags of this process that must be equal in all.

    Returns:
      The port of JAX's service.

    Raises:
      UserError: `missing_process`, process 0 does not answer; or the error that
        process 0 has sent.
    """
    deadline = time.monotonic() + self._timeout
    address = (self._info.host, self._info.port)
    reply: dict[str, Any] | None = None
    while reply is None and time.monotonic() < deadline:
      try:
        connected = socket.create_connection(address, timeout=5)
      except OSError:
        time.sleep(0.1)
        continue
      self._connection = Connection(connected)
      self.send(index=self._info.index, count=self._info.count, flags=flags)
      # Process 0 waits for missing processes until about the same deadline, and
      # then names them. Five seconds are left for its answer.
      reply = self._connection.receive(
        max(1.0, deadline + 5 - time.monotonic())
      )
    if reply is None:
      raise UserError(
        f"process 0 did not answer at {address[0]}:{address[1]} within"
        f" {self._timeout:g} s",
        field="processes.coordinator",
        fix="check that it was started and can be reached from this host",
        code="missing_process",
      )
    if "error" in reply:
      raise _processes_error(
        reply["error"], reply.get("fix", ""), reply.get("code", "")
      )
    return int(reply["port"])

  def monitor(self) -> None:
    """Starts a thread that ends this process if another one fails."""
    self._monitor_thread = threading.Thread(target=self._monitor, daemon=True)
    self._monitor_thread.start()

  def _monitor(self) -> None:
    """Waits until all processes have finished; if one fails, ends this one."""
    assert self._connection is not None
    name = "process 0"
    try:
      message = self._connection.receive_past_heartbeats(self._timeout, name)
    except TimeoutError:
      problem, fix = _unresponsive(name, self._timeout), _FIX_UNRESPONSIVE
    else:
      message = message or {}  # None: the connection is closed
      if message.get("end"):
        return
      # Process 0 passes on the errors of all processes.
      problem = message.get("error", _ended_without_error(name))
      fix = message.get("fix", _FIX_FAILED)
    if not self._ending.is_set():
      _exit_with_error(problem, fix)

  def send(self, **message: Any) -> None:
    """Sends a message to process 0."""
    if self._connection is not None:
      self._connection.send(**message)

  def finish(self) -> None:
    """Leaves JAX's service, sends process 0 {end}, and waits for the others.

    The wait ends when process 0 answers with {end}, or after the timeout.
    """
    assert self._monitor_thread is not None
    stop_jax()
    self.send(end=True)
    self._monitor_thread.join(self._timeout)
    self._ending.set()

  def fail(self, reason: str) -> None:
    """Sends process 0 the reason why this process fails."""
    self._ending.set()
    self.send(error=reason)

  def close(self) -> None:
    """Closes the connection."""
    if self._connection is not None:
      self._connection.close()


def bind_host(host: str) -> str:
  """Returns the address to listen at: all interfaces, unless it is loopback."""
  return host if host in _LOOPBACK else ""


def stop_jax() -> None:
  """Disconnects this process from JAX's distributed service."""
  import jax

  jax.distributed.shutdown()


def _processes_error(problem: str, fix: str, code: str) -> UserError:
  return UserError(problem, field="processes", fix=fix, code=code)


def _failed(name: str, reason: str) -> str:
  return f"{name} failed: {reason}"


def _ended_without_error(name: str) -> str:
  return f"{name} ended without reporting an error"


def _unresponsive(name: str, seconds: float) -> str:
  return f"{name} has not responded for {seconds:g} s"


def _exit_with_error(problem: str, fix: str) -> NoReturn:
  """Prints an error and ends this process, from a thread that monitors.

  An exception would not end the main thread, which may be inside a collective
  that never returns.
  """
  print(f"error: {problem}\n  fix: {fix}", file=sys.stderr, flush=True)
  os._exit(PEER_FAILED)
