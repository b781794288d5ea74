"""Exit statuses, short errors, and runs that can be repeated."""

import errno
import json
import os

import pytest

from instructgpt_jax.cli import flags, launch
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError


def _main(*argv, run=lambda config, workdir: None, experiment="sft"):
  return launch.main(
    experiment,
    presets.sft,
    run,
    "Doc.",
    argv=argv,
    default_preset="tiny",
    presets=presets.NAMES,
  )


def test_run_gets_config_and_workdir_and_records_the_config(tmp_path):
  calls = []
  status = _main(
    f"--workdir={tmp_path}",
    "--sft.epochs=3",
    run=lambda config, workdir: calls.append((config, workdir)),
  )
  assert status == 0
  ((config, workdir),) = calls
  assert (config.sft.epochs, workdir) == (3, str(tmp_path))
  recorded = json.loads((tmp_path / "config.json").read_text())
  assert recorded == {
    "experiment": "sft",
    "config": flags.config_to_dict(config),
  }


def test_run_can_be_repeated_from_its_config_file(tmp_path):
  configs = []

  def run(config, workdir):
    configs.append(config)

  first, second = tmp_path / "first", tmp_path / "second"
  assert _main(f"--workdir={first}", "--seed=5", run=run) == 0
  config_file = first / "config.json"
  assert _main(f"--workdir={second}", f"--config={config_file}", run=run) == 0
  assert configs[0] == configs[1]
  assert (second / "config.json").read_text() == config_file.read_text()


def test_workdir_of_another_experiment_is_refused(tmp_path, capsys):
  assert _main(f"--workdir={tmp_path}") == 0
  never = pytest.fail
  status = _main(f"--workdir={tmp_path}", experiment="ppo", run=never)
  assert status == 2
  error = capsys.readouterr().err
  assert "belongs to the experiment 'sft', not 'ppo'" in error
  assert "fix: choose another --workdir" in error


def test_help_is_on_stdout_and_makes_no_workdir(tmp_path, capsys):
  workdir = tmp_path / "run"
  assert _main(f"--workdir={workdir}", "--help", run=pytest.fail) == 0
  out, err = capsys.readouterr()
  assert out.startswith("Doc.\n") and err == ""
  assert not workdir.exists()


def test_unknown_flag_is_a_user_error_and_makes_no_workdir(tmp_path, capsys):
  workdir = tmp_path / "run"
  assert _main(f"--workdir={workdir}", "--sft.epoch=1", run=pytest.fail) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.splitlines() == [
    "error: [--sft.epoch]: there is no such flag",
    "  fix: did you mean --sft.epochs? --help lists all flags",
  ]
  assert not workdir.exists()


@pytest.mark.parametrize(
  "error, status, words",
  [
    (UserError("bad", file="f.json", line=3, fix="mend it"), 2, "f.json:3"),
    (UserError("a\nb\nc\nd\ne", fix="mend it"), 2, "fix: mend it"),
    (UserError("x" * 5000, fix="mend it"), 2, "fix: mend it"),
    (KeyboardInterrupt(), 130, "resume from the last checkpoint"),
    (OSError(errno.ENOSPC, "full", "some/file"), 2, "some/file: the disk is"),
  ],
)
def test_errors_are_at_most_three_lines(tmp_path, capsys, error, status, words):
  def run(config, workdir):
    raise error

  assert _main(f"--workdir={tmp_path}", run=run) == status
  text = capsys.readouterr().err
  assert words in text
  assert len(text.splitlines()) <= 3
  assert len(text) < 1000
  assert "Traceback" not in text


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.EIO, "")])
def test_other_exceptions_keep_their_traceback(tmp_path, error):
  def run(config, workdir):
    raise error

  with pytest.raises(type(error)):
    _main(f"--workdir={tmp_path}", run=run)


@pytest.mark.parametrize("flag", ["user_tag", "turn_separator"])
def test_text_flags_must_be_utf8(tmp_path, capsys, flag):
  """Paths may contain any bytes; texts become part of prompts."""
  workdir = tmp_path / "caf\udce9"
  assert _main(f"--data.{flag}=caf\udce9", f"--workdir={workdir}") == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: [--data.{flag}]") and "UTF-8" in error
  assert not workdir.exists()
  argv = ("--data.demonstrations=caf\udce9.jsonl", f"--workdir={workdir}")
  for _ in range(2):  # The second run reads the first one's config.
    assert _main(*argv) == 0
  assert (workdir / "config.json").exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG])
def test_unusable_path_is_a_short_error(capsys, code):
  def body():
    raise OSError(code, os.strerror(code), "some/file")

  assert launch.run_with_errors(body) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: some/file: ") and "fix: " in error


def test_other_system_errors_keep_their_traceback():
  for fault in (OSError(errno.EACCES, "no name"), OSError(errno.EIO, "", "a")):
    with pytest.raises(OSError):
      launch.run_with_errors(lambda fault=fault: (_ for _ in ()).throw(fault))


@pytest.mark.parametrize(
  "experiment, files, lines",
  [
    ("sft", [], ["done: {dir}"]),
    (
      "sft",
      ["model", "metrics.jsonl"],
      [
        "done: {dir} (model, metrics.jsonl)",
        "next: chat with it: python -m instructgpt_jax.chat --checkpoint={dir}",
      ],
    ),
    ("pipeline", ["metrics.jsonl"], ["done: {dir} (metrics.jsonl)"]),
  ],
)
def test_finished_run_names_its_results(
  tmp_path, capsys, experiment, files, lines
):
  def run(config, workdir):
    for name in files:
      (tmp_path / name).touch()

  assert _main(f"--workdir={tmp_path}", run=run, experiment=experiment) == 0
  expected = [line.format(dir=tmp_path) for line in lines]
  assert capsys.readouterr().err.splitlines() == expected
