"""What a run leaves in its workdir, but for what a clock says."""

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
  """Lines of metrics that are written by now."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(
  child: forks.Child, workdir: Workdir, count: int, pause: float = 0.0
) -> forks.Done:
  """Waits for so many lines of metrics, then a little; kills the process."""
  while child.running() and lines(workdir) < count:
    time.sleep(0.002)
  time.sleep(pause)
  child.kill()
  return child.wait()


def timeless(value: Any) -> Any:
  """JSON without what a clock says."""
  if isinstance(value, dict):
    return {k: timeless(v) for k, v in value.items() if k not in TIMES}
  return value


def metrics(workdir: Workdir) -> list[dict[str, Any]]:
  """All lines of metrics."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [timeless(json.loads(line)) for line in text.splitlines()]


def summary(workdir: Workdir) -> dict[str, Any]:
  """What the end of the run says."""
  text = (pathlib.Path(workdir) / "complete.json").read_text()
  return timeless(json.loads(text))


def report(workdir: Workdir) -> dict[str, Any]:
  """What a pipeline's report says."""
  text = (pathlib.Path(workdir) / "report.json").read_text()
  return timeless(json.loads(text))


def steps(workdir: Workdir) -> list[int]:
  """Steps of the whole checkpoints."""
  with checkpoints.Checkpointer(workdir) as saver:
    return saver.steps


def arrays(path: Workdir) -> dict[str, np.ndarray]:
  """Path in the tree → array of a model or checkpoints."""
  found: Any = ocp.metadata(path).metadata
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    for name, leaf in found.items()
  }
  table: Any = ocp.load(path, wanted)
  return jax.device_get(table)


def model(workdir: Workdir) -> dict[str, np.ndarray]:
  """Path → array of the model that the run left."""
  return arrays(pathlib.Path(workdir) / "model")


def state(workdir: Workdir) -> tuple[int, dict[str, np.ndarray], Any]:
  """The newest checkpoint: step, path → array, what is saved beside."""
  step = steps(workdir)[-1]
  path = pathlib.Path(workdir) / "checkpoints" / str(step)
  found: Any = ocp.metadata(path).custom_metadata
  return step, arrays(path), timeless(found["info"])


def assert_same_arrays(
  found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]
) -> None:
  """Bit for bit."""
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype, name
    assert found[name].tobytes() == array.tobytes(), name


def assert_same_run(found: Workdir, wanted: Workdir) -> None:
  """Two workdirs hold the same, bit for bit."""
  assert metrics(found) == metrics(wanted)
  assert summary(found) == summary(wanted)
  assert_same_arrays(model(found), model(wanted))
  step, table, beside = state(found)
  wanted_step, wanted_table, wanted_beside = state(wanted)
  assert (step, beside) == (wanted_step, wanted_beside)
  assert_same_arrays(table, wanted_table)


def snapshot(workdir: Workdir) -> dict[str, bytes]:
  """Path → content of every file."""
  folder = pathlib.Path(workdir)
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }
