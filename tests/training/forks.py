"""Starts real processes in milliseconds, for tests that kill them.

`python -m tests.training.forks` imports what the experiments import, and then
forks a child for every command that it reads from its input. No backend of JAX
is up in it, so a child is what a process started by hand is, without three
seconds of imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
_TIMEOUT = 150.0  # seconds; a command takes two or three


class Done(NamedTuple):
  """Result of a process; a negative status is the signal that ended it."""

  status: int
  out: str
  err: str
  error: UserError | None = None  # that it printed


class Child:
  """Running command."""

  def __init__(self, server: Server, pid: int, directory: pathlib.Path):
    self._server, self.pid, self._directory = server, pid, directory
    self._status: int | None = None

  def running(self) -> bool:
    """Returns whether the process has not ended."""
    path = self._directory / "status"
    if self._status is None and path.exists():
      self._status = int(path.read_text())
    return self._status is None

  def kill(self) -> None:
    """Sends SIGKILL: no handler, no clean-up, no flush."""
    self._server.say({"kill": self.pid})
    self.wait()

  def wait(self, seconds: float = _TIMEOUT) -> Done:
    """Waits for the end of the process."""
    until = time.monotonic() + seconds
    while self.running():
      if time.monotonic() > until:
        self._server.say({"kill": self.pid})
        raise TimeoutError((self._directory / "err").read_text()[-2000:])
      time.sleep(0.005)
    assert self._status is not None
    out, err = (
      (self._directory / name).read_text(errors="replace")
      for name in ("out", "err")
    )
    return Done(self._status, out, err, _read_error(self._directory))


class Server:
  """Process that forks the others.

  Args:
    env: variables that differ from this process's.
  """

  def __init__(self, env: Mapping[str, str]):
    self._directory = pathlib.Path(tempfile.mkdtemp(prefix="forks-"))
    self._count = 0
    # Tests of the planner, which may have run here, say that this is a TPU.
    inherited = {k: v for k, v in os.environ.items() if k[:10] != "TPU_WORKER"}
    self._process = subprocess.Popen(
      [sys.executable, "-m", "tests.training.forks"],
      cwd=ROOT,
      env={**inherited, **env},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def say(self, message: Mapping[str, Any]) -> str:
    """Sends a request, and returns the answer."""
    process = self._process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()

  def start(
    self,
    module: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: str | pathlib.Path = ROOT,
    file_size: int = -1,
  ) -> Child:
    """Runs `python -m module arguments` in a process of its own.

    Args:
      module: its name.
      arguments: its command line.
      env: more variables.
      cwd: its working directory.
      file_size: bytes that a file may have, as on a disk that is full.
    """
    self._count += 1
    directory = self._directory / str(self._count)
    directory.mkdir()
    pid = self.say(
      dict(
        module=module,
        arguments=list(arguments),
        env=dict(env or {}),
        cwd=str(cwd),
        directory=str(directory),
        file_size=file_size,
      )
    )
    return Child(self, int(pid), directory)

  def run(self, module: str, *arguments: str, **options: Any) -> Done:
    """Starts a process, and waits for its end."""
    return self.start(module, *arguments, **options).wait()

  def close(self) -> None:
    """Ends the server."""
    process = self._process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.wait(30)
    process.stdout.close()
    shutil.rmtree(self._directory, ignore_errors=True)


def _read_error(directory: pathlib.Path) -> UserError | None:
  path = directory / "error"
  return UserError(**json.loads(path.read_text())) if path.exists() else None


def _record_error(directory: pathlib.Path) -> None:
  """Has this process write the fields of the error that it prints."""
  import resource

  from instructgpt_jax.cli import launch

  plain = launch.error_text

  def recorded(error: UserError) -> str:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    (directory / "error").write_text(json.dumps(vars(error)))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return plain(error)

  launch.error_text = recorded


def _child(order: Mapping[str, Any], out: int, err: int) -> None:
  """Runs a command in a forked process; never returns."""
  import resource
  import traceback

  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(out, 1)
  os.dup2(err, 2)
  os.environ.update(order["env"])
  os.chdir(order["cwd"])
  if order["file_size"] >= 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], -1))
  sys.argv = [order["module"], *order["arguments"]]
  _record_error(pathlib.Path(order["directory"]))
  status = 0
  try:
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
  except SystemExit as error:
    status = (
      error.code if isinstance(error.code, int) else int(bool(error.code))
    )
  except BaseException:
    traceback.print_exc()
    status = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


class _Served:
  """Forked process, on the server's side.

  Its output comes through pipes, which a limit on the size of files spares.
  """

  def __init__(self, order: Mapping[str, Any]):
    self.directory = pathlib.Path(order["directory"])
    pipes = [os.pipe() for _ in range(2)]
    self.pid = os.fork()
    if not self.pid:
      _child(order, *(write for _, write in pipes))
    self.files = {}
    for (read, write), name in zip(pipes, ("out", "err"), strict=True):
      os.close(write)
      os.set_blocking(read, False)
      self.files[read] = open(self.directory / name, "wb", buffering=0)

  def copy(self) -> None:
    """Copies available output to the files."""
    for pipe, file in self.files.items():
      with contextlib.suppress(BlockingIOError):
        while content := os.read(pipe, 65536):
          file.write(content)

  def end(self, status: int) -> None:
    """Copies the remaining output, and writes the status."""
    self.copy()
    for pipe, file in self.files.items():
      os.close(pipe)
      file.close()
    path = self.directory / "status"
    path.with_suffix(".next").write_text(str(os.waitstatus_to_exitcode(status)))
    path.with_suffix(".next").rename(path)


def _serve(preload: Sequence[str]) -> None:
  for name in preload:
    importlib.import_module(name)
  children: dict[int, _Served] = {}
  while True:
    ready, _, _ = select.select([0], [], [], 0.005 if children else None)
    for child in children.values():
      child.copy()
    while children:
      pid, status = os.waitpid(-1, os.WNOHANG)
      if not pid:
        break
      children.pop(pid).end(status)
    if not ready:
      continue
    line = _line()
    if not line:
      for pid in children:
        os.kill(pid, signal.SIGKILL)
      return
    order = json.loads(line)
    if "kill" in order:
      if order["kill"] in children:
        os.kill(order["kill"], signal.SIGKILL)
      print("", flush=True)
      continue
    served = _Served(order)
    children[served.pid] = served
    print(served.pid, flush=True)


def _line() -> bytes:
  """Reads one line of stdin without buffering."""
  line = b""
  while not line.endswith(b"\n"):
    piece = os.read(0, 1)
    if not piece:
      return b""
    line += piece
  return line


if __name__ == "__main__":
  _serve(
    (
      "instructgpt_jax.chat.engine",
      "instructgpt_jax.cli.launch",
      "instructgpt_jax.pipeline.stages",
      "instructgpt_jax.configs.presets",
      "tensorboardX",
    )
  )
