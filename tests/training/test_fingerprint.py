"""A run resumes only with the data and batches of its start."""

import json

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.training import fingerprint

ROWS = {
  "tokens": np.arange(12, dtype=np.int32).reshape(3, 4),
  "weights": np.ones((3, 4), np.float32),
}


def write(folder, text, name="demos.jsonl"):
  folder.mkdir(exist_ok=True)
  path = folder / name
  path.write_text(text)
  return str(path)


def made(source, rows=4, **options):
  return fingerprint.Fingerprint(
    {"rows": rows, "steps": 10}, {"data.demonstrations": source}, **options
  )


def saved(mark):
  """Returns the fingerprint as a checkpoint stores it."""
  return json.loads(json.dumps({fingerprint.KEY: mark.as_dict()}))


def test_the_same_records_at_another_path_are_accepted(tmp_path):
  old, new = (
    made(fingerprint.fingerprint_source(path, ROWS, train=3))
    for path in (
      write(tmp_path / "a", "x" * 100),
      write(tmp_path / "b", "y" * 70, "moved.jsonl"),
    )
  )
  new.require_same(saved(old), tmp_path)


@pytest.mark.parametrize(
  "change",
  [
    {"tokens": ROWS["tokens"][:2], "weights": ROWS["weights"][:2]},
    {"tokens": ROWS["tokens"][::-1], "weights": ROWS["weights"]},
    {"tokens": ROWS["tokens"], "weights": 0 * ROWS["weights"]},
    {"tokens": ROWS["tokens"].reshape(4, 3), "weights": ROWS["weights"]},
    {"tokens": ROWS["tokens"].astype(np.int64), "weights": ROWS["weights"]},
    {"tokens": ROWS["tokens"]},
  ],
)
def test_other_records_are_refused(change, tmp_path):
  path = write(tmp_path, "x" * 100)
  old = made(fingerprint.fingerprint_source(path, ROWS, train=3))
  new = made(fingerprint.fingerprint_source(path, change, train=3))
  with pytest.raises(UserError) as caught:
    new.require_same(saved(old), tmp_path / "run")
  error = caught.value
  assert (error.code, error.field, error.file) == (
    "data_changed",
    "data.demonstrations",
    str(tmp_path / "run"),
  )


def test_the_changed_source_is_named(tmp_path):
  path = write(tmp_path, "x" * 1000)
  old = saved(
    made(fingerprint.fingerprint_source(path, ROWS, train=3, valid=1))
  )
  write(tmp_path, "x" * 500)
  shorter = {k: v[:2] for k, v in ROWS.items()}
  new = made(
    fingerprint.fingerprint_source(path, shorter, train=2, valid=1), rows=3
  )
  with pytest.raises(UserError) as caught:
    new.require_same(old, tmp_path)
  assert caught.value.code == "data_changed"
  assert "demos.jsonl had 1,000 bytes, now 500" in caught.value.problem
  assert "train had 3 records, now 2" in caught.value.problem
  assert "valid" not in caught.value.problem


def test_a_source_that_is_missing_or_new_is_refused(tmp_path):
  source = fingerprint.fingerprint_source("", ROWS)
  both = fingerprint.Fingerprint({}, {"a": source, "b": source})
  one = fingerprint.Fingerprint({}, {"a": source})
  for old, new in ((both, one), (one, both)):
    with pytest.raises(UserError) as caught:
      new.require_same(saved(old), tmp_path)
    assert (caught.value.code, caught.value.field) == ("data_changed", "b")


def test_the_same_data_in_other_batches_are_refused(tmp_path):
  source = fingerprint.fingerprint_source("", ROWS)
  with pytest.raises(UserError) as caught:
    made(source, rows=8).require_same(saved(made(source)), tmp_path)
  assert caught.value.code == "batch_changed"
  assert "rows 4, now 8" in caught.value.problem


def test_a_checkpoint_without_a_fingerprint(tmp_path, capsys):
  """It is accepted with a warning if batches follow from the config."""
  source = fingerprint.fingerprint_source("", ROWS)
  made(source).require_same({}, tmp_path)
  assert "warning" in capsys.readouterr().err
  with pytest.raises(UserError) as caught:
    made(source, counted=False).require_same({}, tmp_path)
  assert caught.value.code == "batch_changed"


def test_the_model_that_adapters_stand_on_counts(tmp_path):
  mark = made(fingerprint.fingerprint_source("", ROWS))
  assert mark.with_base(None) is mark
  mark.with_base(7).require_same(saved(mark.with_base(7)), tmp_path)
  with pytest.raises(UserError) as caught:
    mark.with_base(8).require_same(saved(mark.with_base(7)), tmp_path)
  assert caught.value.field == "init_from"


def test_sequences_differ_from_their_concatenation():
  marks = [
    fingerprint.fingerprint_source("", value).hash
    for value in (
      [[1, 2], [3]],
      [[1], [2, 3]],
      [1, 2, 3],
      ["1", "2", "3"],
      [np.int32([1, 2]), np.int32([3])],
      [np.int32([1]), np.int32([2, 3])],
      [np.int32([]), np.int32([1, 2, 3])],
      {"a": [1, 2], "b": [3]},
    )
  ]
  assert len(set(marks)) == len(marks)


def test_another_model_at_the_same_path_is_noticed(tmp_path):
  folder = tmp_path / "base"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  (folder / "model.safetensors").write_bytes(b"1" * 100)
  first = fingerprint.fingerprint_model(folder)
  assert fingerprint.fingerprint_model(folder) == first
  (folder / "README.md").write_text("notes")
  (folder / "runs").mkdir()
  (folder / "runs" / "complete.json").write_text("{}")
  assert fingerprint.fingerprint_model(folder) == first
  (folder / "model.safetensors").write_bytes(b"1" * 99 + b"2")
  assert fingerprint.fingerprint_model(folder) != first


def test_files_are_identified_by_size_and_both_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(fingerprint, "_WHOLE", 10)
  path = write(tmp_path, "a" * 100)
  first = fingerprint.fingerprint_files(path)
  assert fingerprint.fingerprint_files(str(tmp_path)) == first
  for text in ("a" * 101, "b" + "a" * 99, "a" * 99 + "b"):
    assert fingerprint.fingerprint_files(write(tmp_path, text)) != first
