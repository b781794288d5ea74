"""Replies of a judge on disk, from which a run that stopped resumes."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import threading

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

_FIX = "delete the file; its questions are then asked again"


class ReplyLog:
  """File of replies by their request.

  Each reply is written when it arrives, as a JSON line with the SHA-256 of its
  request, so a run that is stopped loses no more than the requests under way.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the replies of an earlier run, if there are any.

    A last line without its end, which a killed process leaves, is cut off.

    Args:
      path: the file; made with the first reply.

    Raises:
      UserError: the file cannot be read; `bad_json` or `bad_reply`, a line is
        not one of this class.
    """
    self._path = pathlib.Path(path)
    self._lock = threading.Lock()
    self._replies: dict[str, str] = {}
    if self._path.exists():
      self._read()

  def __len__(self) -> int:
    """Returns the number of replies."""
    return len(self._replies)

  def get(self, request: str) -> str | None:
    """Returns the reply to a request; None if there is none yet."""
    return self._replies.get(_digest(request))

  def add(self, request: str, reply: str) -> None:
    """Writes the reply to a request. Threads may call this together.

    Raises:
      UserError: the file cannot be written.
    """
    digest = _digest(request)
    line = json.dumps({"request": digest, "reply": reply}) + "\n"
    with self._lock:
      files.make_directory(self._path.parent)
      with (
        files.disk_errors_as_user_errors(self._path),
        self._path.open("a", encoding="ascii") as file,
      ):
        file.write(line)
      self._replies[digest] = reply

  def delete(self) -> None:
    """Deletes the file, if there is one."""
    with files.disk_errors_as_user_errors(self._path):
      self._path.unlink(missing_ok=True)

  def _read(self) -> None:
    text = files.read_text(self._path, fix=_FIX)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
      with files.disk_errors_as_user_errors(self._path):
        os.truncate(self._path, len(whole.encode()))
    for number, line in enumerate(whole.splitlines(), 1):
      row = files.parse_json(line, self._path, number, fix=_FIX)
      match row:
        case {"request": str(digest), "reply": str(reply)}:
          self._replies[digest] = reply
        case _:
          raise UserError(
            "is not a reply of a judge",
            file=str(self._path),
            line=number,
            fix=_FIX,
            code="bad_reply",
          )


def _digest(request: str) -> str:
  return hashlib.sha256(request.encode()).hexdigest()
