"""State that a stage passes to the next one, and to chat."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import inheritance, stage_model, tokenizer_store
from tests.training import exact, forks, results
from tests.training.stages import FAST


def test_the_network_of_the_start_is_inherited(stages, capsys):
  asked = dataclasses.replace(
    presets.sft("tiny"), init_from=str(stages["pretrain"])
  )
  actual = inheritance.inherit_architecture(asked)
  stage = stage_model.open_stage(str(stages["pretrain"]))
  for name in (
    "vocab_size",
    "max_seq_len",
    "num_layers",
    "d_model",
    "num_heads",
  ):
    assert getattr(actual.model, name) == getattr(stage.model_config, name)
  same = dict(model=asked.model, data=asked.data)
  assert dataclasses.replace(actual, **same) == asked
  assert actual.data.user_tag == stage.data.user_tag == "U:"
  output = capsys.readouterr().err
  for change in (
    "model.num_layers=1",
    "model.d_model=16",
    "model.max_seq_len=24",
  ):
    assert change in output
  assert inheritance.inherit_architecture(actual) == actual
  assert capsys.readouterr().err == ""
  alone = configs.SftExperiment()
  assert inheritance.inherit_architecture(alone) is alone


def start_from(stages, *arguments):
  config, _ = flags.parse(
    [f"--init_from={stages['pretrain']}", "--workdir=w", *arguments],
    presets.sft,
    default_preset="tiny",
  )
  return config


@pytest.mark.parametrize(
  "name, value, actual",
  [
    ("num_layers", "2", "1"),
    ("max_seq_len", "64", "24"),
    ("scan_layers", "true", "false"),
    ("num_kv_heads", "1", "none"),
    ("activation", "silu", "gelu_tanh"),
    ("vocab_size", "9999", None),
  ],
)
def test_a_flag_for_another_network_is_refused(stages, name, value, actual):
  """Such a flag would have no effect."""
  run = start_from(stages, f"--model.{name}={value}")
  with pytest.raises(UserError) as caught:
    inheritance.inherit_architecture(run)
  error = caught.value
  assert error.code == "other_architecture"
  assert error.field == f"model.{name}" and error.file == str(
    stages["pretrain"]
  )
  if actual is None:
    stage = stage_model.open_stage(str(stages["pretrain"]))
    actual = str(stage.model_config.vocab_size)
  assert f"is {value}," in error.problem and error.problem.endswith(actual)
  fixed = start_from(stages, f"--model.{name}={actual}")
  inherited = inheritance.inherit_architecture(fixed)
  assert f"--model.{name}={actual}" in error.fix
  # A pipeline's stages, and a resumed run, ask for what is there.
  assert inheritance.inherit_architecture(inherited) == inherited


def test_flags_that_a_network_does_not_depend_on_are_free(stages):
  run = start_from(
    stages,
    "--model.dropout=0.3",
    "--model.dtype=bfloat16",
    "--model.remat=full",
    "--model.init_std=0.5",
    "--model.lora_rank=3",
    "--model.vocab_size=0",
  )
  model = inheritance.inherit_architecture(run).model
  assert (model.dropout, model.dtype, model.remat) == (0.3, "bfloat16", "full")
  assert (model.init_std, model.lora_rank) == (0.5, 3)
  assert model.vocab_size > 0


def test_a_run_with_a_flag_for_another_network_leaves_nothing(stages, tmp_path):
  flags_of_sft = [f for f in stages.flags("sft") if "num_layers" not in f]
  workdir = tmp_path / "run"
  done = stages.run(
    "sft", *flags_of_sft, "--model.num_layers=2", f"--workdir={workdir}"
  )
  assert done.status == 2
  assert "--model.num_layers=1" in done.err
  assert not workdir.exists() or not any(workdir.iterdir())


def test_a_stage_can_be_started_from_a_bigger_preset(stages, tmp_path):
  """Later stages need no flags of the network."""
  flags = [
    f for f in stages.flags("sft") if "--model." not in f and "seed" not in f
  ]
  done = stages.run("sft", *flags, f"--workdir={tmp_path}")
  assert done.status == 0, done.err
  assert results.metrics(tmp_path) == results.metrics(stages["sft"])


def test_a_run_is_run_again_from_its_config_file(stages, tmp_path):
  done = stages.run(
    "sft", f"--config={stages['sft']}/config.json", f"--workdir={tmp_path}"
  )
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path, stages["sft"])
  restored, expected = (
    json.loads((path / "config.json").read_text())
    for path in (tmp_path, stages["sft"])
  )
  assert restored == expected


def test_load_policy_gives_the_stage_that_was_trained(stages):
  model, params, tokenizer, stage = stage_model.load_policy(str(stages["sft"]))
  assert model.config.dropout == 0  # trained with 0.2
  assert stage.data.user_tag == "U:"
  ours = exact.Finished(stages["sft"])
  row = tokenizer.encode("U: red ba A:")
  np.testing.assert_array_equal(
    exact.outputs(model, params, [row])[0],
    exact.outputs(ours.stage.network, ours.params, [row])[0],
  )
  with pytest.raises(UserError, match="holds a reward model"):
    stage_model.load_policy(str(stages["reward"]))


def test_a_pipelines_directory_names_its_stages(stages):
  with pytest.raises(UserError, match=r"one of its stages: .*pretrain"):
    stages["pretrain"]
    stage_model.open_stage(str(stages.directory))


@pytest.mark.parametrize("name", ["pretrain", "ppo_ptx"])
def test_chat_answers_a_file_with_a_stages_model(name, stages, tmp_path):
  output = tmp_path / "answers.jsonl"
  done = stages.server.run(
    "instructgpt_jax.chat",
    f"--checkpoint={stages[name]}",
    f"--prompts={stages.data / 'prompts.jsonl'}",
    f"--output={output}",
    "--temperature=0",
    "--max_tokens=5",
  )
  assert done.status == 0, done.err
  answers = [json.loads(line) for line in output.read_text().splitlines()]
  prompts = [
    json.loads(line)["prompt"]
    for line in (stages.data / "prompts.jsonl").read_text().splitlines()
  ]
  assert len(answers) == len(prompts)
  model = exact.Finished(stages[name])
  for prompt, answer in list(zip(prompts, answers, strict=True))[:4]:
    ids, _ = model.encode(prompt, "")
    row = list(ids)
    while len(row) < len(ids) + 5 and (
      len(row) == len(ids) or row[-1] != model.tokenizer.eos_id
    ):
      row.append(int(model.outputs(row)[-1].argmax()))
    assert answer["completion"] == model.tokenizer.decode(row[len(ids) :])
    assert answer["ended"] == (row[-1] == model.tokenizer.eos_id)


def test_a_tokenizer_is_whole_or_absent(stages, tmp_path):
  """After a kill during its write, the tokenizer is written again."""
  stage = stage_model.open_stage(str(stages["pretrain"]))
  scratch = tmp_path / "tokenizer.next"
  scratch.mkdir()
  (scratch / "half").write_text("")
  tokenizer_store.put_tokenizer(tmp_path, stage.tokenizer)
  assert results.snapshot(tmp_path) == {
    "tokenizer/tokenizer.model": stage.tokenizer.files["tokenizer.model"]
  }


def test_the_command_line_is_recorded(stages, tmp_path):
  """Runs in a new process, with nothing preloaded."""
  done = subprocess.run(
    [sys.executable, "-m", "experiments.pretrain"]
    + [*stages.flags("pretrain"), f"--workdir={tmp_path / 'run'}"]
    + [f"--run.compile_cache={tmp_path / 'cache'}", "--run.tensorboard=true"],
    cwd=forks.ROOT,
    env={**os.environ, **FAST},
    capture_output=True,
    text=True,
    timeout=200,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert "pretrain: 30/30 steps" in done.stderr
  results.assert_same_run(tmp_path / "run", stages["pretrain"])
  assert list((tmp_path / "cache").iterdir())
  assert list((tmp_path / "run" / "tensorboard").iterdir())
