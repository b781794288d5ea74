"""The set-up files say what they promise; the Makefile's short ways work."""

import os
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def _read(name):
  return (ROOT / name).read_text(encoding="utf-8")


def _pins(file="requirements.txt"):
  """Name → exact version of each line of a file of requirements."""
  pins = {}
  for line in _read(file).splitlines():
    if line.strip() and not line.strip().startswith("#"):
      name, version = re.match(
        r"([a-z0-9-]+)(?:\[[a-z,]+\])?==([^\s;]+)(?: ;.*)?$", line
      ).groups()
      pins[name] = version
  return pins


def _wanted():
  """Name → version or None of each line of requirements.in."""
  lines = [
    line.split("#")[0].strip() for line in _read("requirements.in").split("\n")
  ]
  return {
    re.sub(r"\[.*\]", "", line).split("==")[0]: (line.split("==") + [None])[1]
    for line in lines
    if line
  }


def test_everything_is_pinned_exactly_and_no_index_is_named():
  pins = _pins()
  for name, version in _wanted().items():
    assert name in pins
    assert version in (None, pins[name])
  assert not re.search(r"https?:|--|@ ", _read("requirements.txt"))
  # What is needed indirectly is there as well.
  assert {"jaxlib", "numpy", "tensorstore", "ml-dtypes"} <= set(pins)


def test_what_only_tests_need_comes_on_top():
  pins = _pins("requirements-test.txt")
  assert {"torch", "transformers", "peft", "safetensors"} <= set(pins)
  assert not set(pins) & set(_pins())
  assert not re.search(r"https?:|--|@ ", _read("requirements-test.txt"))


def test_this_environment_is_the_pinned_one():
  from importlib import metadata

  for name in _wanted():
    assert metadata.version(name) == _pins()[name], name


def test_project_metadata_agrees():
  import instructgpt_jax

  project = tomllib.loads(_read("pyproject.toml"))["project"]
  assert project["version"] == instructgpt_jax.__version__
  assert f"## {project['version']}" in _read("CHANGELOG.md")
  named = {re.split(r"[><=\[]", d)[0] for d in project["dependencies"]}
  named |= {
    re.split(r"[><=\[]", d)[0] for d in project["optional-dependencies"]["dev"]
  }
  assert named == set(_wanted())


def test_licence():
  text = _read("LICENSE")
  assert "Apache License" in text
  assert "END OF TERMS AND CONDITIONS" in text


def test_ci_lints_and_tests():
  path = ROOT / ".ci" / "run"
  assert os.access(path, os.X_OK)
  lines = path.read_text().splitlines()
  assert lines.index("make lint") < lines.index("make test")


_MAKE = ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "WORKDIR")


def _make(folder, *arguments):
  return subprocess.run(
    ["make", *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    # Without what an outer make hands down.
    env={k: v for k, v in os.environ.items() if k not in _MAKE},
  )


@pytest.fixture
def clone(tmp_path):
  """A folder with the Makefile and an environment that logs its calls."""
  shutil.copy(ROOT / "Makefile", tmp_path)
  (tmp_path / "requirements.txt").write_text("")
  (tmp_path / "requirements-test.txt").write_text("torch==1\nothers==2\n")
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "$@" >> calls\n')
  python.chmod(0o755)
  stamp = tmp_path / ".venv" / ".installed"
  stamp.write_text("")
  os.utime(tmp_path / "requirements.txt", (1, 1))
  return tmp_path


def _calls(folder):
  path = folder / "calls"
  return path.read_text().splitlines() if path.exists() else []


def test_a_second_setup_does_nothing(clone):
  assert _make(clone, "setup").returncode == 0
  assert _calls(clone) == []


def test_new_pins_are_installed_once(clone):
  os.utime(clone / ".venv" / ".installed", (0, 0))
  assert _make(clone, "setup").returncode == 0
  assert any("-r requirements.txt" in call for call in _calls(clone))
  count = len(_calls(clone))
  assert _make(clone, "setup").returncode == 0
  assert len(_calls(clone)) == count


def test_tests_get_their_libraries_once_and_torch_by_itself(clone):
  assert _make(clone, "test").returncode == 0
  first, second, tests = _calls(clone)
  assert first.endswith("pip install -q --disable-pip-version-check torch==1")
  assert second.endswith("-r requirements-test.txt")
  assert tests.startswith("-m pytest")
  assert _make(clone, "test").returncode == 0
  assert len(_calls(clone)) == 4


def test_a_failing_installation_is_not_taken_for_done(clone):
  os.utime(clone / ".venv" / ".installed", (0, 0))
  python = clone / ".venv" / "bin" / "python"
  python.write_text("#!/bin/sh\nexit 1\n")
  assert _make(clone, "setup").returncode != 0
  python.write_text('#!/bin/sh\necho "$@" >> calls\n')
  assert _make(clone, "setup").returncode == 0
  assert any("-r requirements.txt" in call for call in _calls(clone))


def test_demo_goes_where_it_is_told(clone):
  _make(clone, "demo")
  _make(clone, "demo", "WORKDIR=/tmp/elsewhere", "ARGS=--seed=1")
  assert _calls(clone) == [
    "-m experiments.pipeline --preset=world --workdir=runs/demo",
    "-m experiments.pipeline --preset=world --workdir=/tmp/elsewhere --seed=1",
  ]


def test_lint_runs_all_three(clone):
  _make(clone, "lint")
  assert [call.split()[1:3] for call in _calls(clone)] == [
    ["ruff", "check"],
    ["ruff", "format"],
    ["pyright", "--level"],
  ]


def test_no_python_is_said_in_two_lines(clone):
  shutil.rmtree(clone / ".venv")
  done = _make(clone, "setup", "PYTHON=no-such-python")
  assert done.returncode == 2
  lines = [
    line
    for line in done.stderr.splitlines()
    if not line.startswith(("make", "/bin/sh", "no-such"))
  ]
  assert len(lines) == 2, done.stderr
  assert lines[0].startswith("error: no-such-python is missing or older")
  assert "make PYTHON=" in lines[1]


def test_clean_keeps_runs(clone):
  (clone / "runs").mkdir()
  assert _make(clone, "clean").returncode == 0
  assert (clone / "runs").exists()
  assert not (clone / ".venv").exists()


def test_no_machine_paths():
  # Built from parts, so that this file does not contain what it looks for.
  forbidden = ["/".join(("", name, "")) for name in ("work", "home", "root")]
  for path in ROOT.rglob("*"):
    parts = path.relative_to(ROOT).parts
    if (
      not path.is_file()
      or parts[0] in (".venv", ".git", "runs")
      or "__pycache__" in parts
      or path.suffix not in (".py", ".md", ".toml", ".txt", ".in", ".yaml", "")
      or parts[0].endswith("_cache")
    ):
      continue
    text = path.read_text(encoding="utf-8", errors="ignore")
    for word in forbidden:
      assert not re.search(rf"(^|[\s\"'=(]){word}", text), f"{path}: {word}"
