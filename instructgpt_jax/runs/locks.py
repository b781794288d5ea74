"""Locks between processes: `flock` on files or directories.

The system releases a lock when the last process that has it ends, in any way.
Network file systems with a lock service (NFS 4, Lustre, GPFS) have these locks
across hosts. On others they work within one host, or not at all.
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

from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line

LOCK = ".lock"  # in a workdir that a run writes
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def acquire(
  path: str | os.PathLike[str], seconds: float = 0.0, *, shared: bool = False
) -> int | None:
  """Acquires a lock; `os.close` of the result releases it.

  Args:
    path: file of the lock; made if missing.
    seconds: how long to wait for another process that has it.
    shared: whether other processes may share the lock.

  Returns:
    The descriptor of the locked file, or None if another process has it.

  Raises:
    UserError: the file system has no locks, or the file cannot be made.
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
  """Locks an open file or directory; returns False if another process has it.

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
  """Waits for a lock, and holds it during the block."""
  descriptor = acquire(path, float("inf"))
  assert descriptor is not None
  try:
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def lock_workdir(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Locks a run's workdir during the block, in its main process.

  A file system without locks causes a warning only, because a run that shares
  its workdir with no other needs no lock.

  Args:
    directory: made if missing, and removed again if it stays empty.

  Raises:
    UserError: another run has the lock.
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
      # Removed while locked; a process that waits for it checks the path again.
      with contextlib.suppress(OSError):
        os.unlink(path)
      os.close(descriptor)
    if not existed:
      with contextlib.suppress(OSError):
        os.rmdir(directory)


def _workdir_lock(path: pathlib.Path) -> int | None:
  """Acquires the lock of a workdir; returns None if it cannot have one."""
  while True:
    try:
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      if error.errno in _NOT_WRITABLE:
        return None  # The run cannot write there either, and reports that.
      raise files.disk_error(error, path) from error
    try:
      locked = lock(descriptor)
    except OSError as error:
      os.close(descriptor)
      if error.errno not in _NO_LOCKS:
        raise files.disk_error(error, path) from error
      log_line(
        f"warning: {path.parent} cannot be locked ({error.strerror}); do not"
        " start a second run there"
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
    os.close(descriptor)  # Its owner has removed it in the meantime.


def in_use(directory: str | os.PathLike[str], owner: str = "") -> UserError:
  """Returns the error for a workdir that another run writes."""
  return UserError(
    f"is in use by {owner or 'another process'}",
    file=str(directory),
    fix="wait until that run ends, or choose another --workdir",
    code="workdir_in_use",
  )


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


def _owner(path: pathlib.Path) -> str:
  """Returns the name of the process that has a lock, or ""."""
  try:
    owner = json.loads(path.read_text())
    return f"process {int(owner['process'])} on {owner['host']}"
  except (OSError, ValueError, KeyError, TypeError):
    return ""
