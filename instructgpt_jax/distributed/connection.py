"""A connection between two processes of a run, and its heartbeats."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

MAX_HEARTBEAT_INTERVAL = 5.0  # seconds
HEARTBEATS_PER_TIMEOUT = 10
_MAX_MESSAGE = 1 << 22  # bytes
# TCP's own probes detect a host that has lost power or its network.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Connection:
  """Sends and receives JSON messages over a connected socket, one per line."""

  def __init__(self, connected_socket: socket.socket):
    self._socket = connected_socket
    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      option = getattr(socket, name, None)
      if option is not None:
        with contextlib.suppress(OSError):  # A socket pair has no TCP options.
          self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
    self._unread = b""  # received, but not returned yet
    self._send_lock = threading.Lock()

  def send(self, **message: Any) -> None:
    """Sends a message; does nothing if the peer has closed the connection."""
    with contextlib.suppress(OSError), self._send_lock:
      self._socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self, timeout: float) -> dict[str, Any] | None:
    """Returns the next message, or None.

    It is None if no message is complete within `timeout` seconds, if the peer
    has closed the connection, or if it has sent something other than a message.
    """
    try:
      return self._next_message(timeout)
    except (OSError, ValueError):
      return None

  def receive_past_heartbeats(
    self, timeout: float, peer: str
  ) -> dict[str, Any] | None:
    """Returns the next message that is not a heartbeat.

    Prints a warning after half of the timeout.

    Args:
      timeout: how long the peer may send nothing, seconds.
      peer: name of the peer, for the warning.

    Returns:
      The message. None if the peer has closed the connection, or has sent
      something other than a message.

    Raises:
      TimeoutError: the peer has sent nothing, not even a heartbeat.
    """
    warned = False
    while True:
      try:
        message = self._next_message(timeout / 2)
      except TimeoutError:
        if warned:
          raise
        warned = True
        _warn(
          f"{peer} has sent nothing for {timeout / 2:g} s; after"
          f" {timeout:g} s all processes end"
        )
        continue
      except (OSError, ValueError):
        return None
      if "heartbeat" not in message:
        return message
      if warned:
        _warn(f"{peer} responds again")
        warned = False

  def _next_message(self, timeout: float) -> dict[str, Any]:
    """Returns the next message.

    Raises:
      TimeoutError: it is not complete in time; a later call continues with it.
      ConnectionError: the peer has closed the connection, its host does not
        answer, or the message is too long.
      ValueError: the message is not a JSON object.
    """
    deadline = time.monotonic() + timeout
    while b"\n" not in self._unread:
      self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
      try:
        data = self._socket.recv(1 << 16)
      except TimeoutError as error:
        # Two causes share this type: the timeout set above, without an errno,
        # and the system's ETIMEDOUT, after unanswered keepalive probes.
        if error.errno is None:
          raise
        raise ConnectionError from error
      if not data or len(self._unread) > _MAX_MESSAGE:
        raise ConnectionError
      self._unread += data
    line, _, self._unread = self._unread.partition(b"\n")
    message = json.loads(line)
    if not isinstance(message, dict):
      raise ValueError(f"{message!r} is not a message")
    return message

  def close(self) -> None:
    """Closes the connection."""
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    self._socket.close()


class Heartbeat:
  """Sends heartbeats from a thread of its own.

  They stop if the process is stopped or ends. Before each, the thread queries
  the workdir's file system; they also stop if that query hangs. The other
  processes then end, with an error that names this process. If only the main
  thread hangs, the heartbeats continue, and the hang is not detected.
  """

  def __init__(
    self, send: Callable[..., None], timeout: float, workdir: str | None
  ):
    """Starts the thread.

    Args:
      send: sends a message to the other processes; its keyword arguments are
        the message.
      timeout: how long a process may send nothing, seconds.
      workdir: directory of the run; None queries no file system.
    """
    self._send, self._workdir = send, workdir
    self._interval = min(
      MAX_HEARTBEAT_INTERVAL, timeout / HEARTBEATS_PER_TIMEOUT
    )
    self._stopped = threading.Event()
    threading.Thread(target=self._run, daemon=True).start()

  def _run(self) -> None:
    while not self._stopped.wait(self._interval):
      if self._workdir:
        with contextlib.suppress(OSError):  # It may not exist yet.
          os.statvfs(self._workdir)
      self._send(heartbeat=True)

  def stop(self) -> None:
    """Ends the thread."""
    self._stopped.set()


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)
