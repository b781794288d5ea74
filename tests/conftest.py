"""Settings and fixtures of all tests."""

import atexit
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import pytest

from tests.fast_compile import XLA_FLAGS
from tests.locks import alone

# Set before JAX is imported; processes that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
# Compilation cache of all workers and of the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _compiled = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> pathlib.Path:
  """Returns a directory that all workers of this test run share."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def once(common) -> Callable[[str, Callable[[pathlib.Path], None]], str]:
  """Returns (name, function) → directory, filled once for all workers."""

  def filled(name: str, fill: Callable[[pathlib.Path], None]) -> str:
    directory = common / "once" / name
    with alone(directory):
      if not (directory / ".filled").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        fill(directory)
        (directory / ".filled").touch()
    return str(directory)

  return filled
