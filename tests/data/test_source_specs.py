"""A source's text is split into names and weights without ambiguity."""

import json

import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import paths, specs
from instructgpt_jax.errors import UserError


def record(i):
  return json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n"


@pytest.fixture
def directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = ("a.jsonl", "b.jsonl", "c:0.5", "d,e.jsonl", "f:g,h.jsonl", '"q".txt')
  for i, name in enumerate(names):
    (tmp_path / name).write_text(record(i))
  return tmp_path


@pytest.mark.parametrize(
  "spec, parts",
  [
    ("a.jsonl", [("a.jsonl", None)]),
    ("a.jsonl, b.jsonl", [("a.jsonl", None), ("b.jsonl", None)]),
    ("a.jsonl,,b.jsonl,", [("a.jsonl", None), ("b.jsonl", None)]),
    ("a.jsonl:0.7,b.jsonl:0.3", [("a.jsonl", 0.7), ("b.jsonl", 0.3)]),
    ("a.jsonl:2 , b.jsonl: 1e-1", [("a.jsonl", 2), ("b.jsonl", 0.1)]),
    ("missing.jsonl:1", [("missing.jsonl", 1)]),
    # Names of files that hold colons and commas.
    ("c:0.5", [("c:0.5", None)]),
    ("c:0.5:3,a.jsonl:1", [("c:0.5", 3), ("a.jsonl", 1)]),
    ("d,e.jsonl", [("d,e.jsonl", None)]),
    ('"d,e.jsonl":1,a.jsonl:2', [("d,e.jsonl", 1), ("a.jsonl", 2)]),
    ('a.jsonl,"f:g,h.jsonl"', [("a.jsonl", None), ("f:g,h.jsonl", None)]),
    ('"c:0.5":0.25', [("c:0.5", 0.25)]),
    ('"q".txt', [('"q".txt', None)]),
    # Names of other systems.
    (r"C:\data\a.jsonl", [(r"C:\data\a.jsonl", None)]),
    (r"C:\data\a.jsonl:0.7", [(r"C:\data\a.jsonl", 0.7)]),
    ("hf:org/name", [("hf:org/name", None)]),
    ("hf:org/name:train", [("hf:org/name:train", None)]),
    ("hf:org/name:0.3,hf:org/other:test:0.7",
     [("hf:org/name", 0.3), ("hf:org/other:test", 0.7)]),
    ("tfds:mine/plain:1.0.0:train", [("tfds:mine/plain:1.0.0:train", None)]),
    ("tfds:mine:train[:10%]:0.5", [("tfds:mine:train[:10%]", 0.5)]),
    ("*.jsonl:1", [("*.jsonl", 1)]),
    ("x/*:y/*.jsonl", [("x/*:y/*.jsonl", None)]),
  ],
)  # fmt: skip
def test_parts(directory, spec, parts):
  assert specs.parse(spec) == parts


@pytest.mark.parametrize(
  "parts",
  [
    [("a.jsonl", None)],
    [("a.jsonl", 0.7), ("b.jsonl", 0.1 + 0.2)],
    [("no,such.jsonl", None), ("no such:0.5", None)],
    [("no,such.jsonl", 2.0), ("c:0.5", 1e-9), ("a, b/c.jsonl", 1.0)],
    [(r"C:\data\a.jsonl", 0.7), ("hf:org/name", 0.3)],
  ],
)
def test_joined_parts_are_read_again(directory, parts):
  assert specs.parse(specs.join(specs.Part(*part) for part in parts)) == parts


@pytest.mark.parametrize(
  "spec, code, file",
  [
    ("a.jsonl:much,b.jsonl:1", "bad_weight", "a.jsonl"),
    ("a.jsonl:", "bad_weight", "a.jsonl"),
    ("a.jsonl:-1,b.jsonl:1", "bad_weight", "a.jsonl"),
    ("a.jsonl:nan,b.jsonl:1", "bad_weight", "a.jsonl"),
    ("a.jsonl:inf,b.jsonl:1", "bad_weight", "a.jsonl"),
    ("a.jsonl:1_0,b.jsonl:1", "bad_weight", "a.jsonl"),
    ("a.jsonl:70%,b.jsonl:30%", "bad_weight", "a.jsonl"),
    ('"d,e.jsonl" 1', "bad_weight", "d,e.jsonl"),
    ("*.jsonl:much", "bad_weight", "*.jsonl"),
    ("hf:org/name:train:-1", "bad_weight", "hf:org/name:train"),
    ("a.jsonl:1,b.jsonl", "missing_weight", "b.jsonl"),
    ("a.jsonl:0,b.jsonl:0.0", "zero_weights", "a.jsonl:0,b.jsonl:0"),
    (" , ", "no_data", None),
  ],
)
def test_bad_weights(directory, spec, code, file):
  with pytest.raises(UserError) as e:
    specs.parse(spec)
  assert (e.value.code, e.value.file) == (code, file)


def test_sources_have_their_files(directory):
  (directory / "more").mkdir()
  for i in range(2):
    (directory / "more" / f"{i}.jsonl").write_text(record(i))
  sources = reading.weighted_sources("more:3,a.jsonl:1,b.jsonl:0")
  assert sources == [
    ("more", 3, ("more/0.jsonl", "more/1.jsonl")),
    ("a.jsonl", 1, ("a.jsonl",)),
  ]
  records, report = reading.read_demonstrations("more:3,a.jsonl:1,b.jsonl:0")
  assert len(records) == 3
  assert [(i.path, i.reason) for i in report.ignored] == [
    ("b.jsonl", paths.WEIGHT_0)
  ]
  assert reading.weighted_sources("more,a.jsonl") == []


def test_a_source_of_earlier_files_is_an_error(directory):
  with pytest.raises(UserError) as e:
    reading.read_demonstrations("a.jsonl:1,./a.jsonl:2")
  assert (e.value.code, e.value.file) == ("same_source", "./a.jsonl")


def test_a_weight_of_a_missing_file_names_the_file(directory):
  with pytest.raises(UserError) as e:
    reading.read_demonstrations("a.jsonl:1,bb.jsonl:2")
  assert (e.value.code, e.value.file) == ("no_such_file", "bb.jsonl")
