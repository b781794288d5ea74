"""A run that is killed and started again gives what an unkilled one gives."""

import json
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

import jax
import pytest
from orbax.checkpoint import v1 as ocp

from instructgpt_jax.runtime import checkpoint
from tests.loops import forks, toy

TIMES = ("seconds", "steps_per_second", "tokens_per_second")
TIMES += ("episodes_per_second",)


def lines(workdir):
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def timeless(value):
  """JSON without what a clock says."""
  if isinstance(value, dict):
    return {k: timeless(v) for k, v in value.items() if k not in TIMES}
  return value


def metrics(workdir):
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [timeless(json.loads(line)) for line in text.splitlines()]


def summary(workdir):
  return timeless(
    json.loads((pathlib.Path(workdir) / "complete.json").read_text())
  )


def steps(workdir):
  """Steps of the whole checkpoints."""
  with checkpoint.Checkpointer(workdir, keep=9) as saver:
    return saver.steps


def arrays(path):
  """Path in the tree → array of a model or checkpoint."""
  found: Any = ocp.metadata(path).metadata
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    for name, leaf in found.items()
  }
  return jax.device_get(ocp.load(path, wanted))


def state(workdir):
  """The newest checkpoint: (step, path → array, what is saved beside)."""
  step = steps(workdir)[-1]
  path = pathlib.Path(workdir) / "checkpoints" / str(step)
  extra = (ocp.metadata(path).custom_metadata or {})["extra"]
  return step, arrays(path), timeless(extra)


def assert_same_arrays(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype
    assert found[name].tobytes() == array.tobytes(), name


def assert_same_run(found, wanted):
  """Two workdirs hold the same but for what a clock says."""
  assert metrics(found) == metrics(wanted)
  assert summary(found) == summary(wanted)
  assert_same_arrays(
    arrays(pathlib.Path(found) / "model"), arrays(pathlib.Path(wanted) / "model")
  )
  step, table, extra = state(found)
  wanted_step, wanted_table, wanted_extra = state(wanted)
  assert (step, extra) == (wanted_step, wanted_extra)
  assert_same_arrays(table, wanted_table)


def kill_after(child, workdir, count, pause):
  """Waits for so many lines of metrics, then a little; kills the process."""
  while child.running() and lines(workdir) < count:
    time.sleep(0.001)
  time.sleep(pause)
  child.kill()
  return child.wait()


@pytest.mark.parametrize("name", toy.STAGES)
def test_invariant_30_killed_and_started_again(name, stages, tmp_path):
  straight = stages[name]
  total = lines(straight)
  seed = random.SystemRandom().randrange(10**6)
  rng = random.Random(seed)
  moments = [
    (int(total * rng.uniform(low, low + 0.35)), rng.uniform(0, 0.04))
    for low in (0.05, 0.45)
  ]
  moments.append((total, rng.uniform(0, 0.3)))
  print(f"seed {seed}: lines of {total}, and seconds after: {moments}")
  command = [f"experiments.{name}", *stages.flags(name)]
  command.append(f"--workdir={tmp_path / 'run'}")
  for count, pause in moments:
    child = stages.server.start(*command)
    done = kill_after(child, tmp_path / "run", count, pause)
    assert done.status in (-9, 0 if count == total else -9), done.err
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  assert_same_run(tmp_path / "run", straight)
