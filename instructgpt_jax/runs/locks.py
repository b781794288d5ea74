"""Locks between processes: `flock`s on files or directories.

The system releases such a lock when the last process that has it ends, however
it ends. Network file systems that SQLite can be used on (NFS 4, Lustre, GPFS
with their lock service on) have these locks across hosts as well. On others
they work between the processes of one host, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.distributed import processes
from instructgpt_jax.runs.progress import log_line

LOCK = ".lock"  # in a workdir that a run writes
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def acquire(
  path: str | os.PathLike[str], seconds: float = 0.0, *, shared: bool = False
) -> int | None:
  """Takes a lock; `os.close` of the result releases it.

  Args:
    path: the lock's file; made when missing.
    seconds: how long to wait for another process that has it.
    shared: several processes may have the lock, as long as all share it.

  Returns:
    The open file that holds the lock, or None when another process has it.
  """
  files.make_directory(os.path.dirname(path) or ".")
  with files.disk_errors_as_user_errors(path):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    if lock(descriptor, seconds, shared=shared):
      return descriptor
  except OSError as error:
    os.close(descriptor)
    raise UserError(
      f"cannot be locked: {error.strerror}",
      file=str(path),
      fix="choose a --workdir on a file system that has locks",
      code="no_locks",
    ) from error
  os.close(descriptor)
  return None


def lock(
  descriptor: int, seconds: float = 0.0, *, shared: bool = False
) -> bool:
  """Locks an open file or directory; False when another process has the lock.

  Raises:
    OSError: the file system has no locks.
  """
  until = time.monotonic() + seconds
  kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  while True:
    try:
      fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      if time.monotonic() >= until:
        return False
    time.sleep(0.05)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
  """Waits for a lock and has it during the block."""
  descriptor = acquire(path, float("inf"))
  assert descriptor is not None
  try:
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def lock_workdir(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Locks a run's workdir during the block, in the process that writes.

  One process of a run takes the lock. A file system without locks is only a
  warning: a run that shares its workdir with no other needs no lock.

  Args:
    directory: made when missing, and removed again when it stays empty.

  Raises:
    UserError: `workdir_in_use`, another run has the lock.
  """
  if not processes.is_main_process():
    yield
    return
  existed = os.path.isdir(directory)
  files.make_directory(directory)
  path = pathlib.Path(directory) / LOCK
  descriptor = _workdir_lock(path)
  try:
    yield
  finally:
    if descriptor is not None:
      # Removed while it is locked: whoever waits for it looks again.
      with contextlib.suppress(OSError):
        os.unlink(path)
      os.close(descriptor)
    if not existed:
      with contextlib.suppress(OSError):
        os.rmdir(directory)


def _workdir_lock(path: pathlib.Path) -> int | None:
  """Takes the lock of a workdir; None where there can be none."""
  while True:
    try:
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      if error.errno in _NOT_WRITABLE:
        return None  # Nor can a run write there: it says so itself.
      raise files.disk_error(error, path) from error
    try:
      locked = lock(descriptor)
    except OSError as error:
      os.close(descriptor)
      if error.errno not in _NO_LOCKS:
        raise files.disk_error(error, path) from error
      log_line(
        f"warning: {path.parent} cannot be locked ({error.strerror}); start no"
        " second run there"
      )
      return None
    if not locked:
      os.close(descriptor)
      raise in_use(path.parent, _owner(path))
    if _is_at(descriptor, path):
      owner = {"process": os.getpid(), "host": socket.gethostname()}
      with files.disk_errors_as_user_errors(path):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode() + b"\n")
      return descriptor
    os.close(descriptor)  # Its owner has just removed it.


def in_use(directory: str | os.PathLike[str], owner: str = "") -> UserError:
  """Returns the error for a workdir that another run writes."""
  return UserError(
    f"is in use by {owner or 'another process'}",
    file=str(directory),
    fix="wait until that run has ended, or choose another --workdir",
    code="workdir_in_use",
  )


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


def _owner(path: pathlib.Path) -> str:
  """Names the process that has a lock, if it has written its name."""
  try:
    owner = json.loads(path.read_text())
    return f"process {int(owner['process'])} on {owner['host']}"
  except (OSError, ValueError, KeyError, TypeError):
    return ""
