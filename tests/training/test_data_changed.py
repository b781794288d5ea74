"""A stopped run does not resume with changed data."""

import json
import shutil

import jax
import pytest

from instructgpt_jax.checkpoint import checkpoints
from tests.training import results
from tests.training.test_bad_input import error_of, replaced

# Each source of a stage, and how one of its records is changed.
CHANGED = {
  "demonstrations": lambda r: r | {"completion": "ka ke"},
  "comparisons": lambda r: r | {"ranks": r["ranks"][::-1]},
  "prompts": lambda r: r | {"prompt": "red ka ke"},
  "pretraining": lambda r: r | {"text": "ba be bi"},
}


def copied(stages, directory, kinds):
  for kind in kinds:
    content = (stages.data / f"{kind}.jsonl").read_bytes()
    (directory / f"{kind}.jsonl").write_bytes(content)
  return {kind: directory / f"{kind}.jsonl" for kind in kinds}


def stopped(stages, name, flags):
  done = stages.server.run(
    "tests.training.at_step", "3", "sigterm", name, *flags
  )
  assert done.status == 0, done.err


@pytest.mark.parametrize(
  ("name", "kinds"),
  [
    ("policy_init", ("demonstrations", "pretraining")),
    ("reward", ("comparisons", "demonstrations")),
    ("ppo_ptx", ("prompts", "pretraining")),
  ],
)
def test_changed_sources_are_refused_on_resume(name, kinds, stages, tmp_path):
  paths = copied(stages, tmp_path, kinds)
  flags = replaced(stages.flags(name), **paths)
  flags.append(f"--workdir={tmp_path / 'run'}")
  stopped(stages, name, flags)
  before = results.snapshot(tmp_path / "run")
  for kind in kinds:
    lines = paths[kind].read_text().splitlines()
    # One training record differs; the last one in any case leaves the file.
    record = CHANGED[kind](json.loads(lines[2]))
    paths[kind].write_text(
      "\n".join([*lines[:2], json.dumps(record), *lines[3:]]) + "\n"
    )
    error = error_of(stages.run(name, *flags))
    assert error.field == f"data.{kind}"
    problem = error.problem
    assert f"{kind}.jsonl had" in problem or "contents differ" in problem
    paths[kind].write_text("\n".join(lines) + "\n")
    after = results.snapshot(tmp_path / "run")
    assert after == before
  done = stages.run(name, *flags)
  assert done.status == 0, done.err
  assert results.metrics(tmp_path / "run") == results.metrics(stages[name])


def test_fewer_records_are_named(stages, tmp_path):
  paths = copied(stages, tmp_path, ["demonstrations"])
  path = paths["demonstrations"]
  flags = replaced(stages.flags("sft"), **paths)
  flags.append(f"--workdir={tmp_path / 'run'}")
  stopped(stages, "sft", flags)
  lines = path.read_text().splitlines()
  path.write_text("\n".join(lines[4:]) + "\n")
  error = error_of(stages.run("sft", *flags))
  assert "train had 24 records, now 20" in error.problem


def test_two_runs_do_not_share_a_workdir(stages, tmp_path):
  flags = [*stages.flags("sft"), f"--workdir={tmp_path / 'run'}"]
  first = stages.server.start("experiments.sft", *flags)
  while not (tmp_path / "run" / "config.json").exists():
    assert first.running()
  error = error_of(stages.run("sft", *flags))
  assert f"is in use by process {first.pid}" in error.problem
  done = first.wait()
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path / "run", stages["sft"])


def test_steps_are_chosen_among_by_one_reward_model(stages, tmp_path):
  """Scores of two reward models are not comparable."""
  scorer = tmp_path / "scorer"
  shutil.copytree(stages["reward"], scorer)
  flags = [*stages.flags("sft"), f"--sft.reward_model={scorer}"]
  flags.append(f"--workdir={tmp_path / 'run'}")
  stopped(stages, "sft", flags)
  shutil.rmtree(scorer / "model")
  params = checkpoints.load_model(stages["reward"])
  params = jax.tree.map(lambda leaf: leaf + 1, params)
  info = checkpoints.load_model_info(stages["reward"])
  checkpoints.save_model(scorer, params, info)
  error = error_of(stages.run("sft", *flags))
  assert error.field == "sft.reward_model"
  assert "contents differ" in error.problem
