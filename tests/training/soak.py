"""Kills a pipeline repeatedly.

Each kill is a SIGKILL, or now and then a SIGTERM, after a random time; the same
command then resumes. A pipeline that completes must equal one without a kill,
bit for bit; then the next pipeline begins.
"""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import time

from tests.training import forks, results, toy

# All stages of a pipeline on given files, each of some steps.
PIPELINE = (
  "--pretrain.steps=12",
  "--pretrain.batch_size=8",
  "--pretrain.sequence=24",
  "--pretrain.eval_every=6",
  "--policy_init.epochs=1",
  "--policy_init.batch_size=8",
  "--sft.epochs=2",
  "--sft.batch_size=8",
  "--reward.batch_size=2",
  "--ppo.episodes=24",
  "--ppo.rollout_batch=8",
  "--ppo.minibatch=4",
  "--ppo.inner_epochs=2",
  "--ppo.ptx_ratio=1",
  "--ppo.ptx_microbatch=4",
  "--ppo.ptx_sequence=24",
  "--evaluation.prompts=4",
  "--evaluation.samples=1",
  "--evaluation.best_of_n=2",
  "--evaluation.prefix_prompts=2",
  "--evaluation.bootstrap=100",
  "--evaluation.judge_fraction=0.4",
)
_PATIENCE = 600.0  # seconds for a whole pipeline, on a machine that is busy


def flags(data: pathlib.Path) -> list[str]:
  """Returns the pipeline's flags without its workdir."""
  return [*toy.MODEL, *toy.RUN, "--run.save_every=2", *PIPELINE,
          *toy.sources(data, *toy.KINDS)]  # fmt: skip


def assert_same_pipeline(actual: pathlib.Path, expected: pathlib.Path) -> None:
  """Checks that two pipelines have equal results, except for times."""
  stages, others = (
    sorted(p.parent.name for p in directory.glob("*/complete.json"))
    for directory in (expected, actual)
  )
  assert stages and stages == others
  for name in stages:
    results.assert_same_run(actual / name, expected / name)
  for path in expected.glob("rankings/*"):
    other = actual / "rankings" / path.name
    assert other.read_bytes() == path.read_bytes(), path.name
  if (expected / "report.json").exists():
    assert results.report(actual) == results.report(expected)


def soak(
  server: forks.Server,
  command: list[str],
  directory: pathlib.Path,
  kills: int,
  rng: random.Random,
) -> int:
  """Kills pipelines `kills` times, and compares each that finishes.

  Args:
    server: starts processes.
    command: the pipeline's, but for its workdir.
    directory: directory of the pipelines' workdirs.
    kills: how often to kill.
    rng: when, and by which signal.

  Returns:
    How many pipelines were compared.
  """
  straight = directory / "straight"
  began = time.monotonic()
  child = server.start(
    "experiments.pipeline", *command, f"--workdir={straight}"
  )
  done = child.wait(_PATIENCE)
  assert done.status == 0, done.err
  whole = time.monotonic() - began
  path, compared = directory / "killed", 0
  while True:
    pipeline = [*command, f"--workdir={path}"]
    child = server.start("experiments.pipeline", *pipeline)
    if kills > 0:
      # Programs are compiled by now, so a whole pipeline takes far less time.
      until = time.monotonic() + whole * min(0.5, rng.expovariate(8))
      while child.running() and time.monotonic() < until:
        time.sleep(0.005)
    if kills > 0 and child.running():
      kills -= 1
      if rng.random() < 0.8:
        child.kill()
      else:
        os.kill(child.pid, signal.SIGTERM)
    done = child.wait(_PATIENCE)
    # A SIGTERM that comes before the program has begun is the system's.
    assert done.status in (0, -signal.SIGKILL, -signal.SIGTERM), done.err
    if (path / "complete.json").exists():
      assert_same_pipeline(path, straight)
      compared += 1
      print(f"{compared} compared, {kills} kills to go", flush=True)
      if kills <= 0:
        return compared
      shutil.rmtree(path)
