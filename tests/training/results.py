"""Reads the results in a workdir, without values that depend on time."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from instructgpt_jax.checkpoint import checkpoints
from tests.training import forks

TIMES = (
  "seconds",
  "steps_per_second",
  "tokens_per_second",
  "episodes_per_second",
)
Workdir = str | pathlib.Path


def lines(workdir: Workdir) -> int:
  """Counts the lines of metrics that have been written."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(
  child: forks.Child, workdir: Workdir, count: int, pause: float = 0.0
) -> forks.Done:
  """Kills a process some time after it has written `count` lines of metrics."""
  while child.running() and lines(workdir) < count:
    time.sleep(0.002)
  time.sleep(pause)
  child.kill()
  return child.wait()


def timeless(value: Any) -> Any:
  """Removes values that depend on time from JSON."""
  if isinstance(value, dict):
    return {k: timeless(v) for k, v in value.items() if k not in TIMES}
  return value


def metrics(workdir: Workdir) -> list[dict[str, Any]]:
  """Returns all lines of metrics."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [timeless(json.loads(line)) for line in text.splitlines()]


def summary(workdir: Workdir) -> dict[str, Any]:
  """Returns the summary of a finished run."""
  text = (pathlib.Path(workdir) / "complete.json").read_text()
  return timeless(json.loads(text))


def report(workdir: Workdir) -> dict[str, Any]:
  """Returns a pipeline's report."""
  text = (pathlib.Path(workdir) / "report.json").read_text()
  return timeless(json.loads(text))


def steps(workdir: Workdir) -> list[int]:
  """Returns the steps of complete checkpoints."""
  with checkpoints.Checkpointer(workdir) as saver:
    return saver.steps


def arrays(path: Workdir) -> dict[str, np.ndarray]:
  """Returns path → array of a model or checkpoint."""
  actual: Any = ocp.metadata(path).metadata
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  expected = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    for name, leaf in actual.items()
  }
  table: Any = ocp.load(path, expected)
  return jax.device_get(table)


def model(workdir: Workdir) -> dict[str, np.ndarray]:
  """Returns path → array of a run's model."""
  return arrays(pathlib.Path(workdir) / "model")


def state(workdir: Workdir) -> tuple[int, dict[str, np.ndarray], Any]:
  """Returns (step, path → array, extra) of the newest checkpoint."""
  step = steps(workdir)[-1]
  path = pathlib.Path(workdir) / "checkpoints" / str(step)
  actual: Any = ocp.metadata(path).custom_metadata
  return step, arrays(path), timeless(actual["info"])


def assert_same_arrays(
  actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
  """Checks that arrays are equal bit for bit."""
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    assert actual[name].tobytes() == array.tobytes(), name


def assert_same_run(actual: Workdir, expected: Workdir) -> None:
  """Checks that two runs have the same results, bit for bit."""
  assert metrics(actual) == metrics(expected)
  assert summary(actual) == summary(expected)
  assert_same_arrays(model(actual), model(expected))
  step, table, beside = state(actual)
  expected_step, expected_table, expected_beside = state(expected)
  assert (step, beside) == (expected_step, expected_beside)
  assert_same_arrays(table, expected_table)


def snapshot(workdir: Workdir) -> dict[str, bytes]:
  """Returns path → content of every file."""
  directory = pathlib.Path(workdir)
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }
