"""Checks which parts of the package import which; it parses, runs nothing."""

import ast
import functools
import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "instructgpt_jax"

# Each part imports only parts of earlier rows. Parts of one row do not import
# each other.
LAYERS = (
  {"errors"},
  {"types", "statistics", "file_signatures", "streams"},
  {"gguf_header"},
  {"configs"},
  {"sharding", "precision"},
  {"data", "models"},
  {"losses", "interop"},
  {"steps"},
  {"distributed"},
  {"runs"},
  {"checkpoint"},
  {"cli"},
  {"training", "world", "instructions"},
  {"evaluation", "chat", "hub", "report"},
  {"pipeline", "planner", "serve", "sweeps", "labeling"},
  {"recipes"},
  {"studies", "real"},
  {"experiments", "benchmarks"},
)
TOPS = ("experiments", "benchmarks")
ROW = {part: row for row, parts in enumerate(LAYERS) for part in parts}

# No files, logs, flags, clocks, host randomness or device queries.
PURE = ("types.py", "data/encoding.py", "data/packing.py")
PURE_FOLDERS = ("configs", "models", "losses", "steps")
IMPURE_MODULES = {
  "absl",
  "datetime",
  "io",
  "logging",
  "os",
  "pathlib",
  "random",
  "secrets",
  "shutil",
  "socket",
  "subprocess",
  "sys",
  "tempfile",
  "threading",
  "time",
}
IMPURE_CALLS = {
  "input",
  "jax.config.update",
  "jax.device_count",
  "jax.devices",
  "jax.local_devices",
  "jax.process_count",
  "jax.process_index",
  "np.random",
  "numpy.random",
  "open",
  "print",
}


@functools.cache
def _tree(path):
  return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _files(folder=PACKAGE):
  return sorted((ROOT / folder).rglob("*.py"))


def _imports(path):
  """Yields the dotted names that a file imports, also inside functions."""
  for node in ast.walk(_tree(path)):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno} imports relatively"
      for alias in node.names:
        yield f"{node.module}.{alias.name}"


def _part(path):
  """Returns the part of the package that a file belongs to."""
  parts = path.relative_to(ROOT).parts
  if parts[0] in TOPS:
    return parts[0]
  return parts[1].removesuffix(".py")


def _part_imports(path):
  """Yields the parts of the package that a file imports."""
  for name in _imports(path):
    head, *rest = name.split(".")
    if head == PACKAGE and rest:
      yield rest[0]
    elif head in TOPS:
      yield head


def test_every_directory_of_modules_is_a_package():
  """An installation leaves out directories without __init__.py."""
  directories = {path.parent for path in _files()}
  assert directories
  assert [d for d in directories if not (d / "__init__.py").exists()] == []


def _source_files():
  return [
    path
    for path in [*_files(), *(p for top in TOPS for p in _files(top))]
    if path != ROOT / PACKAGE / "__init__.py"
  ]


def _name(path):
  return str(path.relative_to(ROOT))


def test_the_walk_sees_the_source_files():
  names = {_name(path) for path in _source_files()}
  for part in ("configs/model.py", "models/transformer.py", "losses/ppo.py"):
    assert f"{PACKAGE}/{part}" in names
  parts = set(_part_imports(ROOT / PACKAGE / "losses" / "ppo.py"))
  assert {"losses", "types"} <= parts


@pytest.mark.parametrize("path", _source_files(), ids=_name)
def test_imports_go_one_way(path):
  part = _part(path)
  assert part in ROW, f"{part} is in no row of LAYERS"
  for other in _part_imports(path):
    if other in (part, "__version__"):
      continue
    assert ROW[other] < ROW[part], f"{_name(path)} imports {other}"


def test_losses_see_arrays_only():
  for path in _files(f"{PACKAGE}/losses"):
    assert set(_part_imports(path)) <= {
      "losses",
      "sharding",
      "precision",
      "types",
    }, _name(path)


def test_models_meet_losses_in_steps_only():
  for path in _source_files():
    parts = set(_part_imports(path))
    if {"models", "losses"} <= parts:
      # The planner reads block sizes from both.
      assert _part(path) in ("steps", "planner"), _name(path)


def _pure():
  for path in _files():
    name = str(path.relative_to(ROOT / PACKAGE))
    if name in PURE or name.split("/")[0] in PURE_FOLDERS:
      yield path


def _impurities(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    elif isinstance(node, ast.Name | ast.Attribute):
      text = ast.unparse(node)
      if text in IMPURE_CALLS:
        yield text
      continue
    elif isinstance(node, ast.Global):
      yield "global"
      continue
    else:
      continue
    yield from (n for n in names if n.split(".")[0] in IMPURE_MODULES)


@pytest.mark.parametrize(
  "text, expected",
  [
    ("import os.path", ["os.path"]),
    ("from time import time", ["time"]),
    ("def f():\n  import random", ["random"]),
    ("x = np.random.normal()", ["np.random"]),
    ("n = len(jax.devices())", ["jax.devices"]),
    ("print(1)", ["print"]),
    ("def f():\n  global x", ["global"]),
    ("import jax\nx = jax.random.normal(key)", []),
  ],
)
def test_impurities_are_found(text, expected):
  assert list(_impurities(ast.parse(text))) == expected


@pytest.mark.parametrize("path", list(_pure()), ids=_name)
def test_pure_parts_are_pure(path):
  assert list(_impurities(_tree(path))) == []


def test_the_pure_parts_are_there():
  names = {str(p.relative_to(ROOT / PACKAGE)) for p in _pure()}
  assert set(PURE) <= names
  for directory in PURE_FOLDERS:
    assert any(name.startswith(f"{directory}/") for name in names)


@pytest.mark.parametrize(
  "library, allowed",
  [
    ("orbax", {f"{PACKAGE}/checkpoint/storage.py"}),
    ("flax", {f"{PACKAGE}/models/", f"{PACKAGE}/sharding.py"}),
    ("tensorboardX", {f"{PACKAGE}/runs/trackers.py"}),
    ("wandb", {f"{PACKAGE}/runs/trackers.py"}),
    ("mlflow", {f"{PACKAGE}/runs/trackers.py"}),
    ("grain", {f"{PACKAGE}/data/", f"{PACKAGE}/training/"}),
    ("tensorflow_datasets", {f"{PACKAGE}/data/"}),
    (
      "pyarrow",
      {f"{PACKAGE}/data/reading/", f"{PACKAGE}/labeling/export_files.py"},
    ),
    ("datasets", {f"{PACKAGE}/data/reading/hub.py"}),
    ("sentencepiece", {f"{PACKAGE}/data/"}),
    ("tokenizers", {f"{PACKAGE}/data/"}),
    ("optuna", {f"{PACKAGE}/sweeps/search.py"}),
    ("krippendorff", {f"{PACKAGE}/labeling/reliability.py"}),
    ("submitit", {f"{PACKAGE}/sweeps/cluster.py"}),
    ("starlette", {f"{PACKAGE}/serve/app.py", f"{PACKAGE}/labeling/web/"}),
    ("uvicorn", {f"{PACKAGE}/serve/command.py", f"{PACKAGE}/labeling/"}),
    ("sqlalchemy", {f"{PACKAGE}/labeling/", "benchmarks/labeling"}),
    ("alembic", {f"{PACKAGE}/labeling/migrations/"}),
    ("gguf", {f"{PACKAGE}/interop/gguf_tensors.py"}),
    ("tensorflow", set()),
    ("torch", set()),
    ("transformers", set()),
    ("pickle", set()),
  ],
)
def test_libraries_are_imported_where_they_belong(library, allowed):
  users = {
    _name(path)
    for path in _source_files()
    if any(name.split(".")[0] == library for name in _imports(path))
  }
  for user in users:
    assert any(user.startswith(prefix) for prefix in allowed), user
  if library in ("orbax", "flax"):
    assert users, f"nothing imports {library}"


def test_steps_and_models_are_jitted_in_loops_only():
  for path in _pure():
    calls = {
      ast.unparse(node)
      for node in ast.walk(_tree(path))
      if isinstance(node, ast.Attribute)
    }
    assert not calls & {"jax.jit", "jax.pmap"}, _name(path)


def test_imports_print_nothing_and_change_no_setting():
  # In a new process, because other tests import modules and set options.
  script = """
    import importlib, io, json, pkgutil, sys, warnings
    from contextlib import redirect_stderr, redirect_stdout
    import absl.flags, flax.linen, grain, jax, jinja2, matplotlib, optax
    import sentencepiece, tensorflow_datasets, tokenizers, tqdm
    from jax._src import xla_bridge
    from orbax.checkpoint import v1

    settings, flags = dict(jax.config.values), set(absl.flags.FLAGS)
    warnings.simplefilter("error")
    output = io.StringIO()
    names = []
    with redirect_stdout(output), redirect_stderr(output):
      for root in ("instructgpt_jax", "benchmarks", "experiments"):
        package = importlib.import_module(root)
        for module in pkgutil.walk_packages(package.__path__, root + "."):
          names.append(module.name)
          importlib.import_module(module.name)
    print(json.dumps({
      "names": names,
      "output": output.getvalue(),
      "settings": settings == dict(jax.config.values),
      "flags": flags == set(absl.flags.FLAGS),
      "devices": xla_bridge.backends_are_initialized(),
      "tensorflow": "tensorflow" in sys.modules,
    }))
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  assert f"{PACKAGE}.checkpoint.checkpoints" in result["names"]
  assert result["output"] == ""
  assert result["settings"] and result["flags"]
  assert not result["devices"] and not result["tensorflow"]


def test_jax_imports_without_a_warning():
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", "import jax; import jax.numpy"],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")
