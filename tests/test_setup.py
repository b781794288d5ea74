"""Checks pins and the set-up from nothing by the Makefile."""

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
  """Returns name → exact version for each line of a requirements file."""
  pins = {}
  for line in _read(file).splitlines():
    if line.strip() and not line.strip().startswith("#"):
      name, version = re.match(
        r"([a-z0-9-]+)(?:\[[a-z,]+\])?==([^\s;]+)(?: ;.*)?$", line
      ).groups()
      pins[name] = version
  return pins


def _requirements():
  """Returns name → version or None for each line of requirements.in."""
  lines = [
    line.split("#")[0].strip() for line in _read("requirements.in").split("\n")
  ]
  return {
    re.sub(r"\[.*\]", "", line).split("==")[0]: (line.split("==") + [None])[1]
    for line in lines
    if line
  }


def test_all_requirements_are_pinned_without_an_index():
  pins = _pins()
  for name, version in _requirements().items():
    assert name in pins
    assert version in (None, pins[name])
  assert not re.search(r"https?:|--|@ ", _read("requirements.txt"))
  # Indirect dependencies are pinned as well.
  assert {"jaxlib", "numpy", "tensorstore", "ml-dtypes"} <= set(pins)


def test_requirements_of_tests_are_pinned_apart():
  pins = _pins("requirements-test.txt")
  assert {"torch", "transformers", "peft", "safetensors"} <= set(pins)
  assert not set(pins) & set(_pins())
  assert not re.search(r"https?:|--|@ ", _read("requirements-test.txt"))


def test_this_environment_is_the_pinned_one():
  from importlib import metadata

  for name in _requirements():
    assert metadata.version(name) == _pins()[name], name


def test_project_metadata_agrees():
  import instructgpt_jax

  project = tomllib.loads(_read("pyproject.toml"))["project"]
  assert project["version"] == instructgpt_jax.__version__
  dependencies = {re.split(r"[><=\[]", d)[0] for d in project["dependencies"]}
  dependencies |= {
    re.split(r"[><=\[]", d)[0] for d in project["optional-dependencies"]["dev"]
  }
  assert dependencies == set(_requirements())


_MAKE = ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "WORKDIR")


def _make(directory, *arguments):
  return subprocess.run(
    ["make", *arguments],
    cwd=directory,
    capture_output=True,
    text=True,
    # Variables of an outer make are removed.
    env={k: v for k, v in os.environ.items() if k not in _MAKE},
  )


@pytest.fixture
def clone(tmp_path):
  """Makes a clone whose Python logs its arguments to `calls`."""
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


def _calls(directory):
  path = directory / "calls"
  return path.read_text().splitlines() if path.exists() else []


def test_new_pins_are_installed_once(clone):
  assert _make(clone, "setup").returncode == 0
  assert _calls(clone) == []
  os.utime(clone / ".venv" / ".installed", (0, 0))
  assert _make(clone, "setup").returncode == 0
  assert any("-r requirements.txt" in call for call in _calls(clone))
  count = len(_calls(clone))
  assert _make(clone, "setup").returncode == 0
  assert len(_calls(clone)) == count


def test_a_failed_installation_is_repeated(clone):
  os.utime(clone / ".venv" / ".installed", (0, 0))
  python = clone / ".venv" / "bin" / "python"
  python.write_text("#!/bin/sh\nexit 1\n")
  assert _make(clone, "setup").returncode != 0
  python.write_text('#!/bin/sh\necho "$@" >> calls\n')
  assert _make(clone, "setup").returncode == 0
  assert any("-r requirements.txt" in call for call in _calls(clone))


def test_a_missing_python_is_an_error_with_a_fix(clone):
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
  # Built from parts, so that this file does not match.
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
