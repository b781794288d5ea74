"""CSV, Parquet, Arrow and saved datasets are read as their JSON lines are."""

import datetime
import decimal
import gzip
import json
import os
import pathlib
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import paths, saved_datasets
from instructgpt_jax.data.records import Demonstration, Prompt, Ranking, Turn
from instructgpt_jax.errors import UserError

TALK = [
  {"role": "system", "content": "Be kind."},
  {"role": "user", "content": "Name a river.\nA long one."},
  {"role": "assistant", "content": "The Loire."},
]
RECORDS = {
  "demonstrations": [
    {
      "prompt": f'Say "{i}",\nplease; ü',
      "completion": f" {i}\n\n- a\tb",
      "n": i,
    }
    for i in range(5)
  ],
  "messages": [{"messages": TALK, "id": str(i)} for i in range(3)],
  "sharegpt": [
    {
      "conversations": [
        {"from": "human", "value": f"q{i}"},
        {"from": "gpt", "value": "a"},
      ]
    }
    for i in range(3)
  ],
  "preferences": [
    {"prompt": f"q{i}", "chosen": "good", "rejected": "bad", "margin": 0.5}
    for i in range(3)
  ],
  "conversations of a preference": [
    {
      "chosen": [*TALK[1:2], {"role": "assistant", "content": "a"}],
      "rejected": [*TALK[1:2], {"role": "assistant", "content": "b"}],
    }
  ],
  "rankings": [
    {"prompt": f"q{i}", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
    for i in range(3)
  ],
  "prompts": [{"prompt": f"q{i}", "user_id": str(i)} for i in range(3)],
  "texts": [{"text": f"A text.\n\nNo {i}."} for i in range(3)],
  "nulls": [
    {"prompt": "a", "completion": "b", "split": None},
    {"prompt": "c", "completion": "d", "split": "valid"},
  ],
}
GOOD = RECORDS["demonstrations"]


def write_jsonl(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return str(path)


def write_parquet(path, records, **options):
  pa.parquet.write_table(pa.Table.from_pylist(records), path, **options)
  return str(path)


def write_csv(path, records, delimiter=",", encoding="utf-8", end="\r\n"):
  """Writes a table by hand, every cell quoted, lists as JSON."""

  def cell(value):
    if value is None:
      return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"'

  names = list(dict.fromkeys(name for r in records for name in r))
  rows = [delimiter.join(names)]
  rows += [delimiter.join(cell(r.get(n)) for n in names) for r in records]
  path.write_bytes((end.join(rows) + end).encode(encoding))
  return str(path)


def write_arrow(path, records, kind=pa.ipc.new_stream):
  table = pa.Table.from_pylist(records)
  with kind(str(path), table.schema) as writer:
    writer.write_table(table, max_chunksize=2)
  return str(path)


def records_of(path):
  """Returns a file's records of all kinds, without where they come from."""
  result = []
  for record in reading.read_any(path).records:
    values = dict(vars(record))
    values.pop("origin")
    result.append((type(record), values))
  return result


@pytest.mark.parametrize("name", RECORDS)
def test_tables_hold_the_records_of_their_json_lines(tmp_path, name):
  records = RECORDS[name]
  expected = records_of(write_jsonl(tmp_path / "x.jsonl", records))
  assert expected
  for path in (
    write_parquet(tmp_path / "x.parquet", records),
    write_parquet(tmp_path / "small.parquet", records, row_group_size=2),
    write_arrow(tmp_path / "x.arrow", records),
    write_arrow(tmp_path / "file.arrow", records, pa.ipc.new_file),
    write_csv(tmp_path / "x.csv", records),
    write_csv(tmp_path / "x.tsv", records, "\t", end="\n"),
    write_csv(tmp_path / "bom.csv", records, encoding="utf-8-sig"),
    write_csv(tmp_path / "wide.csv", records, encoding="utf-16"),
    write_csv(tmp_path / "x.psv", records, "|"),
    write_csv(tmp_path / "x.ssv", records, ";"),
  ):
    assert records_of(path) == expected, path


def test_gzip_is_unpacked(tmp_path):
  expected = records_of(write_jsonl(tmp_path / "x.jsonl", GOOD))
  for name, write in (("x.csv", write_csv), ("x.parquet", write_parquet)):
    path = pathlib.Path(write(tmp_path / name, GOOD))
    packed = tmp_path / (name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert records_of(str(packed)) == expected


def test_rows_and_lines_are_origins(tmp_path):
  path = write_parquet(tmp_path / "x.parquet", GOOD, row_group_size=2)
  origins = [r.origin for r in reading.read_demonstrations(path)[0]]
  assert origins == [f"{path}:{i}" for i in range(1, 6)]
  # Each record of the CSV file begins on a line of its own, and has four.
  path = write_csv(tmp_path / "x.csv", GOOD)
  origins = [r.origin for r in reading.read_demonstrations(path)[0]]
  assert origins == [f"{path}:{2 + 4 * i}" for i in range(5)]


def test_row_groups_are_read_lazily(tmp_path, monkeypatch):
  path = write_parquet(tmp_path / "x.parquet", GOOD * 1000, row_group_size=100)
  batches = []
  original = pa.parquet.ParquetFile.iter_batches

  def counted(self, *args, **options):
    for batch in original(self, *args, **options):
      batches.append(batch.num_rows)
      yield batch

  monkeypatch.setattr(pa.parquet.ParquetFile, "iter_batches", counted)
  items = reading.iterate(path, None)
  assert next(items).completion and sum(batches) <= 1024


def test_types_of_columns(tmp_path):
  when = datetime.datetime(2024, 2, 3, 4, 5, 6)
  columns = {
    "prompt": pa.array(["a", "a", "c"]).dictionary_encode(),
    "completions": pa.array(
      [["x", "y"], ["p", "q"], ["r", "s"]], pa.large_list(pa.large_string())
    ),
    "ranks": pa.array([[1, 2], [2, 1], [1, 2]], pa.list_(pa.uint8())),
    "scores": pa.array(
      [[decimal.Decimal("2.5"), decimal.Decimal("1.5")], None, None],
      pa.list_(pa.decimal128(5, 2)),
    ),
    "split": pa.array([None, b"valid", b"test"], pa.binary()),
    "user_id": pa.array([7.0, None, 9.0], pa.float32()),
    "created_at": pa.array([when] * 3, pa.timestamp("ns")),
    "when": pa.array([when.date(), None, None]),
    "half": pa.array(np.array([1, 2, 3], np.float16)),
    "tags": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
  }
  path = str(tmp_path / "x.parquet")
  pa.parquet.write_table(pa.table(columns), path)
  rankings, report = reading.read_rankings(path)
  assert [(r.turns[0].text, r.completions, r.ranks) for r in rankings] == [
    ("a", ("x", "y"), (1, 2)),
    ("a", ("p", "q"), (2, 1)),
    ("c", ("r", "s"), (1, 2)),
  ]
  assert [r.split for r in rankings] == ["", "valid", "test"]
  assert [r.user_id for r in rankings] == ["7", "", "9"]
  # Times are known to be irrelevant by name, others are counted.
  assert report.unused == {"when": 1, "half": 3, "tags": 1}


def test_a_struct_of_lists_is_a_list_of_messages(tmp_path):
  """As the Hugging Face datasets library stores a sequence of objects."""
  columns = [{"from": ["human", "gpt"], "value": ["q", "a"]}]
  path = str(tmp_path / "x.parquet")
  pa.parquet.write_table(pa.table({"conversations": columns}), path)
  (record,) = reading.read_demonstrations(path)[0]
  assert (record.turns, record.completion) == ((Turn("user", "q"),), "a")


# Directories.


def test_shards_of_a_directory_have_the_splits_of_their_names(tmp_path):
  for i in range(3):
    name = f"train-0000{i}-of-00003.parquet"
    write_parquet(tmp_path / name, [dict(GOOD[0], prompt=f"t{i}")])
  write_parquet(tmp_path / "test-00000-of-00001.parquet", GOOD[:1])
  (tmp_path / "README.md").write_text("# data")
  none = pa.Table.from_pylist(GOOD[:1]).slice(0, 0)
  pa.parquet.write_table(none, tmp_path / "valid-00000-of-00001.parquet")
  (tmp_path / "names.csv").write_text("prompt,completion\n")
  for spec in (tmp_path, tmp_path / "*"):
    records, report = reading.read_demonstrations(str(spec))
    assert [r.split for r in records] == ["test", "train", "train", "train"]
    ignored = {os.path.basename(i.path): i.reason for i in report.ignored}
    assert ignored == {
      "README.md": paths.OTHER_KIND,
      "valid-00000-of-00001.parquet": paths.EMPTY,
      "names.csv": paths.EMPTY,
    }
  records, _ = reading.read_demonstrations(f"{tmp_path}/train-*.parquet")
  assert [r.split for r in records] == [""] * 3


def save_to_disk(directory, records, files=2):
  """Writes a directory as `datasets.Dataset.save_to_disk` does."""
  directory.mkdir(parents=True)
  names = [f"data-{i:05}-of-{files:05}.arrow" for i in range(files)]
  for i, name in enumerate(names):
    write_arrow(directory / name, records[i::files])
  state = {"_data_files": [{"filename": n} for n in names], "_split": None}
  (directory / "state.json").write_text(json.dumps(state))
  (directory / "dataset_info.json").write_text('{"features": {}}')


def test_a_saved_dataset_is_read_without_the_library(tmp_path):
  save_to_disk(tmp_path / "one", GOOD)
  write_arrow(tmp_path / "one" / "cache-0123456789abcdef.arrow", GOOD[:1])
  records, report = reading.read_demonstrations(str(tmp_path / "one"))
  assert {r.completion for r in records} == {
    r.completion for r in reading.read_demonstrations(
      write_jsonl(tmp_path / "x.jsonl", GOOD))[0]
  }  # fmt: skip
  assert len(records) == 5
  ignored = {os.path.basename(i.path): i.reason for i in report.ignored}
  assert ignored.pop("cache-0123456789abcdef.arrow") == (
    saved_datasets.NOT_LISTED
  )
  assert set(ignored) == {"state.json", "dataset_info.json"}


def test_a_saved_dictionary_has_splits(tmp_path):
  top = tmp_path / "saved"
  save_to_disk(top / "train", GOOD[:3], files=1)
  save_to_disk(top / "test", GOOD[3:], files=1)
  (top / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  records, _ = reading.read_demonstrations(str(top))
  assert sorted(r.split for r in records) == ["test"] * 2 + ["train"] * 3
  (top / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(top))
  assert (e.value.code, e.value.file) == ("missing_shard", str(top / "dev"))


def test_a_shard_that_is_missing_or_cut_is_an_error(tmp_path):
  save_to_disk(tmp_path / "a", GOOD * 50)
  shard = tmp_path / "a" / "data-00001-of-00002.arrow"
  content = shard.read_bytes()
  shard.write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path / "a"))
  assert (e.value.code, e.value.file) == ("bad_table", str(shard))
  assert e.value.line
  shard.unlink()
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path / "a"))
  assert (e.value.code, e.value.file) == ("missing_shard", str(shard))
  (tmp_path / "a" / "state.json").write_text("{}")
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path / "a"))
  assert e.value.code == "bad_dataset_state"


# What is refused.


def error_of(path, content, read=reading.read_demonstrations):
  path.write_bytes(content)
  with pytest.raises(UserError) as e:
    read(str(path))
  assert e.value.file == str(path)
  return e.value.code, e.value.line, e.value.field


BAD_CSV = {
  "more cells": (b"prompt,completion\na,b\nc,d,e\n", "ragged_row", 3),
  "fewer cells": (b'prompt,completion\n"a\n\nb",c\nd\n', "ragged_row", 5),
  "open quote": (b'prompt,completion\na,b\n"c,d\ne,f\n', "bad_csv", 3),
  "text behind a quote": (b'prompt,completion\n"a"b,c\n', "bad_csv", 2),
  "other columns": (b"question_text,reply_text\na,b\n", "unknown_format", 2),
  "two columns of a name": (b"prompt,prompt\na,b\n", "duplicate_columns", 1),
  "semicolons": (b"prompt;completion\na;b\n", "csv_delimiter", 1),
  "no header": (b"x" * 200 + b",b\nc,d\n", "csv_header", 1),
  "header alone": (b"prompt,completion\n", "no_records", 1),
  "empty": (b"\n", "empty_file", 1),
  "not UTF-8": (b"prompt,completion\na,caf\xe9\n", "not_utf8", 2),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv(tmp_path, name):
  content, code, line = BAD_CSV[name]
  assert error_of(tmp_path / "x.csv", content)[:2] == (code, line)


def test_a_list_in_a_cell_is_json(tmp_path):
  row = b"prompt,completions,ranks\n"
  path = tmp_path / "x.csv"
  code, line, field = error_of(
    path, row + b"""a,"['b', 'c']","[1, 2]"\n""", reading.read_rankings
  )
  assert (code, line, field) == ("bad_json", 2, "completions")
  # A list in a column of texts is a text.
  path.write_bytes(b'prompt,completion\n"[1, 2]","[3]"\n')
  (record,) = reading.read_demonstrations(str(path))[0]
  assert (record.turns[0].text, record.completion) == ("[1, 2]", "[3]")


def parquet_bytes(tmp_path, records):
  path = tmp_path / "good.parquet"
  write_parquet(path, records)
  return path.read_bytes()


def test_bad_parquet(tmp_path):
  good = parquet_bytes(tmp_path, GOOD * 100)
  path = tmp_path / "x.parquet"
  for content, code in (
    (good[: len(good) // 2], "bad_table"),
    (good[:-8], "bad_table"),
    (b"PAR1", "bad_table"),
    (b'{"prompt": "a", "completion": "b"}\n', "bad_table"),
    (b"version https://git-lfs.github.com/spec/v1\n", "lfs_pointer"),
    (b"<!DOCTYPE html><html>404", "html_page"),
    (b"", "empty_file"),
  ):
    assert error_of(path, content)[:2] == (code, 1), content[:20]
  damaged = bytearray(good)
  damaged[40:400] = bytes(360)
  code, line, _ = error_of(path, bytes(damaged))
  assert code == "bad_table" and line


def test_a_table_without_rows_or_columns_is_an_error(tmp_path):
  table = pa.Table.from_pylist(GOOD)
  for empty, code in (
    (table.slice(0, 0), "no_records"),
    (pa.table({}), "no_records"),
    (pa.table({"a": [1], "b": ["x"]}), "unknown_format"),
    (pa.table([["a"], ["b"]], names=["prompt", "prompt"]), "duplicate_columns"),
  ):
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(empty, path)
    with pytest.raises(UserError) as e:
      reading.read_demonstrations(str(path))
    assert (e.value.code, e.value.file) == (code, str(path))


def test_a_wrong_type_names_row_and_column(tmp_path):
  rows = [{"prompt": "a", "completion": "b"}] * 3
  path = write_parquet(
    tmp_path / "x.parquet", [*rows, {"prompt": "c", "completion": None}]
  )
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(path)
  assert (e.value.code, e.value.line, e.value.field) == (
    "wrong_type", 4, "completion",
  )  # fmt: skip
  table = pa.table({"prompt": ["a"], "completion": [1.5]})
  pa.parquet.write_table(table, path)
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(path)
  assert (e.value.code, e.value.line, e.value.field) == (
    "wrong_type", 1, "completion",
  )  # fmt: skip


def test_a_table_of_another_name_is_refused(tmp_path):
  content = parquet_bytes(tmp_path, GOOD)
  code, *_ = error_of(tmp_path / "x.jsonl", content)
  assert code == "binary_file"


def test_kinds_of_records_are_those_of_the_json_lines(tmp_path):
  path = write_parquet(tmp_path / "x.parquet", RECORDS["rankings"])
  assert isinstance(reading.read_rankings(path)[0][0], Ranking)
  assert isinstance(reading.read_prompts(path)[0][0], Prompt)
  path = write_csv(tmp_path / "x.csv", RECORDS["messages"])
  assert isinstance(reading.read_demonstrations(path)[0][0], Demonstration)


def test_a_table_from_a_pipe_or_a_directory(tmp_path):
  content = parquet_bytes(tmp_path, GOOD)
  pipe = tmp_path / "pipe.parquet"
  os.mkfifo(pipe)
  writer = threading.Thread(target=lambda: pipe.write_bytes(content))
  writer.start()
  assert len(reading.read_demonstrations(str(pipe))[0]) == len(GOOD)
  writer.join()
  (tmp_path / "spark.parquet").mkdir()
  (tmp_path / "spark.parquet" / "part-0.parquet").write_bytes(content)
  (tmp_path / "spark.parquet" / "_SUCCESS").write_bytes(b"")
  records, _ = reading.read_demonstrations(str(tmp_path / "spark.parquet"))
  assert len(records) == len(GOOD)


def test_a_map_with_a_key_twice_is_an_error(tmp_path):
  pairs = pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))
  path = str(tmp_path / "x.parquet")
  table = pa.table({"prompt": ["a"], "completion": ["b"], "tags": pairs})
  pa.parquet.write_table(table, path)
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(path)
  assert (e.value.code, e.value.file) == ("duplicate_keys", path)
