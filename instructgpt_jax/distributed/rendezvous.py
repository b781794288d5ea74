"""Connects the processes of a run before JAX starts, and monitors them.

Process 0 is the coordinator. Each other process sends it its index and flags,
and keeps the connection. The coordinator checks that all processes are there
and agree, then announces the port of JAX's own service. During the run, if one
process fails, freezes or disappears, all end with one error that names it.

JAX's service (`jax.distributed`) reports none of this in a readable way: it
aborts with a stack trace that does not name the process, or waits.
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

PEER_FAILED = 1  # exit status of a process that ends because another did
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FIX = (
  "see that process's own error; the same command resumes from the last"
  " checkpoint"
)
_FIX_UNRESPONSIVE = (
  "check whether the process is stopped, or its disk or network hangs; the same"
  " command resumes from the last checkpoint; --processes.timeout is how long a"
  " process may send nothing"
)


class Coordinator:
  """Process 0, with a connection to each other process."""

  def __init__(self, info: ProcessInfo, timeout: float):
    """Listens for the other processes.

    Args:
      info: address, number and index of the processes.
      timeout: how long to wait for a process, seconds.

    Raises:
      UserError: the port cannot be used.
    """
    self._info, self._timeout = info, timeout
    self._connections: dict[int, Connection] = {}
    self._duplicates: list[Connection] = []  # with an index that is taken
    self._finished: set[int] = set()
    self._changed = threading.Condition()
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
    """Waits for all processes and compares their flags.

    Args:
      flags: flags of this process that must be equal in all.

    Returns:
      The port of JAX's service.

    Raises:
      UserError: a process is missing, has a wrong index or other flags.
    """
    errors = self._accept_all(flags)
    if errors:  # All are reported after all have connected, or not in time.
      error = errors[0]
      for peer in (*self._connections.values(), *self._duplicates):
        peer.send(error=error.problem, fix=error.fix, code=error.code)
      raise error
    with socket.create_server((bind_host(self._info.host), 0)) as free:
      port = free.getsockname()[1]
    self.send(port=port)
    return port

  def _accept_all(self, flags: dict[str, Any]) -> list[UserError]:
    """Accepts connections until all are there; returns what is wrong."""
    deadline = time.monotonic() + self._timeout
    errors: list[UserError] = []
    while len(self._connections) + len(self._duplicates) < self._info.count - 1:
      self._listener.settimeout(max(1e-3, deadline - time.monotonic()))
      try:
        accepted, _ = self._listener.accept()
      except OSError:
        return [*errors, self._missing_error()]
      peer = Connection(accepted)
      hello = peer.receive(5)
      index = hello and hello.get("index")
      if hello is None or index not in range(1, self._info.count):
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
        errors += self._differences(hello, flags)
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
    self, hello: dict[str, Any], flags: dict[str, Any]
  ) -> Iterator[UserError]:
    index, count = hello["index"], hello.get("count")
    peer_flags = hello.get("flags", {})
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
    """Starts threads that end all processes if one fails or freezes."""
    for index, peer in self._connections.items():
      threading.Thread(
        target=self._monitor, args=(index, peer), daemon=True
      ).start()

  def _monitor(self, index: int, peer: Connection) -> None:
    name = f"process {index}"
    try:
      message = peer.receive_past_heartbeats(self._timeout, name)
    except TimeoutError:
      problem, fix = _unresponsive(name, self._timeout), _FIX_UNRESPONSIVE
    else:
      if message is not None and not message.get("error"):
        with self._changed:
          self._finished.add(index)
          self._changed.notify_all()
        return
      problem, fix = _failed(name, message), _FIX
    self.send(error=problem, fix=fix)
    _exit_with_error(problem, fix)

  def send(self, **message: Any) -> None:
    """Sends a message to all other processes."""
    for peer in self._connections.values():
      peer.send(**message)

  def finish(self) -> None:
    """Waits until the others are done, and ends JAX's service after them."""
    with self._changed:
      self._changed.wait_for(
        lambda: len(self._finished) == len(self._connections), self._timeout
      )
    stop_jax()
    self.send(end=True)

  def fail(self, reason: str) -> None:
    """Tells the other processes why this one ends."""
    self.send(error=f"process 0 failed: {reason}")

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
      info: address, number and index of the processes.
      timeout: how long to wait for process 0, seconds.
    """
    self._info, self._timeout = info, timeout
    self._connection: Connection | None = None
    self._ending = threading.Event()
    self._monitor_thread: threading.Thread | None = None

  def connect(self, flags: dict[str, Any]) -> int:
    """Connects to process 0 and sends it this process's flags.

    Args:
      flags: flags of this process that must be equal in all.

    Returns:
      The port of JAX's service.

    Raises:
      UserError: process 0 does not answer, or reports an error.
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
      # By then process 0 has named the processes that are missing.
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
    """Starts a thread that ends this process if another fails or freezes."""
    self._monitor_thread = threading.Thread(target=self._monitor, daemon=True)
    self._monitor_thread.start()

  def _monitor(self) -> None:
    assert self._connection is not None
    fix = _FIX
    try:
      message = self._connection.receive_past_heartbeats(
        self._timeout, "process 0"
      )
      problem = _failed("process 0", None)
    except TimeoutError:
      message = None
      problem = _unresponsive("process 0", self._timeout)
      fix = _FIX_UNRESPONSIVE
    if message is not None:
      if message.get("end"):
        return
      problem = message.get("error", problem)
      fix = message.get("fix", fix)
    if not self._ending.is_set():
      _exit_with_error(problem, fix)

  def send(self, **message: Any) -> None:
    """Sends a message to process 0."""
    if self._connection is not None:
      self._connection.send(**message)

  def finish(self) -> None:
    """Tells process 0 that this one is done, and waits for the others."""
    assert self._monitor_thread is not None
    stop_jax()
    self.send(end=True)
    self._monitor_thread.join(self._timeout)
    self._ending.set()

  def fail(self, reason: str) -> None:
    """Tells process 0 why this process ends."""
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
  """Ends this process's part in JAX's distributed service."""
  import jax

  jax.distributed.shutdown()


def _processes_error(problem: str, fix: str, code: str) -> UserError:
  return UserError(problem, field="processes", fix=fix, code=code)


def _failed(name: str, message: dict[str, Any] | None) -> str:
  """Describes a process that has ended, with the reason it has sent."""
  if message is None:
    return f"{name} ended without reporting an error"
  return f"{name} failed: {message['error']}"


def _unresponsive(name: str, seconds: float) -> str:
  return f"{name} has not responded for {seconds:g} s"


def _exit_with_error(problem: str, fix: str) -> NoReturn:
  """Ends this process because of another one.

  The main thread may be inside a collective that never returns.
  """
  print(f"error: {problem}\n  fix: {fix}", file=sys.stderr, flush=True)
  os._exit(PEER_FAILED)
