"""Sweeps of fake experiments, in this process and in others."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from instructgpt_jax.runs import files
from instructgpt_jax.sweeps.jobs import Job

ROOT = pathlib.Path(__file__).parent.parent.parent
MODULE = "tests.sweeps.fake"


def job(name, *needs, **flags):
  """Makes a counter's job; `section_rate` sets section.rate."""
  flags = {k.replace("section_", "section."): v for k, v in flags.items()}
  return Job(name, "counter", flags, needs, MODULE)


def starts(workdir):
  """Returns (process, count, cores) of each start of a counter."""
  path = pathlib.Path(workdir) / "starts.txt"
  lines = path.read_text().splitlines() if path.exists() else []
  return [
    (int(pid), int(count), {int(c) for c in cores.split(",")})
    for pid, count, cores in (line.split() for line in lines)
  ]


def summary(workdir):
  """Returns the summary of a complete counter."""
  result = files.read_complete(workdir)
  assert result is not None
  return result


def start_sweep(workdir, *argv, interrupts=signal.SIG_DFL):
  """Starts a sweep of counters in a new process that handles ^C."""
  before = signal.signal(signal.SIGINT, interrupts)
  try:
    return subprocess.Popen(
      [sys.executable, "-m", f"{MODULE}.sweep", "--experiment=counter",
       f"--workdir={workdir}", *argv],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )  # fmt: skip
  finally:
    signal.signal(signal.SIGINT, before)


def wait_for(poll, seconds=300.0):
  """Polls a function until its result is true, and returns that."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    value = poll()
    if value:
      return value
    time.sleep(0.02)
  raise AssertionError("it did not happen in time")


def at_the_gate(workdir, worker=None):
  """Returns the workdir of a running counter that stays at 3, or None."""
  for path in pathlib.Path(workdir).rglob("count.json"):
    *_, (pid, _, _) = starts(path.parent)
    mine = worker is None or parent(pid) == worker.pid
    if mine and alive(pid) and files.read_json(path) == 3:
      return path.parent
  return None


def _status(pid):
  """Returns (state, parent) of a process; a dead one is in state Z."""
  try:
    with open(f"/proc/{pid}/stat") as file:
      state, above = file.read().rpartition(")")[2].split()[:2]
      return state, int(above)
  except (FileNotFoundError, ProcessLookupError):
    return "Z", 0


def alive(pid):
  """Returns whether a process runs."""
  return _status(pid)[0] != "Z"


def parent(pid):
  """Returns the parent of a process."""
  return _status(pid)[1]


def gone(pid):
  """Waits until a process has ended."""
  wait_for(lambda: not alive(pid), 60.0)


def cores():
  """Returns the cores that this process may use."""
  return sorted(os.sched_getaffinity(0))
