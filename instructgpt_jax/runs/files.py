"""Files that are either whole or absent, and the workdir's two markers.

Every writer here makes a temporary file beside its target, flushes it to the
disk and renames it, so a kill or a full disk never damages what was there. Only
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
from instructgpt_jax.errors import UserError, json_problem
from instructgpt_jax.distributed import processes

CONFIG = "config.json"
COMPLETE = "complete.json"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DESCRIPTOR = re.compile(r"/dev/(?:(stdout|stderr)|fd/(\d+))")
_STANDARD = {"stdout": 1, "stderr": 2}
_UNWRITABLE = (
  (stat.S_ISDIR, "a directory"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISBLK, "a block device"),
)
_MISSING = object()
# How a run is watched and how far it goes may change from call to call.
_FREE = ("run.", "until", "processes.", "data.explicit")


def may_change(name: str) -> bool:
  """Whether a later call of the same run may change the field."""
  return name.startswith(_FREE)


def disk_error(error: OSError, path: str | os.PathLike[str]) -> UserError:
  """The UserError for a file that could not be written."""
  if error.errno in _FULL:
    problem = "the disk is full"
    fix = "free some space and give the same command again"
  elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    problem = "may not be written"
    fix = "choose a directory that you may write to"
  elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
    problem = "a file stands where a folder is needed, or the reverse"
    fix = "move it away, or choose another directory"
  elif error.errno == errno.ELOOP:
    problem, fix = "is a symbolic link that leads to itself", "remove the link"
  elif error.errno == errno.ENAMETOOLONG:
    problem, fix = "has too long a name", "choose a shorter one"
  elif error.errno == errno.EPIPE:
    problem, fix = "was closed by the program that read it", ""
  else:
    problem = f"could not be written: {error.strerror or error}"
    fix = "see that the disk is there and has space, then try again"
  return UserError(problem, file=str(path), fix=fix)


@contextlib.contextmanager
def disk_errors_as_user_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns an OSError of the block into a UserError that names `path`."""
  try:
    yield
  except OSError as error:
    raise disk_error(error, path) from error


def make_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Makes a folder and its parents; a UserError where that is impossible."""
  directory = pathlib.Path(path)
  with disk_errors_as_user_errors(directory):
    directory.mkdir(parents=True, exist_ok=True)
  return directory


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
  """Writes a whole UTF-8 file, or leaves the old one.

  Lone surrogates, as in names of files that are not UTF-8, become escapes.
  """
  write_chunks_atomic(path, (_encoded(text),))


def _encoded(text: str) -> bytes:
  """Encodes a text in UTF-8, lone surrogates as JSON escapes."""
  return text.encode("utf-8", "backslashreplace")


def write_chunks_atomic(
  path: str | os.PathLike[str], chunks: Iterable[bytes]
) -> None:
  """Writes the chunks one after the other into a whole file.

  A symbolic link stays, and the file that it leads to is replaced. A pipe or a
  device stays, too: the chunks are written into it. All processes of a run call
  this; one writes.

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
  """Refuses an output that could not be written later.

  Args:
    path: file that the user names for the output.
    field: flag that names it, for errors.
    overwrite: whether a file that exists may be replaced.

  Raises:
    UserError: it is a directory or the like, exists already, or stands where
      the user may not write.
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
    problem = "may not be written" if parent.is_dir() else "is not a directory"
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
  """Whether an output is written into, not replaced."""
  return bool(_DESCRIPTOR.fullmatch(os.fspath(path))) or (
    status is not None and not stat.S_ISREG(status.st_mode)
  )


def _open_stream(path: pathlib.Path) -> BinaryIO | None:
  """Opens a descriptor, a pipe or a device for writing; None for a file."""
  match = _DESCRIPTOR.fullmatch(os.fspath(path))
  if match:
    number = _STANDARD.get(match[1]) or int(match[2])
    # A duplicate, since opening the path would empty a file that it leads to.
    return os.fdopen(os.dup(number), "wb")
  if not _is_stream(path, output_status(path)):
    return None
  return open(path, "wb")


def output_status(path: str | os.PathLike[str]) -> os.stat_result | None:
  """Returns the status of an output's target, None if missing.

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
  for folder, _, names in os.walk(new):
    for name in names:
      _flush(os.path.join(folder, name))
    _flush(folder)
  os.rename(new, directory)
  _flush(os.path.dirname(os.path.abspath(directory)))


def _flush(path: str | os.PathLike[str]) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def to_json_values(value: Any) -> Any:
  """JSON's own types for numpy and jax scalars; NaN and infinity as strings."""
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
  """Writes one JSON value a line."""
  write_chunks_atomic(
    path,
    (
      _encoded(
        json.dumps(to_json_values(value), ensure_ascii=False, allow_nan=False) + "\n"
      )
      for value in values
    ),
  )


def read_text(path: str | os.PathLike[str], *, fix: str = "") -> str:
  """A file's text; a UserError when it is missing or not UTF-8."""
  try:
    content = pathlib.Path(path).read_bytes()
    file_signatures.refuse(content[: file_signatures.HEAD], path)
    return content.decode()
  except FileNotFoundError as error:
    raise UserError("there is no such file", file=str(path), fix=fix) from error
  except IsADirectoryError as error:
    raise UserError(
      "is a directory, not a file", file=str(path), fix=fix
    ) from error
  except UnicodeDecodeError as error:
    line = error.object[: error.start].count(b"\n") + 1
    raise UserError(
      "is not UTF-8 text", file=str(path), line=line, fix=fix
    ) from error
  except OSError as error:
    raise UserError(
      f"could not be read: {error.strerror or error}",
      file=str(path),
      fix=fix or "see that the file is there and may be read",
    ) from error


def read_json(path: str | os.PathLike[str], *, fix: str = "") -> Any:
  """A JSON file's value; a UserError with file and line when it is not JSON."""
  return parse_json(read_text(path, fix=fix), path, 1, fix=fix)


def parse_json(
  text: str, path: str | os.PathLike[str], line: int, *, fix: str = ""
) -> Any:
  """The JSON value in a text that begins at a line of a file."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"is not JSON: {json_problem(error)}",
      file=str(path),
      line=line + getattr(error, "lineno", 1) - 1,
      fix=fix or "mend or delete the file",
      code="bad_json",
    ) from error


def mark_complete(
  workdir: str | os.PathLike[str], summary: Mapping[str, Any]
) -> None:
  """Says that the run in `workdir` has ended well, and how."""
  write_json_atomic(pathlib.Path(workdir) / COMPLETE, dict(summary))
  processes.barrier("complete")


def read_complete(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
  """The summary that `mark_complete` wrote, or None while a run is not done."""
  path = pathlib.Path(workdir) / COMPLETE
  if not path.exists():
    return None
  value = read_json(path, fix="delete it: the run then goes on")
  return value if isinstance(value, dict) else {}


def _differences(
  old: Any, new: Any, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
  """Dotted names at which two configs differ, with both values."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    for key in list(new) + [key for key in old if key not in new]:
      name = f"{path}.{key}" if path else str(key)
      yield from _differences(
        old.get(key, _MISSING), new.get(key, _MISSING), name
      )
  elif old != new:
    yield path, old, new


def _shown(value: Any) -> str:
  return "nothing" if value is _MISSING else repr(value)


def claim_workdir(
  workdir: str | os.PathLike[str],
  experiment: str,
  config: Mapping[str, Any],
) -> pathlib.Path:
  """Makes the workdir this run's own, or refuses one that belongs to another.

  Args:
    workdir: directory of the run; made when missing.
    experiment: for example "sft".
    config: the whole config as nested JSON values. Where it already
      holds this experiment, only `until`, `data.explicit` and fields under
      `run` and `processes` may differ.

  Returns:
    The workdir.

  Raises:
    UserError: it holds another experiment, another config, or other files.
  """
  directory = pathlib.Path(workdir)
  path = directory / CONFIG
  requested = {"experiment": experiment, "config": to_json_values(config)}
  if path.exists():
    recorded = read_json(path, fix="delete it, or choose another --workdir")
    if not isinstance(recorded, dict) or not isinstance(
      recorded.get("config"), dict
    ):
      raise UserError(
        "is not the config of a run",
        file=str(path),
        fix="choose another --workdir",
      )
    if recorded.get("experiment") != experiment:
      raise UserError(
        f"holds the experiment {recorded.get('experiment')!r}, not"
        f" {experiment!r}",
        file=str(directory),
        fix="choose another --workdir, or delete this one",
      )
    changed = [
      item
      for item in _differences(recorded["config"], requested["config"])
      if not may_change(item[0])
    ]
    if changed:
      name, old, new = changed[0]
      more = f" and {len(changed) - 1} more differ" if len(changed) > 1 else ""
      raise UserError(
        f"was begun with --{name}={_shown(old)}, not {_shown(new)}{more}",
        file=str(directory),
        field=name,
        fix="give the old value to resume, or choose another --workdir",
      )
    if recorded == requested:
      return directory
  make_directory(directory)
  write_json_atomic(path, requested)
  return directory


def release_workdir(workdir: str | os.PathLike[str]) -> None:
  """Undoes `claim_workdir` if nothing else has been written.

  Flags can then be corrected with the same workdir. Hidden files do not count:
  they are locks and temporary files.
  """
  with contextlib.suppress(OSError):
    names = [n for n in os.listdir(workdir) if not n.startswith(".")]
    if names == [CONFIG]:
      os.unlink(pathlib.Path(workdir) / CONFIG)
