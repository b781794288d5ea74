"""Sockets of the commands that serve HTTP, and errors of their addresses."""

from __future__ import annotations

import argparse
import errno
import os
import socket
from typing import Any

from instructgpt_jax.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def bind(host: str, port: int) -> socket.socket:
  """Returns a socket that is bound to an address.

  Raises:
    UserError: the port is in use, or the host is not this computer.
  """
  sock = None
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind)
    if os.name == "posix":
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
  except OSError as error:
    if sock is not None:
      sock.close()
    raise bind_error(error, host, port) from error
  return sock


def bind_error(error: OSError, host: str, port: int) -> UserError:
  """Returns the UserError for an address that cannot be listened on."""
  if error.errno == errno.EADDRINUSE:
    return UserError(
      f"{port} is in use on {host}",
      field="--port",
      fix="choose another port, or --port=0 for a free one",
      code="port_in_use",
    )
  if error.errno == errno.EACCES:
    return UserError(
      f"{port} is not allowed: {error.strerror}",
      field="--port",
      fix="choose a port above 1023",
      code="port_not_allowed",
    )
  return UserError(
    f"cannot listen on {host}: {error.strerror or error}",
    field="--host",
    fix="use 127.0.0.1, or an address of this computer",
    code="bad_host",
  )


def url_of(sock: socket.socket) -> str:
  """Returns the http address of a bound socket."""
  host, port = sock.getsockname()[:2]
  return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def whole_number(low: int, high: int) -> Any:
  """Returns a parser, for argparse, of whole numbers in a range."""

  def parse(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
      raise argparse.ArgumentTypeError(
        f"{text!r} is not a whole number from {low} to {high}"
      )
    return int(text)

  return parse
