"""The changes of docs/change_it.md apply and pass their tests."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "change_it.md"
EXAMPLES = ("An entropy bonus", "A data format")


def _section(title):
  """Returns the text of a section of the page."""
  text = PAGE.read_text(encoding="utf-8")
  return text.split(f"## {title}\n")[1].split("\n## ")[0]


def _blocks(text, language):
  return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.M)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
  """Returns a copy of the package with both changes, and test paths."""
  copy = tmp_path_factory.mktemp("copy")
  shutil.copytree(
    ROOT / "instructgpt_jax",
    copy / "instructgpt_jax",
    ignore=shutil.ignore_patterns("__pycache__"),
  )
  paths = []
  for title in EXAMPLES:
    text = _section(title)
    result = subprocess.run(
      ["git", "apply", "-"],
      input="".join(_blocks(text, "diff")),
      cwd=copy,
      capture_output=True,
      text=True,
    )
    assert result.returncode == 0, f"{title}: {result.stderr}"
    for block in _blocks(text, "python"):
      path = re.match(r"# (\S+\.py)\n", block).group(1)
      (copy / path).parent.mkdir(parents=True, exist_ok=True)
      (copy / path).write_text(block, encoding="utf-8")
      if path.startswith("tests/"):
        paths.append(path)
  return copy, paths


def test_the_changed_package_passes_the_tests_of_the_page(changed):
  copy, paths = changed
  assert len(paths) == len(EXAMPLES)
  result = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths],
    cwd=copy,
    env=os.environ | {"PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert "5 passed" in result.stdout
