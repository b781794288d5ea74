"""After SIGTERM a run saves, exits with 0, and resumes bit for bit."""

import os
import signal
import time

import pytest

from instructgpt_jax.distributed import preemption
from tests.training import results

# Steps of a call at which it comes; 32 updates of PPO-ptx, 4 an iteration.
STEPS = {"sft": (11,), "reward": (7,), "ppo_ptx": (1, 6, 12)}


@pytest.mark.parametrize("name", STEPS)
def test_each_stage_saves_at_sigterm_and_resumes(name, stages, tmp_path):
  """Signals arrive within an epoch, or between updates of an iteration."""
  path = tmp_path / "run"
  command = [*stages.flags(name), f"--workdir={path}"]
  step = 0
  for more in STEPS[name]:
    step += more
    done = stages.server.run(
      "tests.training.at_step", str(more), "sigterm", name, *command
    )
    assert done.status == 0, done.err
    assert done.err.splitlines()[-1] == preemption.STOPPED
    assert results.steps(path)[-1] == step
    assert not (path / "complete.json").exists()
  done = stages.run(name, *command)
  assert done.status == 0, done.err
  results.assert_same_run(path, stages[name])


@pytest.mark.parametrize("count", [0, 3])
def test_sigterm_from_another_process(count, stages, tmp_path):
  """Signals arrive before the loop, with nothing to save, and in it."""
  path = tmp_path / "run"
  child = stages.server.start(
    "experiments.pretrain",
    *stages.flags("pretrain"),
    "--pretrain.steps=1000000",
    "--run.save_every=0",
    f"--workdir={path}",
  )
  while not path.exists() or results.lines(path) < count:
    assert child.running()
    time.sleep(0.002)
  os.kill(child.pid, signal.SIGTERM)
  done = child.wait()
  assert done.status == 0, done.err
  assert done.err.splitlines()[-1] == preemption.STOPPED
  if count:
    assert results.steps(path) == [results.metrics(path)[-1]["step"]]


@pytest.mark.parametrize(
  "case, status, out",
  [
    (("nothing_to_save",), 0, ""),
    (("in_a_loop",), 0, "at the next step: True\n"),
    (("after_the_last_step",), 0, ""),
    (("twice", str(int(signal.SIGTERM))), -signal.SIGTERM, "saving\n"),
    (("twice", str(int(signal.SIGINT))), -signal.SIGINT, "saving\n"),
  ],
)
def test_exit_status_after_signals(server, case, status, out):
  done = server.run("tests.training.ended", *case)
  assert (done.status, done.out) == (status, out), done.err
  assert done.err == (preemption.STOPPED + "\n" if status == 0 else "")


def test_best_and_periodic_checkpoints_are_kept(stages, tmp_path):
  flags = ["--run.keep=1", "--run.keep_every=10", "--run.keep_best=valid_loss"]
  done = stages.run(
    "sft", *stages.flags("sft"), *flags, f"--workdir={tmp_path}"
  )
  assert done.status == 0, done.err
  measured = {
    row["step"]: row["valid_loss"]
    for row in results.metrics(tmp_path)
    if "valid_loss" in row
  }
  best = min(measured, key=lambda step: measured[step])
  last = max(measured)
  assert best < last  # It overfits.
  expected = {best, last}
  # The first saved at or after each multiple of ten.
  saved = sorted({*measured, *range(5, last + 1, 5), last})
  for ten in range(10, last + 1, 10):
    expected |= {
      step
      for step in saved
      if step // 10 == ten // 10
      and step == min(s for s in saved if s // 10 == ten // 10)
    }
  assert set(results.steps(tmp_path)) == expected
  results.assert_same_arrays(
    results.model(tmp_path), results.model(stages["sft"])
  )


def test_keep_best_of_an_unknown_measure_is_refused(stages, tmp_path):
  done = stages.run(
    "reward",
    *stages.flags("reward"),
    "--run.keep_best=valid_loss",
    f"--workdir={tmp_path}",
  )
  assert done.status == 2
  assert "[run.keep_best]" in done.err
  assert not list(tmp_path.glob("checkpoints/*"))
