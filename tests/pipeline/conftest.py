"""The finished pipeline that the tests of this directory read."""

import pytest

from tests.pipeline import world


@pytest.fixture(scope="session")
def world_run(once):
  """Runs the whole pipeline on the world, and records compilations."""
  return once("world_run", world.run_and_observe)
