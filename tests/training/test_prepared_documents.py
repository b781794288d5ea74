"""Stages that read prepared documents, and those that read their texts."""

import shutil

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers
from instructgpt_jax.data.prepared import command, manifest
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import documents
from tests.training import results
from tests.training.test_bad_input import error_of, replaced
from tests.training.test_processes import finish, start

LENGTH = 24


@pytest.fixture(scope="module")
def prepared(stages, once):
  """Returns a directory of the documents of all stages."""

  def fill(path):
    flags = [
      str(stages.data / "pretraining.jsonl"),
      f"--to={path / 'documents'}",
      f"--tokenizer={stages['pretrain']}",
      f"--length={LENGTH}",
      "--processes=1",
    ]
    assert command.main(flags) == 0

  return f"{once('prepared documents', fill)}/documents"


def flags_of(stages, name, prepared):
  return replaced(stages.flags(name), pretraining=prepared)


@pytest.mark.parametrize("name", ["pretrain", "policy_init", "ppo_ptx"])
def test_a_stage_learns_the_same_from_prepared_documents(
  name, stages, prepared, tmp_path
):
  flags = flags_of(stages, name, prepared)
  done = stages.run(name, *flags, f"--workdir={tmp_path / 'run'}")
  assert done.status == 0, done.err
  actual, expected = tmp_path / "run", stages[name]
  a, b = (results.arrays(path / "model") for path in (actual, expected))
  assert a.keys() == b.keys()
  for key in b:
    assert (a[key] == b[key]).all(), key
  # The share of tokens is that of the mean row.
  for row, other in zip(
    results.metrics(actual), results.metrics(expected), strict=True
  ):
    share = row.pop("pretraining_token_share", None)
    other_share = other.pop("pretraining_token_share", None)
    assert share == pytest.approx(other_share, abs=0.05)
    assert row == other


def test_a_run_takes_the_tokenizer_of_prepared_documents(
  stages, prepared, tmp_path
):
  flags = flags_of(stages, "pretrain", prepared)
  flags = [f for f in flags if not f.startswith("--tokenizer.")]
  done = stages.run("pretrain", *flags, f"--workdir={tmp_path / 'run'}")
  assert done.status == 0, done.err
  a, b = (
    results.arrays(path / "model")
    for path in (tmp_path / "run", stages["pretrain"])
  )
  assert all((a[key] == b[key]).all() for key in b)


def test_a_killed_run_resumes_bit_for_bit(stages, prepared, tmp_path):
  flags = flags_of(stages, "pretrain", prepared)
  straight, run = (f"--workdir={tmp_path / n}" for n in ("straight", "run"))
  assert stages.run("pretrain", *flags, straight).status == 0
  child = stages.server.start("experiments.pretrain", *flags, run)
  total = results.lines(tmp_path / "straight")
  assert results.kill_after(child, tmp_path / "run", total // 2).status == -9
  done = stages.run("pretrain", *flags, run)
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_two_processes_train_as_one(stages, prepared, tmp_path):
  flags = flags_of(stages, "pretrain", prepared)
  one, two = tmp_path / "one", tmp_path / "two"
  assert stages.run("pretrain", *flags, f"--workdir={one}").status == 0
  several = [*flags, "--mesh.data=2", f"--workdir={two}"]
  finish(start(stages.server, 2, "experiments.pretrain", *several))
  for a, b in zip(results.metrics(one), results.metrics(two), strict=True):
    for key in ("loss", "valid_loss"):
      if key in a:
        assert b[key] == pytest.approx(a[key], rel=1e-4)


def test_other_documents_are_refused_on_resume(stages, prepared, tmp_path):
  path = tmp_path / "documents"
  shutil.copytree(prepared, path)
  flags = flags_of(stages, "pretrain", path)
  run = f"--workdir={tmp_path / 'run'}"
  stopped = stages.server.run(
    "tests.training.at_step", "3", "sigterm", "pretrain", *flags, run
  )
  assert stopped.status == 0, stopped.err
  shutil.rmtree(path)
  lines = (stages.data / "pretraining.jsonl").read_text().splitlines(True)
  (tmp_path / "other.jsonl").write_text("".join(lines[1:]))
  other = [str(tmp_path / "other.jsonl"), f"--to={path}", "--processes=1"]
  other += [f"--tokenizer={stages['pretrain']}", f"--length={LENGTH}"]
  assert command.main(other) == 0
  error = error_of(stages.run("pretrain", *flags, run))
  assert (error.code, error.field) == ("data_changed", "data.pretraining")


# Errors.


def open_rows(stages, prepared, length=LENGTH, **changes):
  opened = documents.open_documents(
    configs.Data(pretraining=str(prepared), **changes), tell=False
  )
  return opened.pack(stages, length).rows


@pytest.fixture(scope="module")
def tokenizer(prepared):
  return tokenizers.load_tokenizer(f"{prepared}/tokenizer")


def test_another_row_length_is_refused(prepared, tokenizer):
  with pytest.raises(UserError) as e:
    open_rows(tokenizer, prepared, length=12)
  assert e.value.code == "other_length"
  assert f"--length={LENGTH},12" in e.value.fix


def test_another_tokenizer_is_refused(prepared, tokenizer):
  texts = ["bam bem", "bim bom"] * 20
  settings = configs.Tokenizer(vocab_size=300)
  other = tokenizers.train_tokenizer(texts, settings)
  with pytest.raises(UserError) as e:
    open_rows(other, prepared)
  assert e.value.code == "other_tokenizer"


def test_other_shares_of_the_splits_are_refused(prepared, tokenizer):
  changes = {"valid_fraction": 0.2}
  with pytest.raises(UserError) as e:
    open_rows(tokenizer, prepared, explicit="valid_fraction", **changes)
  assert e.value.code == "other_settings"
  # A preset's share is not the user's.
  assert open_rows(tokenizer, prepared, **changes).count


def test_an_unfinished_preparation_is_refused(prepared, tokenizer, tmp_path):
  unfinished = tmp_path / "unfinished"
  shutil.copytree(prepared, unfinished)
  (unfinished / "prepared.json").unlink()
  with pytest.raises(UserError) as e:
    open_rows(tokenizer, unfinished)
  assert e.value.code == "unfinished_preparation"


def test_documents_are_held_out_of_prepared_ones(prepared, tokenizer):
  opened = documents.open_documents(
    configs.Data(pretraining=prepared), tell=False
  )
  split = documents.held_out_split(opened, "test")
  assert split == "valid"
  rows = opened.split_rows(split, tokenizer, LENGTH, 3)
  assert len(rows["tokens"]) == 3
  counts = manifest.read(prepared).documents
  assert opened.counts["valid"] == counts["valid"]


def test_a_large_corpus_should_be_prepared(tmp_path, monkeypatch, capsys):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "bam"}\n' * 50)
  data = configs.Data(pretraining=str(path))
  documents.open_documents(data)
  assert "prepare" not in capsys.readouterr().err
  monkeypatch.setattr(documents, "LARGE_BYTES", 100)
  documents.open_documents(data)
  line = capsys.readouterr().err
  assert "warning" in line and f"prepare {path}" in line
  monkeypatch.setattr(documents, "_LEAST_MEMORY_PER_BYTE", 10**12)
  with pytest.raises(UserError) as e:
    documents.open_documents(data)
  assert e.value.code == "corpus_too_large"
