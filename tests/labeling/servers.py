"""A PostgreSQL server for tests, where one can be started."""

from __future__ import annotations

import contextlib
import getpass
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

_SECONDS = 120


def _user() -> str | None:
  """Returns a user who may run the server, which root may not."""
  if os.geteuid() != 0:
    return getpass.getuser()
  names = {entry.pw_name for entry in pwd.getpwall()}
  return next((n for n in ("postgres", "nobody") if n in names), None)


def _run(user: str, *command: str, cwd: str) -> None:
  done = subprocess.run(
    command,
    user=user if os.geteuid() == 0 else None,
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=_SECONDS,
  )
  if done.returncode:
    pytest.skip(f"{command[0]}: {done.stderr or done.stdout}")


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
  """Starts a server on a Unix socket; yields the URL of its database."""
  programs = [shutil.which(name) for name in ("initdb", "pg_ctl")]
  if None in programs:
    pytest.skip("initdb and pg_ctl are not on the PATH")
  user = _user()
  if user is None:
    pytest.skip("the server does not run as root, and there is no other user")
  initdb, pg_ctl = (str(program) for program in programs)
  # Not below pytest's directory, which other users cannot enter.
  directory = tempfile.mkdtemp(prefix="pg-", dir="/tmp")
  try:
    if os.geteuid() == 0:
      shutil.chown(directory, user)
    data = str(pathlib.Path(directory) / "data")
    _run(
      user,
      *(initdb, "-D", data, "-U", "labeling", "-A", "trust", "-E", "UTF8"),
      "--no-sync",
      cwd=directory,
    )
    control = (pg_ctl, "-D", data, "-w", "-t", str(_SECONDS))
    options = f"-k {directory} -c listen_addresses= -c fsync=off"
    log = str(pathlib.Path(directory) / "log")
    _run(user, *control, "-l", log, "-o", options, "start", cwd=directory)
    try:
      yield f"postgresql://labeling@/postgres?host={directory}"
    finally:
      _run(user, *control, "-m", "immediate", "stop", cwd=directory)
  finally:
    for _ in range(10):
      shutil.rmtree(directory, ignore_errors=True)
      if not os.path.exists(directory):
        break
      time.sleep(0.2)
