"""Fixtures: processes, and workdirs of finished stages."""

import pathlib

import pytest

from tests.training import forks
from tests.training import stages as stages_lib


@pytest.fixture(scope="session")
def shared(common) -> pathlib.Path:
  """Returns the directory that the tests of training share."""
  directory = common / "training"
  directory.mkdir(exist_ok=True)
  return directory


@pytest.fixture(scope="session")
def server(shared):
  """Starts processes of this program."""
  running = forks.Server(
    {**stages_lib.FAST, "JAX_COMPILATION_CACHE_DIR": str(shared / "cache")}
  )
  yield running
  running.close()


@pytest.fixture(scope="session")
def stages(shared, server):
  """Workdirs of finished stages by name."""
  return stages_lib.Stages(shared, server)
