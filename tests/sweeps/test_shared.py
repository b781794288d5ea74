"""The stages that runs share, trained once."""

import os

import pytest

from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import collect, command, shared
from tests.sweeps.runs import ROOT

PIPELINE = presets.pipeline("world")


def stages(experiment, settings=None, swept=(), **more):
  settings = {"preset": "world", **(settings or {})}
  return shared.shared_stages(
    "root", experiment, settings, swept, PIPELINE, more
  )


@pytest.mark.parametrize(
  "experiment, fields, last",
  [
    ("pretrain", [], "world"),
    ("sft", ["sft.epochs"], "pretrain"),
    ("policy_init", ["init_from"], ""),
    ("reward", [], "reward"),
    ("reward", ["data.comparisons"], ""),
    ("ppo", ["preset", "data.max_prompt_tokens"], "reward"),
    ("ppo", ["ppo.reward_model"], ""),
    ("ppo_ptx", ["seed"], "reward"),
    ("pipeline", [], ""),
    ("counter", [], ""),
  ],
)
def test_the_last_shared_stage(experiment, fields, last):
  assert shared.last_shared_stage(experiment, fields) == last


def test_a_run_starts_from_the_shared_stages():
  result = stages("ppo_ptx")
  assert result.job.command("root")[2:] == [
    "experiments.pipeline", "--workdir=root/shared", "--preset=world",
    "--until=reward",
  ]  # fmt: skip
  assert result.flags == {
    "data.demonstrations": "root/shared/world/demonstrations.jsonl",
    "data.prompts": "root/shared/world/prompts.jsonl",
    "data.pretraining": "root/shared/world/pretraining.jsonl",
    "init_from": "root/shared/policy_init",
    "ppo.reward_model": "root/shared/reward",
  }
  assert stages("sft").flags["init_from"] == "root/shared/pretrain"
  assert "init_from" not in stages("pretrain").flags
  assert set(stages("reward").flags) - set(result.flags) == {"data.comparisons"}
  assert stages("reward").flags["init_from"] == "root/shared/reward_init"


def test_a_reward_model_has_the_rankings_of_all_rounds():
  result = stages("reward", **{"labeling.rounds": 2})
  assert result.flags["data.comparisons"] == (
    "root/shared/rankings/round_1.jsonl,root/shared/rankings/round_2.jsonl"
  )


@pytest.mark.parametrize("experiment", list(shared._REQUIREMENTS))
def test_the_flags_are_those_of_the_experiment(experiment):
  flags.replace(presets.EXPERIMENTS[experiment]("world"),
                stages(experiment).flags)  # fmt: skip


def test_common_settings_hold_for_the_shared_stages_unless_swept():
  settings = {"seed": 3, "model.d_model": 64, "ppo.kl_coef": 0.1}
  result = stages("ppo", settings, ["ppo.clip_ratio"])
  assert result.job.flags == {
    "preset": "world", "until": "reward", "seed": 3, "model.d_model": 64,
  }  # fmt: skip
  result = stages("ppo", settings, ["seed", "ppo.kl_coef"], seed=5)
  assert result.job.flags == {
    "preset": "world", "until": "reward", "seed": 5, "model.d_model": 64,
  }  # fmt: skip


@pytest.mark.parametrize("experiment", list(shared._REQUIREMENTS))
def test_the_network_is_swept_only_where_no_shared_stage_has_one(experiment):
  settings = {"model.d_model": 64}
  if experiment == "pretrain":
    result = stages(experiment, settings, ["model.d_model"])
    assert "model.d_model" not in result.job.flags
    return
  with pytest.raises(UserError) as caught:
    stages(experiment, settings, ["seed", "model.d_model"])
  assert caught.value.code == "other_architecture"
  assert "model.d_model" in caught.value.problem
  stages(experiment, settings, ["model.dropout"])  # each run has its own


def test_values_that_the_pipeline_refuses_are_refused_at_once():
  with pytest.raises(UserError, match="model.num_heads"):
    stages("ppo", {"model.num_heads": 3})


def test_a_real_sweep_trains_on_a_shared_world(tmp_path, monkeypatch, capsys):
  # The smallest there is: one pretraining run of a few updates.
  from experiments import sweep

  monkeypatch.chdir(ROOT)
  argv = [
    "--experiment=pretrain", "--preset=world", f"--workdir={tmp_path}",
    "--sweep=pretrain.steps=2", "--model.num_layers=1", "--model.d_model=16",
    "--pretrain.batch_size=2", "--run.tensorboard=false",
    "--shared.world.pretraining_tokens=3000",
    "--shared.world.demonstrations=10", "--shared.world.train_prompts=20",
    "--shared.world.test_prompts=10", "--shared.world.public_comparisons=10",
  ]  # fmt: skip
  status = command.main(argv, sweep.load)
  out, err = capsys.readouterr()
  assert status == 0, err
  assert files.read_complete(tmp_path / "shared") == {"until": "world"}
  (row,) = collect.read_rows(str(tmp_path))
  assert row["run"] == "steps=2" and row["pretrain.steps"] == 2
  assert row["valid_loss"] > 0 and "valid_loss" in out
  assert os.path.exists(tmp_path / "steps=2" / "model")
