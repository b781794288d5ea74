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
  """Whether a text holds no lone surrogates, as bytes that are no text give."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True
