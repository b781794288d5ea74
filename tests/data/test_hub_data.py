"""Datasets through the `datasets` library, and what stands for it without."""

import sys
import types

import pyarrow as pa
import pyarrow.parquet
import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import hub
from instructgpt_jax.errors import UserError
from tests.interop import tiny

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(4)]


class Split:
  """A split of the library, as far as `hub` uses it."""

  def __init__(self, rows):
    self.table = pa.Table.from_pylist(rows)

  def with_format(self, name):
    assert name == "arrow"
    return self

  def iter(self, size):
    for start in range(0, len(self.table), size):
      yield self.table.slice(start, size)


@pytest.fixture
def library(monkeypatch):
  """Replaces the library; returns the arguments of its calls."""
  calls = []
  splits = {"train": Split(ROWS[:3]), "validation": Split(ROWS[3:])}

  def load_dataset(*args, **options):
    calls.append((args, options))
    if "missing" in args[0]:
      raise ConnectionError("no route\nto host")
    return splits if options["split"] is None else splits[options["split"]]

  module = types.ModuleType("datasets")
  module.__version__ = "5.2.0"
  module.load_dataset = load_dataset
  monkeypatch.setitem(sys.modules, "datasets", module)
  hub._load.cache_clear()
  yield calls
  hub._load.cache_clear()


def test_all_splits_of_a_name_are_read(library):
  records, report = reading.read_demonstrations("hf:org/name")
  assert [(r.completion, r.split) for r in records] == [
    ("a0", "train"), ("a1", "train"), ("a2", "train"), ("a3", "valid"),
  ]  # fmt: skip
  assert records[1].origin == "hf:org/name:train:2"
  assert [f.path for f in report.files] == [
    "hf:org/name:train",
    "hf:org/name:validation",
  ]
  # No code of a dataset may run.
  assert not any("trust_remote_code" in options for _, options in library)


@pytest.mark.parametrize(
  "spec, arguments",
  [
    ("hf:org/name:validation", (("org/name", None), {"split": "validation"})),
    ("hf:org/name/main:train", (("org/name", "main"), {"split": "train"})),
    ("hf:plain:train", (("plain", None), {"split": "train"})),
  ],
)
def test_names_of_splits_and_configs(library, spec, arguments):
  assert reading.read_demonstrations(spec)[0]
  assert library == [arguments]


@pytest.mark.parametrize(
  "spec, code",
  [
    ("hf:org/missing:train", "hub_error"),
    ("hf:org/name:nope", "hub_error"),
    ("hf:", "bad_hub_name"),
    ("hf:/no/such/directory", "bad_hub_name"),
  ],
)
def test_what_cannot_be_loaded_is_one_error(library, spec, code):
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(spec)
  assert (e.value.code, e.value.file) == (code, spec)
  assert "\n" not in e.value.problem


def test_a_dataset_has_a_weight(library, tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"prompt": "q", "completion": "a"}\n')
  assert reading.weighted_sources(f"hf:org/name:0.3,{path}:2") == [
    ("hf:org/name", 0.3, ("hf:org/name:train", "hf:org/name:validation")),
    (str(path), 2, (str(path),)),
  ]


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  hub._load.cache_clear()
  with pytest.raises(UserError) as e:
    reading.read_demonstrations("hf:org/name:train")
  assert (e.value.code, e.value.file) == (
    "missing_library",
    "hf:org/name:train",
  )


def test_an_old_library_could_run_code(library, monkeypatch):
  monkeypatch.setattr(sys.modules["datasets"], "__version__", "3.6.0")
  with pytest.raises(UserError) as e:
    reading.read_demonstrations("hf:org/name:train")
  assert e.value.code == "old_library" and not library


def test_local_directories_through_the_library(tmp_path, monkeypatch):
  datasets = tiny.library("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  hub._load.cache_clear()
  parquet = tmp_path / "parquet"
  parquet.mkdir()
  for name, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, parquet / f"{name}-00000-of-00001.parquet")
  saved = tmp_path / "saved"
  datasets.DatasetDict(
    train=datasets.Dataset.from_list(ROWS[:3]),
    test=datasets.Dataset.from_list(ROWS[3:]),
  ).save_to_disk(saved)
  expected = {("a0", "train"), ("a1", "train"), ("a2", "train"), ("a3", "test")}
  # What the library saved is read without it, too.
  for spec in (f"hf:{parquet}", f"hf:{saved}", str(saved), str(parquet)):
    records, _ = reading.read_demonstrations(spec)
    assert {(r.completion, r.split) for r in records} == expected, spec
  for directory in (parquet, saved):
    records, _ = reading.read_demonstrations(f"hf:{directory}:test")
    assert [r.completion for r in records] == ["a3"]
