"""Prepared documents have the rows of documents that are packed in memory."""

import collections
import gzip
import json
import multiprocessing
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import (
  batch_source,
  batching,
  encoding,
  packing,
  reading,
  tokenizers,
)
from instructgpt_jax.data.curation import splits
from instructgpt_jax.data.prepared import (
  command,
  layout,
  manifest,
  prepare,
  unit_work,
  units,
)
from instructgpt_jax.data.prepared import directory as directory_lib
from instructgpt_jax.data.prepared.rows import PreparedRows
from instructgpt_jax.data.reading import file_parts
from instructgpt_jax.data.records import SPLITS
from instructgpt_jax.errors import UserError

WORDS = [f"{a}{b}{c}" for a in "bdgkl" for b in "aeiou" for c in "mnrst"]
DATA = configs.Data()


def text(rng, most=60):
  return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def write_lines(path, count, seed=0, **fields):
  rng = random.Random(seed)
  lines = [json.dumps({"text": text(rng), **fields}) for _ in range(count)]
  path.write_text("\n".join(lines) + "\n")
  return path


@pytest.fixture(scope="module")
def tokenizer_path(once):
  rng = random.Random(1)
  texts = [text(rng) for _ in range(300)]
  settings = configs.Tokenizer(vocab_size=330)
  return once(
    "prepared tokenizer",
    lambda path: tokenizers.train_tokenizer(texts, settings, path),
  )


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
  return tokenizers.load_tokenizer(tokenizer_path)


@pytest.fixture
def prepared(tmp_path, tokenizer_path):
  """Returns a function that prepares paths: (directory, manifest)."""

  def run(*paths, to="prepared", log=lambda line: None, **changes):
    settings = {"lengths": (16, 64), "data": DATA, **changes}
    settings.setdefault("tokenizer_path", tokenizer_path)
    directory = tmp_path / to
    preparation = prepare.Preparation(
      paths=[str(p) for p in paths], directory=str(directory), **settings
    )
    return directory, prepare.prepare(preparation, log)

  return run


def packed_in_memory(path, tokenizer, length, split, data=DATA):
  documents, _ = reading.read_documents(str(path))
  texts = [d.text for d in splits.split_documents(documents, data)[split]]
  return packing.pack_documents(
    encoding.encode_documents(texts, tokenizer),
    length,
    eos_id=tokenizer.document_end_id,
    pad_id=tokenizer.pad_id,
  )


def read_rows(directory, length, split, pad_id):
  result = manifest.read(directory)
  rows = PreparedRows(directory, result, length, split, pad_id)
  return rows.take(np.arange(rows.count))


def assert_equal_rows(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    assert actual[name].dtype == value.dtype, name
    np.testing.assert_array_equal(actual[name], value, name)


def documents_of(rows):
  """Counts the segments of rows as tuples of token ids."""
  counts = collections.Counter()
  for tokens, segments in zip(rows["tokens"], rows["segments"], strict=True):
    for number in range(1, segments.max() + 1):
      counts[tuple(tokens[segments == number].tolist())] += 1
  return counts


def write_corpus(directory):
  directory.mkdir()
  write_lines(directory / "a.jsonl", 60)
  rng = random.Random(3)
  book = "\n\n".join(text(rng) for _ in range(700))
  (directory / "book.txt").write_text(book)
  with gzip.open(directory / "c.jsonl.gz", "wt") as file:
    file.write('{"text": "ü \\u2028 bam"}\n{"text": "b"}\n')
  (directory / "d.jsonl").write_text('{"prompt": "bam", "completion": "b"}\n')
  return directory


@pytest.mark.parametrize("length", [16, 64, 1000])
def test_rows_equal_those_packed_in_memory(
  length, tmp_path, prepared, tokenizer
):
  corpus = write_corpus(tmp_path / "corpus")
  directory, result = prepared(corpus, lengths=(length,))
  for split in SPLITS:
    expected = packed_in_memory(corpus, tokenizer, length, split)
    assert len(expected["tokens"]) == result.rows(length, split) > 0
    actual = read_rows(directory, length, split, tokenizer.pad_id)
    assert_equal_rows(actual, expected)
    assert result.tokens[split] == (expected["segments"] > 0).sum()
    loss_tokens = sum(s.loss_tokens for s in result.shards[length][split])
    assert loss_tokens == expected["weights"].sum()
  assert result.dropped["skipped"]


def test_splits_by_file_name_are_those_in_memory(tmp_path, prepared, tokenizer):
  corpus = tmp_path / "corpus"
  corpus.mkdir()
  write_lines(corpus / "train.jsonl", 20)
  write_lines(corpus / "valid.jsonl", 9, seed=1)
  write_lines(corpus / "more_train.jsonl", 5, seed=2, split="test")
  directory, result = prepared(corpus)
  assert result.documents == {"train": 20, "valid": 9, "test": 5}
  for split in SPLITS:
    expected = packed_in_memory(corpus, tokenizer, 64, split)
    actual = read_rows(directory, 64, split, tokenizer.pad_id)
    assert_equal_rows(actual, expected)


def test_a_file_name_counts_only_beside_others_with_documents(
  tmp_path, prepared
):
  corpus = tmp_path / "corpus"
  corpus.mkdir()
  write_lines(corpus / "train.jsonl", 60)
  (corpus / "test.jsonl").write_text('{"prompt": "bam"}\n')
  _, result = prepared(corpus)
  # As in memory: all documents are in one file, so their hashes decide.
  assert result.documents["valid"] and result.documents["test"]


@pytest.mark.parametrize("processes", [1, 2])
def test_units_hold_every_document_once(
  processes, tmp_path, prepared, tokenizer
):
  corpus = tmp_path / "corpus"
  corpus.mkdir()
  large = write_lines(corpus / "large.jsonl", 150)
  for i in range(4):
    write_lines(corpus / f"small{i}.jsonl", 3, seed=i + 10)
  length = 400  # No document is cut.
  directory, result = prepared(
    corpus, lengths=(length,), unit_bytes=4000, processes=processes
  )
  assert len(result.shards[length]["train"]) > large.stat().st_size // 8000
  for split in SPLITS:
    actual = read_rows(directory, length, split, tokenizer.pad_id)
    expected = packed_in_memory(corpus, tokenizer, length, split)
    assert documents_of(actual) == documents_of(expected)


def test_a_large_text_is_cut_at_paragraphs(tmp_path):
  rng = random.Random(0)
  paragraphs = [text(rng) for _ in range(300)]
  path = tmp_path / "book.txt"
  path.write_text("\n\n".join(paragraphs))
  parts = file_parts.cuts(str(path), 2000)
  texts = [
    file_parts.read_documents(str(path), *part).records[0].text
    for part in parts
  ]
  assert len(texts) > 5
  assert "".join(texts) == path.read_text()
  assert all(part.endswith("\n\n") for part in texts[:-1])


def test_a_text_without_lines_is_cut_at_its_end(tmp_path):
  path = tmp_path / "long.txt"
  path.write_text("ü" * 1000)
  assert file_parts.cuts(str(path), 300) == [(0, 2000)]


def test_errors_of_a_part_have_the_line_of_the_file(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 100)
  lines = path.read_text().splitlines()
  for bad, code in (('{"text": ', "bad_json"), ('{"text": ""}', "empty_text")):
    path.write_text("\n".join([*lines[:90], bad, *lines[90:]]))
    with pytest.raises(UserError) as e:
      prepared(path, unit_bytes=3000, to=code)
    assert (e.value.code, e.value.line) == (code, 91)


def test_a_source_without_most_of_its_records_is_refused(tmp_path, prepared):
  corpus = tmp_path / "corpus"
  corpus.mkdir()
  write_lines(corpus / "a.jsonl", 30)
  write_lines(corpus / "b.jsonl", 50, prompt="bam", completion="b")
  with pytest.raises(UserError) as e:
    prepared(corpus, unit_bytes=2000)
  error = e.value
  assert (error.code, error.line) == ("most_dropped", 1)
  assert error.file == str(corpus / "b.jsonl")
  data = configs.Data(max_dropped=1)
  _, result = prepared(corpus, unit_bytes=2000, data=data, to="all")
  assert sum(result.dropped["skipped"].values()) == 50


# Interruptions.


def test_an_interrupted_preparation_continues(tmp_path, prepared, monkeypatch):
  path = write_lines(tmp_path / "a.jsonl", 100)
  _, whole = prepared(path, unit_bytes=2000, to="whole")
  numbers = []
  work = unit_work.prepare_unit

  def interrupted(number, *args):
    if len(numbers) == 3:
      raise KeyboardInterrupt
    numbers.append(number)
    return work(number, *args)

  monkeypatch.setattr(unit_work, "prepare_unit", interrupted)
  with pytest.raises(KeyboardInterrupt):
    prepared(path, unit_bytes=2000)
  directory = tmp_path / "prepared"
  assert layout.is_prepared(directory)
  with pytest.raises(UserError) as e:
    manifest.read(directory)
  assert e.value.code == "unfinished_preparation"

  # One finished shard is lost, and another is cut short.
  shards = sorted((directory / layout.ROWS).iterdir())
  shards[0].unlink()
  monkeypatch.setattr(unit_work, "prepare_unit", work)
  lines = []
  _, result = prepared(path, unit_bytes=2000, log=lines.append)
  assert lines[0].startswith("continuing: 2 of")
  assert result == whole


def test_a_killed_worker_is_an_error_and_its_work_is_done_again(
  tmp_path, prepared
):
  path = write_lines(tmp_path / "a.jsonl", 700)
  _, whole = prepared(path, unit_bytes=4000, to="whole")
  directory = tmp_path / "prepared"

  def kill():
    finished = directory / layout.UNITS
    while not (finished.is_dir() and any(finished.iterdir())):
      time.sleep(0.001)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

  killer = threading.Thread(target=kill)
  killer.start()
  with pytest.raises(UserError) as e:
    prepared(path, unit_bytes=4000, processes=2)
  killer.join()
  assert e.value.code == "worker_died"
  assert not (directory / layout.MANIFEST).exists()
  _, result = prepared(path, unit_bytes=4000)
  assert result == whole


def test_an_error_in_a_worker_is_the_users_error(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 50)
  with path.open("a") as file:
    file.write("{\n")
  with pytest.raises(UserError) as e:
    prepared(path, unit_bytes=2000, processes=2)
  assert (e.value.code, e.value.line) == ("bad_json", 51)


def test_a_finished_preparation_is_not_repeated(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 20)
  directory, first = prepared(path)
  before = (directory / layout.MANIFEST).stat().st_mtime_ns
  _, second = prepared(path)
  assert first == second
  assert (directory / layout.MANIFEST).stat().st_mtime_ns == before


# Errors.


def test_another_preparation_in_the_directory_is_refused(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 20)
  prepared(path)
  write_lines(path, 21)
  for changes in ({}, {"lengths": (16,)}):
    with pytest.raises(UserError) as e:
      prepared(path, **changes)
    assert e.value.code == "other_preparation"
  other = tmp_path / "other"
  other.mkdir()
  (other / "notes").write_text("mine")
  with pytest.raises(UserError) as e:
    prepared(path, to="other")
  assert e.value.code == "output_exists"
  assert [p.name for p in other.iterdir()] == ["notes"]


def test_a_directory_in_its_source_is_refused(tmp_path, prepared):
  write_lines(tmp_path / "a.jsonl", 20)
  for to in ("prepared", "."):
    with pytest.raises(UserError) as e:
      prepared(tmp_path, to=to)
    assert e.value.code == "output_in_source"
  assert not (tmp_path / "prepared").exists()


def test_two_preparations_at_once_are_refused(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 20)
  directory, _ = prepared(path)
  with directory_lib.lock(directory), pytest.raises(UserError) as e:
    prepared(path)
  assert e.value.code == "preparation_running"


def truncate(path):
  path.write_bytes(path.read_bytes()[:-10])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, os.unlink])
def test_a_truncated_or_missing_shard_is_refused_at_the_start(
  damage, tmp_path, prepared
):
  directory, result = prepared(write_lines(tmp_path / "a.jsonl", 20))
  path = directory / result.shards[64]["valid"][0].file
  damage(path)
  with pytest.raises(UserError) as e:
    manifest.read(directory)
  assert (e.value.code, e.value.file) == ("damaged_shard", str(path))


def test_changed_bytes_are_detected(tmp_path, prepared, tokenizer):
  directory, result = prepared(write_lines(tmp_path / "a.jsonl", 90))
  path = directory / result.shards[64]["train"][0].file
  flip(path)
  for check in (
    lambda: manifest.verify(directory),
    lambda: read_rows(directory, 64, "train", tokenizer.pad_id),
  ):
    with pytest.raises(UserError) as e:
      check()
    assert (e.value.code, e.value.file) == ("damaged_shard", str(path))


@pytest.mark.parametrize(
  ("change", "code"),
  [
    ({"version": 2}, "other_version"),
    ({"format": "other"}, "damaged_manifest"),
    ({"token_bytes": 4}, "damaged_manifest"),
    (None, "damaged_manifest"),
  ],
)
def test_other_manifests_are_refused(change, code, tmp_path, prepared):
  directory, _ = prepared(write_lines(tmp_path / "a.jsonl", 20))
  path = directory / layout.MANIFEST
  content = json.loads(path.read_text())
  text = json.dumps(content | change) if change else path.read_text()[:-9]
  path.write_text(text)
  with pytest.raises(UserError) as e:
    manifest.read(directory)
  assert (e.value.code, e.value.file) == (code, str(path))


def test_sources_that_cannot_be_prepared_are_refused(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 20)
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  for source, code in (
    (
      f"{path}:0.5,{write_lines(tmp_path / 'b.jsonl', 9)}:1",
      "weighted_documents",
    ),
    (pipe, "pipe"),
    (tmp_path / "none.jsonl", "no_such_file"),
  ):
    with pytest.raises(UserError) as e:
      prepared(source)
    assert e.value.code == code
  for split in ("valid", "test"):
    held_out = write_lines(tmp_path / f"{split}.jsonl", 5, split=split)
    with pytest.raises(UserError) as e:
      prepared(held_out, to=split)
    assert e.value.code == "no_training_records"


def test_prepared_documents_are_no_source_of_records(tmp_path, prepared):
  path = write_lines(tmp_path / "a.jsonl", 20)
  directory, _ = prepared(path)
  for spec in (f"{directory},{path}", f"{directory}:1,{path}:2"):
    with pytest.raises(UserError) as e:
      reading.read_documents(spec)
    assert e.value.code == "prepared_documents"
  with pytest.raises(UserError) as e:
    reading.read_prompts(str(directory))
  assert e.value.code == "prepared_documents"
  # Their manifest stands for them where files are listed.
  (file,) = reading.expand(str(directory))
  assert file == str(directory / layout.MANIFEST)


# Batches.


@pytest.mark.parametrize("permuted", [True, False])
def test_an_epoch_takes_every_row_once_on_all_processes(
  permuted, tmp_path, prepared, tokenizer, monkeypatch
):
  if not permuted:  # The order of more rows than fit into memory.
    monkeypatch.setattr(batch_source, "_MAX_PERMUTED", 10)
  path = write_lines(tmp_path / "a.jsonl", 200)
  directory, result = prepared(path, unit_bytes=3000)
  count = result.rows(16, "train")
  rows = PreparedRows(directory, result, 16, "train", tokenizer.pad_id)
  size = 8
  epoch = -(-count // size)

  def batches(index, number):
    spec = batching.BatchSpec(
      batch_size=size, seed=3, epochs=2, shard_index=index, shard_count=number
    )
    return list(batching.language_batches(rows, spec, pad_id=tokenizer.pad_id))

  whole = batches(0, 1)
  halves = [batches(i, 2) for i in range(2)]
  for a, *parts in zip(whole, *halves, strict=True):
    joined = np.concatenate([part.tokens for part in parts])
    np.testing.assert_array_equal(a.tokens, joined)
  tokens = np.concatenate([batch.tokens for batch in whole])[: 2 * count]
  expected = collections.Counter(
    map(bytes, read_rows(directory, 16, "train", tokenizer.pad_id)["tokens"])
  )
  first, second = tokens[:count], tokens[count:]
  assert collections.Counter(map(bytes, first)) == expected
  assert collections.Counter(map(bytes, second)) == expected
  assert (first != second).any()
  assert len(whole) <= 2 * epoch


def test_each_process_reads_its_own_rows_only(
  tmp_path, prepared, tokenizer, monkeypatch
):
  path = write_lines(tmp_path / "a.jsonl", 100)
  directory, result = prepared(path)
  rows = PreparedRows(directory, result, 16, "train", tokenizer.pad_id)
  taken = []
  take = rows.take
  monkeypatch.setattr(rows, "take", lambda i: taken.append(i) or take(i))
  used = []
  for index in range(2):
    taken.clear()
    spec = batching.BatchSpec(
      batch_size=4, epochs=1, shard_index=index, shard_count=2
    )
    list(batching.language_batches(rows, spec, pad_id=tokenizer.pad_id))
    used.append(np.concatenate(taken).tolist())
  assert sorted(used[0] + used[1]) == list(range(rows.count))


def test_a_position_is_exact(tmp_path, prepared, tokenizer):
  path = write_lines(tmp_path / "a.jsonl", 100)
  directory, result = prepared(path)
  rows = PreparedRows(directory, result, 16, "train", tokenizer.pad_id)
  spec = batching.BatchSpec(batch_size=4, seed=1)
  first, second = (
    batching.language_batches(rows, spec, pad_id=tokenizer.pad_id)
    for _ in range(2)
  )
  for _ in range(7):
    next(first)
  second.set_state(json.loads(json.dumps(first.get_state())))
  for _ in range(5):
    np.testing.assert_array_equal(next(first).tokens, next(second).tokens)


def test_more_shards_than_may_be_open_are_read(
  tmp_path, prepared, tokenizer, monkeypatch
):
  from instructgpt_jax.data.prepared import shards

  path = write_lines(tmp_path / "a.jsonl", 100)
  directory, result = prepared(path, unit_bytes=2000)
  rows = PreparedRows(directory, result, 16, "train", tokenizer.pad_id)
  indices = np.random.RandomState(0).permutation(rows.count)
  expected = rows.take(indices)
  monkeypatch.setattr(shards, "_MAX_OPEN", 2)
  few = PreparedRows(directory, result, 16, "train", tokenizer.pad_id)
  assert_equal_rows(few.take(indices), expected)


# The command.


def run_command(*flags):
  return command.main([str(flag) for flag in flags])


def test_the_command_prepares_and_verifies(
  tmp_path, capsys, tokenizer_path, tokenizer
):
  path = write_lines(tmp_path / "a.jsonl", 40)
  to = tmp_path / "prepared"
  flags = (
    path,
    f"--to={to}",
    "--length=64,16",
    f"--tokenizer={tokenizer_path}",
  )
  assert run_command(*flags, "--data.valid_fraction=0", "--processes=1") == 0
  assert f"--data.pretraining={to}" in capsys.readouterr().out
  result = manifest.read(to)
  assert list(result.shards) == [16, 64]
  assert result.documents["valid"] == 0
  data = configs.Data(valid_fraction=0)
  expected = packed_in_memory(path, tokenizer, 16, "train", data)
  actual = read_rows(to, 16, "train", tokenizer.pad_id)
  assert_equal_rows(actual, expected)
  assert run_command("--verify", f"--to={to}") == 0
  flip(to / result.shards[16]["train"][0].file)
  assert run_command("--verify", f"--to={to}") == 2
  assert capsys.readouterr().err.startswith("error: ")


def test_a_preset_gives_the_lengths_and_the_tokenizer(tmp_path):
  path = write_lines(tmp_path / "a.jsonl", 300)
  to = tmp_path / "prepared"
  flags = (path, f"--to={to}", "--preset=tiny", "--vocab_size=340")
  assert run_command(*flags, "--processes=1") == 0
  result = manifest.read(to)
  assert list(result.shards) == [128, 256]
  documents, _ = reading.read_documents(str(path))
  texts = [d.text for d in splits.split_documents(documents, DATA)["train"]]
  expected = tokenizers.train_tokenizer(
    texts, configs.Tokenizer(vocab_size=340)
  )
  assert tokenizers.load_tokenizer(to / "tokenizer").files == expected.files


@pytest.mark.parametrize(
  "flags", [["--length=a"], ["--length=1"], [], ["--length=9", "--processes=0"]]
)
def test_bad_flags_are_refused(flags, tmp_path, capsys):
  path = write_lines(tmp_path / "a.jsonl", 20)
  to = tmp_path / "prepared"
  assert run_command(path, f"--to={to}", *flags) == 2
  assert "fix: " in capsys.readouterr().err
  assert not to.exists()


def test_units_have_about_the_same_size(tmp_path):
  corpus = tmp_path / "corpus"
  corpus.mkdir()
  for i in range(30):
    write_lines(corpus / f"{i:02d}.jsonl", 5, seed=i)
  plan = units.plan([str(corpus)], 5000)
  sizes = [sum(os.path.getsize(p.path) for p in unit) for unit in plan.units]
  assert [p.path for unit in plan.units for p in unit] == [
    path for path, _, _ in plan.files
  ]
  assert all(size >= 5000 for size in sizes[:-1])
  assert max(sizes) < 7000
