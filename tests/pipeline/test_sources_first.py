"""A pipeline reads its sources first, and leaves nothing where that fails."""

import dataclasses
import json

import pytest

from instructgpt_jax import flags, presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.loops import language
from instructgpt_jax.pipeline import stages
from instructgpt_jax.runtime import files, workdirs
from tests.loops import toy


class Reached(Exception):
  """The first stage has been reached."""


@pytest.fixture
def sources(tmp_path):
  toy.write_data(tmp_path / "data")
  paths = {
    f"data.{kind}": str(tmp_path / "data" / f"{kind}.jsonl")
    for kind in toy.KINDS
  }
  return paths | {"evaluation.split": "valid"}


def start(folder, **values):
  """Runs a pipeline as its command does, up to its first stage."""
  wanted = flags.replace(presets.pipeline("tiny"), values)
  with workdirs.claimed(folder, "pipeline", flags.config_to_dict(wanted)):
    stages.run(wanted, str(folder))


def stop(config, directory):
  (files.make_directory(directory) / "metrics.jsonl").touch()
  raise Reached


def refused(folder, values):
  with pytest.raises(UserError) as caught:
    start(folder, **values)
  assert not folder.exists(), "something was left"
  return caught.value


@pytest.mark.parametrize("kind", toy.KINDS)
def test_a_mistyped_path_can_be_corrected(kind, sources, tmp_path, monkeypatch):
  monkeypatch.setattr(language, "pretrain", stop)
  folder = tmp_path / "run"
  wrong = sources[f"data.{kind}"] + "x"
  error = refused(folder, sources | {f"data.{kind}": wrong})
  assert error.file == wrong
  with pytest.raises(Reached):
    start(folder, **sources)


def test_a_bad_record_of_any_source_ends_it_before_training(
  sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(language, "pretrain", stop)
  with open(sources["data.comparisons"], "a", encoding="utf-8") as file:
    file.write('{"prompt": "red ba", "completions": ["ka", "ke"]}\n')
  error = refused(tmp_path / "run", sources)
  assert error.line == 27


def test_a_setting_that_the_first_stage_refuses_can_be_corrected(
  sources, tmp_path
):
  error = refused(
    tmp_path / "run",
    sources | {"pretrain.batch_size": 8, "pretrain.microbatch": 3},
  )
  assert error.field == "pretrain.microbatch"


def test_the_world_is_written_again_after_such_an_error(tmp_path):
  small = {
    "world.pretraining_tokens": 5000, "world.demonstrations": 20,
    "world.train_prompts": 20, "world.test_prompts": 20,
  }  # fmt: skip
  error = refused(
    tmp_path / "run",
    small | {"pretrain.batch_size": 8, "pretrain.microbatch": 3},
  )
  assert error.field == "pretrain.microbatch"


def test_sources_that_change_between_stages_are_refused(
  sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(language, "pretrain", stop)
  folder = tmp_path / "run"
  for _ in range(2):
    with pytest.raises(Reached):
      start(folder, **sources)
  path = tmp_path / "data" / "prompts.jsonl"
  lines = path.read_text().splitlines()
  path.write_text("\n".join(lines[1:]) + "\n")
  with pytest.raises(UserError) as caught:
    start(folder, **sources)
  assert caught.value.code == "data_changed"
  assert caught.value.field == "data.prompts"
  assert (folder / "pretrain" / "metrics.jsonl").exists()


def test_a_wish_for_validation_without_records_is_an_early_error(
  sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(language, "pretrain", stop)
  path = tmp_path / "data" / "demonstrations.jsonl"
  records = [json.loads(line) for line in path.read_text().splitlines()]
  toy.write_lines(path, [r | {"split": "train"} for r in records])
  for select in ("loss", "reward"):
    error = refused(tmp_path / "run", sources | {"sft.select_by": select})
    assert (error.code, error.field) == ("no_validation", "sft.select_by")
  with pytest.raises(Reached):
    start(tmp_path / "run", **sources)


def test_a_stage_keeps_the_best_by_what_it_measures(tmp_path):
  """The other stages of a pipeline keep the newest alone."""
  wanted = flags.replace(presets.pipeline("tiny"), {})
  kept = {}
  for measure in ("valid_loss", "valid_rm_score", "reward", ""):
    run = dataclasses.replace(wanted.run, keep_best=measure)
    pipeline = stages.Pipeline(
      dataclasses.replace(wanted, run=run),
      str(tmp_path),
      has_gold=False,
      valid={"data.demonstrations": 3, "data.pretraining": 0},
    )
    scored = dataclasses.replace(wanted.sft, reward_model="rm")
    kept[measure] = [
      pipeline.experiment(kind, "", **sections).run.keep_best
      for kind, sections in (
        (stages.config_lib.PretrainExperiment, {}),
        (stages.config_lib.SftExperiment, {}),
        (stages.config_lib.SftExperiment, {"sft": scored}),
        (stages.config_lib.RewardExperiment, {}),
        (stages.config_lib.PpoExperiment, {}),
      )
    ]
  assert kept == {
    "valid_loss": ["", "valid_loss", "valid_loss", "", ""],
    "valid_rm_score": ["", "", "valid_rm_score", "", ""],
    "reward": ["", "", "", "", "reward"],
    "": [""] * 5,
  }
