"""What all tests share."""

import atexit
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import pytest

from tests.locks import alone

# Little is computed in tests and much compiled: as little optimising as can be.
# Before JAX is imported; processes that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# What one test has compiled, others and their processes load. The folder is not
# the user's, and all workers of a test run have the same one.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _compiled = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> pathlib.Path:
  """One folder for all workers of this test run."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def once(common) -> Callable[[str, Callable[[pathlib.Path], None]], str]:
  """(name, function) → a folder, which the function fills for all workers."""

  def filled(name: str, fill: Callable[[pathlib.Path], None]) -> str:
    folder = common / "once" / name
    with alone(folder):
      if not (folder / ".filled").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fill(folder)
        (folder / ".filled").touch()
    return str(folder)

  return filled
