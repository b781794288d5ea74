"""Processes and finished stages for all tests of the loops."""

import pathlib

import pytest

from tests.training import forks
from tests.training import stages as stages_lib


@pytest.fixture(scope="session")
def shared(common) -> pathlib.Path:
  """The folder of the loops' tests in it."""
  folder = common / "loops"
  folder.mkdir(exist_ok=True)
  return folder


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
