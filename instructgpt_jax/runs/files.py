"""Files that are complete or absent, and JSON in them.

Every writer makes a temporary file beside its target, flushes it to the disk
and renames it, so a kill or a full disk does not damage an existing file. Only
regular files are replaced; see `write_chunks_atomic`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from instructgpt_jax import file_signatures
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError, json_problem

CONFIG = "config.json"  # config of the run in a workdir
COMPLETE = "complete.json"  # summary of a run that has finished

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DESCRIPTOR = re.compile(r"/dev/(?:(stdout|stderr)|fd/(\d+))")
_STANDARD = {"stdout": 1, "stderr": 2}
_UNWRITABLE = (
  (stat.S_ISDIR, "a directory"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISBLK, "a block device"),
)


def disk_error(error: OSError, path: str | os.PathLike[str]) -> UserError:
  """Returns the UserError for a file that could not be written."""
  if error.errno in _FULL:
    problem, code = "the disk is full", "disk_full"
    fix = "free some space and rerun the same command"
  elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    problem, code = "is not writable", "not_writable"
    fix = "choose a directory that you may write to"
  elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
    problem, code = (
      "is a file instead of a directory, or vice versa",
      "wrong_kind",
    )
    fix = "move it away, or choose another directory"
  elif error.errno == errno.ELOOP:
    problem, code = "is a symbolic link to itself", "link_loop"
    fix = "remove the link"
  elif error.errno == errno.ENAMETOOLONG:
    problem, code = "has too long a name", "long_name"
    fix = "choose a shorter name"
  elif error.errno == errno.EPIPE:
    problem, code = "was closed by the program that read it", "closed_pipe"
    fix = ""
  else:
    problem = f"could not be written: {error.strerror or error}"
    code = "disk_error"
    fix = "check that the disk is available and has space, and try again"
  return UserError(problem, file=str(path), fix=fix, code=code)


@contextlib.contextmanager
def disk_errors_as_user_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns an OSError of the block into a UserError that names `path`."""
  try:
    yield
  except OSError as error:
    raise disk_error(error, path) from error


def make_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Makes a directory and its parents.

  Raises:
    UserError: it cannot be made.
  """
  directory = pathlib.Path(path)
  with disk_errors_as_user_errors(directory):
    directory.mkdir(parents=True, exist_ok=True)
  return directory


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
  """Writes a UTF-8 file, or keeps the old one after an error.

  Lone surrogates become escapes. They occur in file names that are not UTF-8.
  """
  write_chunks_atomic(path, (_encoded(text),))


def _encoded(text: str) -> bytes:
  """Encodes a text in UTF-8, lone surrogates as JSON escapes."""
  return text.encode("utf-8", "backslashreplace")


def write_chunks_atomic(
  path: str | os.PathLike[str], chunks: Iterable[bytes]
) -> None:
  """Writes a file from its chunks, or keeps the old one after an error.

  If the path is a symbolic link, its target is replaced. If it is a pipe or a
  device, the chunks are written into it. All processes of a run may call this;
  only the main process writes.

  Raises:
    UserError: the target is a directory, a socket or a block device, or it
      cannot be written.
  """
  if not processes.is_main_process():
    return
  target = pathlib.Path(path)
  with disk_errors_as_user_errors(target):
    stream = _open_stream(target)
    if stream is not None:
      with stream:
        stream.writelines(chunks)
      return
    status = output_status(target)
    target = pathlib.Path(os.path.realpath(target))
    make_directory(target.parent)
    _replace(target, chunks, status)


def check_output(
  path: str | os.PathLike[str], *, field: str, overwrite: bool
) -> None:
  """Checks that an output can be written later.

  Args:
    path: output file named by the user.
    field: flag that names it, for errors.
    overwrite: whether a file that exists may be replaced.

  Raises:
    UserError: it is a directory or the like, exists already, or its directory
      is not writable.
  """
  try:
    status = output_status(path)
  except UserError as error:
    raise UserError(
      error.problem,
      file=error.file,
      field=field,
      fix=error.fix,
      code=error.code,
    ) from error
  if _is_stream(path, status):
    return
  if status is not None and not overwrite:
    raise UserError(
      "exists already",
      file=os.fspath(path),
      field=field,
      fix="name another file, or allow it with --overwrite",
      code="output_exists",
    )
  parent = pathlib.Path(os.path.realpath(path)).parent
  while not parent.exists() and parent != parent.parent:
    parent = parent.parent
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    problem = "is not writable" if parent.is_dir() else "is not a directory"
    raise UserError(
      problem,
      file=str(parent),
      field=field,
      fix="name a file in a directory that you may write to",
      code="output_unwritable",
    )


def _is_stream(
  path: str | os.PathLike[str], status: os.stat_result | None
) -> bool:
  """Returns whether an output is a pipe, device or descriptor."""
  return bool(_DESCRIPTOR.fullmatch(os.fspath(path))) or (
    status is not None and not stat.S_ISREG(status.st_mode)
  )


def _open_stream(path: pathlib.Path) -> BinaryIO | None:
  """Opens a descriptor, a pipe or a device for writing; None for a file."""
  match = _DESCRIPTOR.fullmatch(os.fspath(path))
  if match:
    number = _STANDARD.get(match[1]) or int(match[2])
    # Opening the path would truncate a file behind the descriptor.
    return os.fdopen(os.dup(number), "wb")
  if not _is_stream(path, output_status(path)):
    return None
  return open(path, "wb")


def output_status(path: str | os.PathLike[str]) -> os.stat_result | None:
  """Returns the status of an output's target; None if it is missing.

  Raises:
    UserError: the target can be neither written to nor replaced.
  """
  try:
    status = os.stat(path)
  except FileNotFoundError:
    return None
  except OSError as error:
    raise disk_error(error, path) from error
  for is_kind, kind in _UNWRITABLE:
    if is_kind(status.st_mode):
      raise UserError(
        f"is {kind}",
        file=os.fspath(path),
        fix="name a file",
        code="not_a_file",
      )
  return status


def _replace(
  target: pathlib.Path, chunks: Iterable[bytes], old: os.stat_result | None
) -> None:
  """Writes a file beside the target and renames it over the target."""
  temporary = target.parent / f".{target.name[:50]}.{secrets.token_hex(4)}.tmp"
  # The process's umask applies to the mode of a new file.
  descriptor = os.open(temporary, _NEW_FILE, 0o666)
  try:
    with os.fdopen(descriptor, "wb") as file:
      if old is not None:
        os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
      file.writelines(chunks)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def publish_directory(
  new: str | os.PathLike[str], directory: str | os.PathLike[str]
) -> None:
  """Renames a directory to its final path once all of it is on the disk.

  Args:
    new: a directory on the same file system, which nothing else writes.
    directory: the final path; must not exist.
  """
  for directory_path, _, names in os.walk(new):
    for name in names:
      _flush(os.path.join(directory_path, name))
    _flush(directory_path)
  os.rename(new, directory)
  _flush(os.path.dirname(os.path.abspath(directory)))


def _flush(path: str | os.PathLike[str]) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def to_json_values(value: Any) -> Any:
  """Converts arrays and scalars to JSON types; NaN and infinity to strings."""
  if isinstance(value, Mapping):
    return {str(key): to_json_values(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json_values(item) for item in value]
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "tolist"):
    return to_json_values(value.tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json_atomic(
  path: str | os.PathLike[str], value: Any, *, indent: int | None = 2
) -> None:
  """Writes one JSON value; NaN and infinity become "nan", "inf", "-inf"."""
  text = json.dumps(
    to_json_values(value), indent=indent, ensure_ascii=False, allow_nan=False
  )
  write_text_atomic(path, text + "\n")


def write_jsonl_atomic(
  path: str | os.PathLike[str], values: Iterable[Any]
) -> None:
  """Writes one JSON value per line."""
  write_chunks_atomic(
    path,
    (
      _encoded(
        json.dumps(to_json_values(value), ensure_ascii=False, allow_nan=False)
        + "\n"
      )
      for value in values
    ),
  )


def read_text(path: str | os.PathLike[str], *, fix: str = "") -> str:
  """Reads a UTF-8 text file.

  Args:
    path: the file.
    fix: fix for the errors.

  Raises:
    UserError: the file is missing, not readable or not UTF-8 text.
  """
  try:
    content = pathlib.Path(path).read_bytes()
    file_signatures.refuse(content[: file_signatures.HEAD], path)
    return content.decode()
  except FileNotFoundError as error:
    raise UserError(
      "there is no such file", file=str(path), fix=fix, code="no_file"
    ) from error
  except IsADirectoryError as error:
    raise UserError(
      "is a directory, not a file",
      file=str(path),
      fix=fix,
      code="not_a_file",
    ) from error
  except UnicodeDecodeError as error:
    line = error.object[: error.start].count(b"\n") + 1
    raise UserError(
      "is not UTF-8 text",
      file=str(path),
      line=line,
      fix=fix,
      code="not_utf8",
    ) from error
  except OSError as error:
    raise UserError(
      f"could not be read: {error.strerror or error}",
      file=str(path),
      fix=fix or "check that the file exists and is readable",
      code="unreadable_file",
    ) from error


def read_json(path: str | os.PathLike[str], *, fix: str = "") -> Any:
  """Reads the value of a JSON file.

  Raises:
    UserError: the file cannot be read, or is not JSON.
  """
  return parse_json(read_text(path, fix=fix), path, 1, fix=fix)


def parse_json(
  text: str, path: str | os.PathLike[str], line: int, *, fix: str = ""
) -> Any:
  """Parses a JSON text that begins at a line of a file.

  Raises:
    UserError: the text is not JSON; its line is that of the file.
  """
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"is not JSON: {json_problem(error)}",
      file=str(path),
      line=line + getattr(error, "lineno", 1) - 1,
      fix=fix or "correct or delete the file",
      code="bad_json",
    ) from error


def mark_complete(
  workdir: str | os.PathLike[str], summary: Mapping[str, Any]
) -> None:
  """Records that the run in `workdir` has finished, with its summary."""
  write_json_atomic(pathlib.Path(workdir) / COMPLETE, dict(summary))
  processes.barrier("complete")


def read_complete(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the summary of a finished run; None if it has not finished."""
  path = pathlib.Path(workdir) / COMPLETE
  if not path.exists():
    return None
  value = read_json(path, fix="delete it; the run then resumes")
  return value if isinstance(value, dict) else {}
