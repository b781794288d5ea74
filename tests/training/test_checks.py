"""Running programs check invariants, and that losses are finite."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from instructgpt_jax.data import batching
from instructgpt_jax.training import inputs, stage_model
from tests.training import results, toy


def errors(done):
  """Returns the lines of the error, at most three."""
  lines = done.err.splitlines()
  (start,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
  assert len(lines) - start <= 3
  assert "Traceback" not in done.err
  return "\n".join(lines[start:])


@pytest.fixture(scope="module")
def broken(stages, tmp_path_factory):
  """Runs a short PPO with a defect; returns its error and workdir."""

  def run(defect):
    path = tmp_path_factory.mktemp(defect) / "run"
    done = stages.server.run(
      "tests.training.broken",
      defect,
      "ppo",
      *stages.flags("ppo"),
      "--ppo.episodes=8",
      f"--workdir={path}",
    )
    assert done.status == 2
    assert not (path / "model").exists()
    assert not (path / "complete.json").exists()
    return errors(done)

  return run


def test_invariant_06_a_wrong_cache_is_noticed_at_the_start(broken):
  error = broken("wrong_cache")
  assert "invariant 6 does not hold" in error
  assert "0.001 nats" in error


def test_invariant_03_another_reference_is_noticed_at_the_start(broken):
  assert "invariant 3 does not hold" in broken("other_reference")


def test_invariant_01_stale_log_probabilities_are_noticed(broken):
  assert "invariant 1 does not hold" in broken("stale_rollout")


def test_invariant_29_one_bit_of_the_reference_is_noticed(broken):
  error = broken("moving_reference")
  assert "invariant 29 does not hold: the reference parameters" in error


def test_invariant_29_another_reward_model_is_noticed_on_going_on(
  stages, tmp_path
):
  reward, path = tmp_path / "reward", tmp_path / "run"
  shutil.copytree(stages["reward"], reward)
  command = [
    "experiments.ppo",
    *(f for f in stages.flags("ppo") if "reward_model" not in f),
    f"--ppo.reward_model={reward}",
    f"--workdir={path}",
  ]
  child = stages.server.start(*command)
  assert results.kill_after(child, path, 12).status == -9
  saved = results.steps(path)
  assert saved
  stage = stage_model.open_stage(str(reward))
  stage_model.save_stage_model(
    reward,
    {
      **(params := toy.nested(results.model(reward))),
      "head": {**params["head"], "bias": params["head"]["bias"] + 1},
    },
    kind=stage.kind,
    model=stage.model_config,
    data=stage.data,
  )
  done = stages.server.run(*command)
  assert done.status == 2
  assert "invariant 29 does not hold: the reward parameters" in errors(done)
  assert results.steps(path) == saved


def test_invariant_01_and_03_hold_in_a_real_run(stages):
  for name in ("ppo", "ppo_ptx"):
    first, second = results.metrics(stages[name])[:2]
    assert abs(first["ratio_mean"] - 1) < 1e-6
    assert abs(first["approx_kl"]) < 1e-6
    assert (first["clip_fraction"], first["step"]) == (0, 1)
    assert abs(first["kl"]) < 1e-5
    assert second["ratio_variance"] > first["ratio_variance"]


# Weights grow thirtyfold at every step: an overflow after a dozen of them.
EXPLODING = ("--optimizer.learning_rate=1", "--optimizer.weight_decay=30")


@pytest.mark.parametrize("name", ["pretrain", "ppo_ptx"])
def test_a_loss_that_is_not_finite_stops_the_run(name, stages, tmp_path):
  path = tmp_path / "run"
  command = [
    f"experiments.{name}",
    *stages.flags(name),
    *EXPLODING,
    "--run.save_every=1",
    f"--workdir={path}",
  ]
  done = stages.server.run(*command)
  assert done.status == 2, done.err
  error = errors(done)
  assert str(path / "bad_batch.json") in error
  assert "fix: lower the learning rate" in error
  saved = json.loads((path / "bad_batch.json").read_text())
  assert not np.isfinite(list(map(float, saved["metrics"].values()))).all()
  assert f"at step {saved['step']};" in error

  # What was saved before is whole, and finite.
  step, table, beside = results.state(path)
  assert step >= 1
  assert all(np.isfinite(x).all() for x in table.values())
  position, prefix = saved["data_position"], ""
  if name == "pretrain":
    assert (saved["step"], position) == (step + 1, beside["data"])
  else:
    # Saved after iterations of four updates each.
    assert step == (saved["step"] - 1) // 4 * 4
    assert position["prompts"] == beside["prompts"]
    assert len(saved["batch"]["prompts/tokens"]) == 8
    assert len(saved["batch"]["episodes"]) == 4
    position, prefix = position["ptx"], "ptx/"

  # The address leads to the very batch.
  batches = _pretraining(stages)
  batches.set_state(position)
  for field, values in vars(next(batches)).items():
    np.testing.assert_array_equal(saved["batch"][prefix + field], values)
  assert not (path / "model").exists()

  # The same command resumes there, and stops at the same step.
  before = results.snapshot(path / "checkpoints")
  again = stages.server.run(*command)
  assert again.status == 2
  assert errors(again) == error or "are not finite" in errors(again)
  assert json.loads((path / "bad_batch.json").read_text()) == saved
  assert results.snapshot(path / "checkpoints") == before


def _pretraining(stages):
  stage = stage_model.open_stage(str(stages["pretrain"]))
  data = dataclasses.replace(
    stage.data, pretraining=str(stages.data / "pretraining.jsonl")
  )
  rows = inputs.document_rows(inputs.documents(data).train, stage.tokenizer, 24)
  return batching.language_batches(
    rows, batching.BatchSpec(batch_size=8), pad_id=stage.tokenizer.pad_id
  )


def test_a_poisoned_model_is_not_trained_on(stages, tmp_path):
  base, path = tmp_path / "base", tmp_path / "run"
  shutil.copytree(stages["pretrain"], base)
  stage = stage_model.open_stage(str(base))
  table = results.model(base)
  name = next(n for n in table if n.endswith("final_norm/scale"))
  table[name] = table[name] * np.float32("nan")
  stage_model.save_stage_model(
    base,
    toy.nested(table),
    kind=stage.kind,
    model=stage.model_config,
    data=stage.data,
  )
  flags = [f for f in stages.flags("sft") if "init_from" not in f]
  done = stages.run("sft", *flags, f"--init_from={base}", f"--workdir={path}")
  assert done.status == 2
  assert "loss is nan at step 1;" in errors(done)
  saved = json.loads((path / "bad_batch.json").read_text())
  assert (saved["step"], saved["metrics"]["loss"]) == (1, "nan")
  assert results.steps(path) == []
