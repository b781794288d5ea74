"""Tests of how the benchmarks of memory measure it."""

import os
import subprocess
import sys

import pytest

from benchmarks import corpus

_CHILD = "x = bytearray(60_000_000); print('ready', flush=True); input()"
_PARENT = (
  "import subprocess, sys;"
  f" sys.exit(subprocess.run([sys.executable, '-c', {_CHILD!r}]).returncode)"
)


@pytest.mark.skipif(
  not os.path.isdir("/proc/self/task"), reason="reads Linux's /proc"
)
def test_memory_of_children_counts():
  with subprocess.Popen(
    [sys.executable, "-c", _PARENT],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert corpus.resident(process.pid) > 60_000_000
    process.communicate("\n")
  assert process.returncode == 0
  assert corpus.resident(process.pid) == 0
