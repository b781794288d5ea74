"""The pages name commands, flags, files and links that exist."""

import ast
import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from instructgpt_jax import configs
from tests import test_architecture

ROOT = pathlib.Path(__file__).parent.parent
# CHANGELOG and LOG name flags and files of other versions.
PAGES = (
  "README.md",
  "BUILD.md",
  "CONTRIBUTING.md",
  *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)
TOPS = (
  "instructgpt_jax/",
  "experiments/",
  "benchmarks/",
  "tests/",
  "docs/",
  "notebooks/",
)
SECTIONS = tuple(
  value
  for value in vars(configs).values()
  if isinstance(value, type) and dataclasses.is_dataclass(value)
)


def _read(name):
  return (ROOT / name).read_text(encoding="utf-8")


def _field_names(cls):
  """Returns the names of a config's fields."""
  return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name):
  for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", _read(name)):
    if not link.startswith("https://"):
      assert (ROOT / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", PAGES)
def test_links_within_pages_lead_to_headings(name):
  for link, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", _read(name)):
    page = (ROOT / name).parent / link if link else ROOT / name
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    anchors = {
      re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
      for heading in headings
    }
    assert anchor in anchors, f"{link}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_commands_name_modules_that_run(name):
  for module in re.findall(r"python -m\s+((?:\w+\.)*\w+)", _read(name)):
    if module.startswith(("instructgpt_jax", "experiments", "benchmarks")):
      path = ROOT / module.replace(".", "/")
      assert (
        path.with_suffix(".py").exists() or (path / "__main__.py").exists()
      ), module


@pytest.mark.parametrize("name", PAGES)
def test_paths_in_backticks_exist(name):
  for path in re.findall(r"`([a-z]\w*/[\w/]*(?:\.py)?)`", _read(name)):
    if path.endswith(".py") or path.startswith(TOPS):
      places = (ROOT / path, ROOT / "instructgpt_jax" / path)
      assert any(place.exists() for place in places), path


# docs/change_it.md adds a flag.
@pytest.mark.parametrize("name", [p for p in PAGES if "change_it" not in p])
def test_flags_of_config_sections_exist(name):
  by_section = {}
  for cls in SECTIONS:
    name_of_class = cls.__name__.removeprefix("Pipeline").removesuffix("Stage")
    section = name_of_class.lower()
    by_section.setdefault(section, set()).update(_field_names(cls))
  by_section["value_optimizer"] = by_section["optimizer"]
  for section, field in re.findall(r"--(\w+)\.(\w+)", _read(name)):
    if section in by_section:
      assert field in by_section[section], f"--{section}.{field}"


def test_the_python_example_of_the_readme_runs():
  (code,) = re.findall(r"```python\n(.*?)```", _read("README.md"), re.DOTALL)
  ast.parse(code)
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stderr
  loss = float(result.stdout.split()[0])
  assert 0 < loss < 1


def test_the_table_of_packages_is_that_of_the_architecture_test():
  table = (
    _read("BUILD.md").split("## Packages")[1].split("\n\n`experiments/`")[0]
  )
  rows = [
    set(re.findall(r"`(\w+)`", line.split("|")[1]))
    for line in table.splitlines()
    if line.startswith("| `") and not line.startswith("| packages")
  ]
  assert rows == [set(row) for row in test_architecture.LAYERS[:-1]]


def test_the_metrics_of_the_glossary_are_logged():
  source = "\n".join(
    path.read_text(encoding="utf-8")
    for path in (ROOT / "instructgpt_jax").rglob("*.py")
  )
  rows = re.findall(r"^\| (`[^|]*`) \|", _read("docs/metrics.md"), re.MULTILINE)
  names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
  assert len(names) > 40
  for name in names:
    assert f'"{name}"' in source, name
