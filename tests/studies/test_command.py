"""Command lines of `experiments.study` and `experiments.report`."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from experiments import report, study
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from tests.studies import fake

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["study", "report"])
def test_help_describes_the_command(module):
  done = subprocess.run(
    [sys.executable, "-m", f"experiments.{module}", "--help"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0 and "--workdir" in done.stdout
  if module == "study":
    assert "ptx_coef" in done.stdout and "--size" in done.stdout


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--study=ptx_coeff"], "did you mean 'ptx_coef'"),
    (["--size=huge"], "there is no size 'huge'"),
    (["--seeds=a"], "'a' is not a list of seeds"),
  ],
)
def test_an_error_is_printed_in_two_lines(tmp_path, capsys, flags, message):
  assert study.main([f"--workdir={tmp_path / 'new'}", *flags]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") <= 3
  assert not (tmp_path / "new").exists()


def test_a_report_without_a_study_names_the_missing_file(tmp_path, capsys):
  assert report.main([f"--workdir={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert "study.json" in error and "experiments.study" in error


def test_dry_run_prints_commands_and_makes_nothing(tmp_path, capsys):
  status = study.main([
    f"--workdir={tmp_path / 'new'}", "--dry_run", "--seeds=4",
    "--study=kl_with_ptx",
  ])  # fmt: skip
  assert status == 0
  commands = [shlex.split(s) for s in capsys.readouterr().out.splitlines()]
  assert len(commands) == 11
  assert all(c[:2] == ["python", "-m"] and "--seed=4" in c for c in commands)
  assert not (tmp_path / "new").exists()


def test_a_study_runs_to_its_page_and_is_not_run_again(tmp_path, capsys):
  """The smallest size: real stages, one seed, a verdict that means nothing."""
  command = (
    f"--workdir={tmp_path}", "--size=smoke", "--study=sft_epochs", "--jobs=2",
  )  # fmt: skip
  assert study.main(command) == 0, capsys.readouterr().err
  results = files.read_json(tmp_path / "results.json")
  verdict = results["verdicts"]["sft_epochs"]
  # One seed allows no verdict.
  assert verdict["reproduced"] is None and verdict["seeds"] == [0]
  assert results["studies"]["sft_epochs"]["runs"] == 6
  assert verdict["seconds"] > 0
  page = (tmp_path / "index.html").read_text()
  assert "SFT overfits" in page and "<svg" in page
  before = (tmp_path / "seconds.json").read_text()
  assert study.main(command) == 0
  assert (tmp_path / "seconds.json").read_text() == before
  capsys.readouterr()
  assert study.main([*command, "--seeds=1"]) == 2
  assert "another --workdir" in capsys.readouterr().err


def test_the_report_is_built_from_complete_runs(tmp_path, capsys):
  from experiments import studies
  from instructgpt_jax.studies import scale as scale_lib
  from instructgpt_jax.studies import study as study_lib

  root = str(tmp_path / "runs")
  chosen = [studies.ALL[n] for n in ("kl_with_ptx", "sft_epochs")]
  study_lib.lock_size(root, scale_lib.MINI)
  for job in study_lib.all_jobs(chosen, scale_lib.MINI, root):
    fake.run(root, job)
  output = tmp_path / "page"
  assert report.main([f"--workdir={root}", f"--output={output}"]) == 0
  results = json.loads((output / "results.json").read_text())
  complete = {n for n, s in results["studies"].items() if s["complete"]}
  assert complete == {"kl_with_ptx", "sft_epochs"}
  assert (output / "figures" / "kl_with_ptx-1.svg").exists()
  text = capsys.readouterr().out
  assert "Incomplete" in text and str(output) in text


def test_studies_that_are_not_complete_come_from_an_earlier_page(
  tmp_path, capsys
):
  from experiments import studies
  from instructgpt_jax.studies import scale as scale_lib
  from instructgpt_jax.studies import study as study_lib

  def build(name, *flags):
    root = str(tmp_path / name)
    study_lib.lock_size(root, scale_lib.MINI)
    for job in study_lib.all_jobs([studies.ALL[name]], scale_lib.MINI, root):
      fake.run(root, job)
    status = report.main([f"--workdir={root}", *flags])
    return status, files.read_json(tmp_path / name / "results.json")

  status, earlier = build("kl_with_ptx")
  assert status == 0
  path = tmp_path / "kl_with_ptx" / "results.json"
  status, results = build("sft_epochs", f"--earlier={path}")
  assert status == 0
  assert f"from {path}: kl_with_ptx\n" in capsys.readouterr().out
  for group in ("studies", "verdicts"):
    name = "kl_with_ptx"
    expected = dict(earlier[group][name])
    if group == "studies":
      expected["notes"] = [*expected["notes"], study_lib.TAKEN]
    assert results[group][name] == expected
  complete = {n for n, s in results["studies"].items() if s["complete"]}
  assert complete == {"kl_with_ptx", "sft_epochs"}
  assert results["seconds"] is None
  assert results["machine"] == earlier["machine"]
  assert (tmp_path / "sft_epochs/figures/kl_with_ptx-1.svg").exists()
  merged = tmp_path / "sft_epochs" / "results.json"
  path.rename(tmp_path / "others.json")
  assert report.main([f"--workdir={merged.parent}", f"--earlier={merged}"]) == 0
  assert files.read_json(merged) == results
  path.touch()

  for text, code in (
    ('{"size": "smoke", "studies": {"ptx_coef": {}}}', "other_size"),
    ('{"size": "mini", "studies": []}', "bad_results"),
    ("[]", "bad_results"),
  ):
    path.write_text(text)
    with pytest.raises(UserError) as caught:
      report.build(str(tmp_path / "sft_epochs"), earlier=str(path))
    assert (caught.value.code, caught.value.file) == (code, str(path)), text
