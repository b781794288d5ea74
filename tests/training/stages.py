"""Toy stages that run once, and are shared by all tests and workers."""

from __future__ import annotations

import pathlib

from tests.fast_compile import XLA_FLAGS
from tests.locks import alone
from tests.training import forks, toy

# No program is compiled twice.
FAST = {
  "JAX_PLATFORMS": "cpu",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  "XLA_FLAGS": XLA_FLAGS,
  "OPENBLAS_NUM_THREADS": "1",
}


class Stages:
  """Workdirs of finished stages; each runs when it is first requested.

  Args:
    directory: directory shared by all workers of a test run.
    server: starts processes.
  """

  def __init__(self, directory: pathlib.Path, server: forks.Server):
    self.directory, self.server = directory, server
    self.data = directory / "data"
    with alone(self.data):
      if not self.data.exists():
        toy.write_data(self.data)

  def flags(self, name: str) -> list[str]:
    """Returns the flags of a stage without its workdir."""
    flags = [*toy.MODEL, *toy.RUN, *toy.STAGES[name]]
    flags += toy.sources(self.data, *toy.READS[name])
    if name in toy.STARTS:
      flags.append(f"--init_from={self[toy.STARTS[name]]}")
    if name.startswith("ppo"):
      flags.append(f"--ppo.reward_model={self['reward']}")
    return flags

  def __getitem__(self, name: str) -> pathlib.Path:
    path = self.directory / name
    flags = [] if path.exists() else self.flags(name)
    with alone(path):
      if not (path / "complete.json").exists():
        done = self.run(name, *flags, f"--workdir={path}")
        assert done.status == 0, done.err
    return path

  def run(self, name: str, *flags: str, **options) -> forks.Done:
    """Runs `python -m experiments.NAME` to its end."""
    return self.server.run(f"experiments.{name}", *flags, **options)
