"""Splits by file names."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import curation, reading
from instructgpt_jax.data.curation import splits
from instructgpt_jax.data.reading import file_splits


def write(path, values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(v) + "\n" for v in values))


def demonstrations(name, count, **more):
  return [
    {"prompt": f"{name} {i}", "completion": "a", **more} for i in range(count)
  ]


def counts(records):
  return {s: sum(r.split == s for r in records) for s in (*splits.SPLITS, "")}


@pytest.mark.parametrize(
  "name, split",
  [
    ("train.jsonl", "train"),
    ("Test.jsonl.gz", "test"),
    ("train-00000-of-00002.jsonl", "train"),
    ("validation_1.json", "valid"),
    ("test_sft.jsonl", "test"),
    ("held_out.jsonl", "test"),
    ("train.en.jsonl", "train"),
    ("alpaca_train.jsonl", "train"),
    ("gsm8k-test-00001-of-00002.jsonl", "test"),
    ("train/a.jsonl", "train"),
    ("test/en/a.jsonl", "test"),
    ("test/train.jsonl", "train"),
    ("contest.jsonl", ""),
    ("latest.jsonl", ""),
    ("trainer.jsonl", ""),
    ("web-dev-questions.jsonl", ""),
    ("part-00000-of-00002.jsonl", ""),
  ],
)
def test_names_of_files(name, split):
  # Another file names another split, so that names count.
  other = "train.jsonl" if split != "train" else "test.jsonl"
  by_name = file_splits.by_name([f"/d/{name}", f"/d/x/{other}"], {})
  assert by_name.get(f"/d/{name}", "") == split


def test_directories_above_the_source_and_pipes_say_nothing():
  names = ["/dev/stdin", "/srv/dev/p/d/a.jsonl", "/m/train.jsonl"]
  roots = {names[1]: "/srv/dev/p", names[2]: "/"}
  assert file_splits.by_name(names, roots) == {}
  names = ["/test_x/train.jsonl", "/test_x/more.jsonl", "/test_x/dev.jsonl"]
  assert file_splits.by_name(names, {}) == {
    names[0]: "train",
    names[2]: "valid",
  }


def test_tfds_names_say_their_split():
  names = ["tfds:mine:train[:10%]", "tfds:mine/plain:test", "tfds:a:train+test"]
  assert file_splits.by_name(names, {}) == {names[0]: "train", names[1]: "test"}


@pytest.mark.parametrize("how", ["directory", "glob", "list", "directories"])
def test_a_test_file_is_not_trained_on(tmp_path, how):
  hf = tmp_path / "hf"
  for name, count in (("train", 60), ("test", 20)):
    path = f"{name}/0.jsonl" if how == "directories" else f"{name}.jsonl"
    write(hf / path, demonstrations(name, count))
  spec = {
    "directory": str(hf),
    "glob": f"{hf}/*.jsonl",
    "list": f"{hf}/train.jsonl,{hf}/test.jsonl",
    "directories": f"{hf}/train,{hf}/test",
  }[how]
  records, report = reading.read_demonstrations(spec)
  assert counts(records) == {"train": 60, "valid": 0, "test": 20, "": 0}
  assert report.notes == {
    "records in train by file name": 60,
    "records in test by file name": 20,
  }
  parts, _ = curation.curate(records, configs.Data())
  assert [len(parts[s]) for s in splits.SPLITS] == [60, 0, 20]
  prompts, _ = reading.read_prompts(spec)
  assert counts(prompts) == counts(records)


def test_every_kind_is_split_by_name(tmp_path):
  ranked = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}
  for value, read in (
    (ranked, reading.read_rankings),
    ({"prompt": "p"}, reading.read_prompts),
    ({"text": "t"}, reading.read_documents),
  ):
    for name in ("train", "validation"):
      write(tmp_path / f"{name}.jsonl", [value])
    records, _ = read(str(tmp_path))
    assert [r.split for r in records] == ["train", "valid"]
  for name in ("train", "validation"):
    (tmp_path / f"{name}.jsonl").unlink()
    (tmp_path / f"{name}.txt").write_text(name)
  documents, _ = reading.read_documents(str(tmp_path))
  parts = splits.split_documents(documents, configs.Data())
  assert [d.text for d in parts["train"]] == ["train"]
  assert [d.text for d in parts["valid"]] == ["validation"]


def test_one_file_and_files_of_one_split_are_hashed(tmp_path):
  write(tmp_path / "test.jsonl", demonstrations("a", 30))
  write(tmp_path / "test_2.jsonl", demonstrations("b", 30))
  for spec in (tmp_path / "test.jsonl", tmp_path):
    records, report = reading.read_demonstrations(str(spec))
    assert {r.split for r in records} == {""} and not report.notes


def test_files_without_records_of_the_kind_do_not_count(tmp_path):
  write(tmp_path / "train.jsonl", demonstrations("a", 9))
  write(tmp_path / "test.jsonl", [{"prompt": "p"}])
  records, _ = reading.read_demonstrations(str(tmp_path))
  assert {r.split for r in records} == {""}


def test_a_split_of_the_record_and_files_without_a_name(tmp_path):
  write(tmp_path / "train.jsonl", demonstrations("a", 4))
  write(tmp_path / "test.jsonl", demonstrations("b", 5))
  write(tmp_path / "test_2.jsonl", demonstrations("c", 6, split="valid"))
  write(tmp_path / "more.jsonl", demonstrations("d", 7))
  records, report = reading.read_demonstrations(str(tmp_path))
  assert counts(records) == {"train": 4, "valid": 6, "test": 5, "": 7}
  assert report.notes == {
    "records in train by file name": 4,
    "records in test by file name": 5,
  }


@pytest.mark.parametrize("whole", [True, False])
def test_the_command_shows_the_same(tmp_path, capsys, whole):
  names = []
  for name, count in (("train", 60), ("test", 20)):
    names.append(str(tmp_path / f"{name}.jsonl"))
    write(tmp_path / f"{name}.jsonl", demonstrations(name, count))
  assert command.main([str(tmp_path)] if whole else names) == 0
  out = capsys.readouterr().out
  assert "20 records in test by file name" in out
  assert "splits: 0 train, 0 valid, 20 test" in out
  assert "splits: 60 train, 0 valid, 20 test" in out
  assert "a stage refuses it" not in out


def test_a_document_of_a_test_file_is_never_moved():
  held_out = [splits.Document(text=f"t{i}", split="test") for i in range(9)]
  texts = [f"text {i}" for i in range(20)]
  texts = [t for t in texts if splits.hash_fraction(f"text:{t}") < 0.5]
  loose = [splits.Document(text=text) for text in texts[:2]]
  data = configs.Data(valid_fraction=0.5, test_fraction=0.0)
  parts = splits.split_documents([*held_out, *loose], data)
  assert parts["test"] == held_out
  assert len(parts["train"]) == len(parts["valid"]) == 1
