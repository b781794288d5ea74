"""`experiments.study` and `experiments.report` as a user gives them."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from instructgpt_jax.runtime import files
from tests.studies import fake

ROOT = pathlib.Path(__file__).parents[2]


def run(module, *arguments):
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{module}", *arguments],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize("module", ["study", "report"])
def test_help_says_what_it_does(module):
  done = run(module, "--help")
  assert done.returncode == 0 and "--workdir" in done.stdout
  if module == "study":
    assert "ptx_coef" in done.stdout and "--size" in done.stdout


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--study=ptx_coeff"], "did you mean 'ptx_coef'"),
    (["--size=huge"], "there is no size 'huge'"),
    (["--seeds=a"], "'a' are no seeds"),
  ],
)
def test_a_mistake_is_told_in_two_lines(tmp_path, flags, said):
  done = run("study", f"--workdir={tmp_path / 'new'}", *flags)
  assert done.returncode == 2 and said in done.stderr
  assert done.stderr.count("\n") <= 3 and "Traceback" not in done.stderr
  assert not (tmp_path / "new").exists()


def test_a_report_of_nothing_names_what_is_missing(tmp_path):
  done = run("report", f"--workdir={tmp_path}")
  assert done.returncode == 2 and "study.json" in done.stderr
  assert "experiments.study" in done.stderr


def test_dry_run_prints_commands_and_makes_nothing(tmp_path):
  done = run(
    "study", f"--workdir={tmp_path / 'new'}", "--dry_run", "--seeds=4",
    "--study=kl_with_ptx",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  commands = [shlex.split(line) for line in done.stdout.splitlines()]
  assert len(commands) == 11
  assert all(c[:2] == ["python", "-m"] and "--seed=4" in c for c in commands)
  assert not (tmp_path / "new").exists()


def test_a_study_runs_to_its_page_and_is_not_run_again(tmp_path):
  """The smallest size: real stages, one seed, a verdict that means nothing."""
  command = (
    f"--workdir={tmp_path}", "--size=smoke", "--study=sft_epochs", "--jobs=2",
  )  # fmt: skip
  done = run("study", *command)
  assert done.returncode == 0, done.stderr
  results = files.read_json(tmp_path / "results.json")
  verdict = results["verdicts"]["sft_epochs"]
  assert isinstance(verdict["reproduced"], bool) and verdict["seeds"] == [0]
  assert results["studies"]["sft_epochs"]["runs"] == 6
  assert verdict["seconds"] > 0
  page = (tmp_path / "index.html").read_text()
  assert "SFT overfits" in page and "<svg" in page
  before = (tmp_path / "seconds.json").read_text()
  again = run("study", *command)
  assert again.returncode == 0
  assert (tmp_path / "seconds.json").read_text() == before
  other = run("study", *command, "--seeds=1")
  assert other.returncode == 2 and "another --workdir" in other.stderr


def test_the_report_is_built_from_what_is_complete(tmp_path):
  from experiments import studies
  from instructgpt_jax.studies import scale as scale_lib
  from instructgpt_jax.studies import study as study_lib

  root = str(tmp_path / "runs")
  wanted = [studies.ALL[n] for n in ("kl_with_ptx", "sft_epochs")]
  study_lib.claim(root, scale_lib.MINI)
  for job in study_lib.all_jobs(wanted, scale_lib.MINI, root):
    fake.run(root, job)
  output = tmp_path / "page"
  done = run("report", f"--workdir={root}", f"--output={output}")
  assert done.returncode == 0, done.stderr
  results = json.loads((output / "results.json").read_text())
  complete = {n for n, s in results["studies"].items() if s["complete"]}
  assert complete == {"kl_with_ptx", "sft_epochs"}
  assert (output / "figures" / "kl_with_ptx-1.svg").exists()
  assert "Incomplete" in done.stdout and str(output) in done.stdout
