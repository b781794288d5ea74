"""Fixture that starts sweeps in processes and ends them after the test."""

import pytest

from tests.sweeps import runs


@pytest.fixture
def start_sweep():
  """Starts a sweep of counters, as `runs.start_sweep`: its process."""
  begun = []

  def start(workdir, *argv, **more):
    begun.append(runs.start_sweep(workdir, *argv, **more))
    return begun[-1]

  yield start
  for process in begun:
    process.kill()
    process.communicate(timeout=60)
