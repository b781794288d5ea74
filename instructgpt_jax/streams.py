"""Makes the standard streams of a command take every text."""

from __future__ import annotations

import io
import os
import sys

_SAFE = ("replace", "backslashreplace", "ignore", "namereplace")


def accept_all_text() -> None:
  """Makes stdout and stderr take characters that their encoding lacks.

  A character that a terminal or a pipe of another encoding cannot show appears
  as "?", where Python would end the command with a UnicodeEncodeError. A stream
  that is closed discards what is written to it.
  """
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:
      null = open(os.devnull, "w", encoding="utf-8", errors="replace")
      setattr(sys, name, null)
    elif isinstance(stream, io.TextIOWrapper) and stream.errors not in _SAFE:
      stream.reconfigure(errors="replace")


def is_utf8(text: str) -> bool:
  """Whether a text holds no lone surrogates, as of undecodable bytes."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def accept_all_bytes() -> bool:
  """Makes stdin take undecodable bytes; returns whether it is open.

  Such a byte becomes a lone surrogate, which `as_utf8` and `is_utf8` detect.
  """
  stream = sys.stdin
  if isinstance(stream, io.TextIOWrapper):
    stream.reconfigure(errors="surrogateescape")
  return stream is not None and not stream.closed


def as_utf8(text: str) -> str:
  """Returns UTF-8 text that stdin has read in another encoding."""
  encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
  try:
    return text.encode(encoding, "surrogateescape").decode("utf-8")
  except UnicodeError:
    return text
