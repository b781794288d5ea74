"""User errors are short and name the place and the fix."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable

import pytest

from tests.training import results

DEMONSTRATION = {"prompt": "red ba", "completion": "ka", "split": "train"}
RANKING = {
  "prompt": "red ba",
  "completions": ["ka", "ke"],
  "ranks": [1, 2],
  "split": "train",
}


def jsonl(*records):
  """Returns one JSON record per line; strings are lines already."""
  return "".join(
    (r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records
  ).encode()


def without(record, field):
  return {k: v for k, v in record.items() if k != field}


@dataclasses.dataclass(frozen=True)
class Case:
  """A bad source of a stage, and its error."""

  stage: str
  kind: str  # which source is bad
  content: bytes
  line: int | None  # of the fault; None where it is not in one line
  code: str
  field: str | None = None
  name: str = "bad.jsonl"


TEXT = {"text": "ba be bi"}
BAD: dict[str, Case] = {
  "empty file": Case("sft", "demonstrations", b"", 1, "empty_file"),
  "blank file": Case("pretrain", "pretraining", b" \n\n", 1, "empty_file"),
  "truncated gzip": Case(
    "ppo", "prompts", gzip.compress(jsonl(*[RANKING] * 99))[:-9], 100,
    "bad_gzip", name="bad.jsonl.gz",
  ),
  "no gzip at all": Case(
    "pretrain", "pretraining", b"\x1f\x8bnothing", 1, "bad_gzip",
    name="bad.jsonl.gz",
  ),
  "invalid UTF-8": Case(
    "sft", "demonstrations",
    jsonl(DEMONSTRATION) + b'{"prompt": "caf\xe9", "completion": "b"}\n', 2,
    "not_utf8",
  ),
  "a line that is not JSON": Case(
    "reward", "comparisons", jsonl(RANKING, RANKING, "{'prompt': 1}"), 3,
    "bad_json",
  ),
  "a missing field": Case(
    "sft", "demonstrations",
    jsonl(DEMONSTRATION, without(DEMONSTRATION, "completion")), 2,
    "missing_field", "completion",
  ),
  "a wrongly typed field": Case(
    "ppo_ptx", "prompts", jsonl({"prompt": "ba"}, {"prompt": 7}), 2,
    "wrong_type", "prompt",
  ),
  "a text that is a number": Case(
    "ppo_ptx", "pretraining", jsonl(TEXT, {"text": 3.5}), 2, "wrong_type",
    "text",
  ),
  "fewer ranks than completions": Case(
    "reward", "comparisons", jsonl(RANKING, RANKING | {"ranks": [1]}), 2,
    "rank_count", "ranks",
  ),
  "ranks from 0": Case(
    "reward", "comparisons", jsonl(RANKING | {"ranks": [0, 1]}), 1,
    "bad_rank", "ranks[0]",
  ),
  "only ties": Case(
    "reward", "comparisons", jsonl(*[RANKING | {"ranks": [1, 1]}] * 3), 1,
    "nothing_left",
  ),
  "an empty completion": Case(
    "sft", "demonstrations",
    jsonl(DEMONSTRATION, DEMONSTRATION | {"completion": " "}), 2,
    "empty_text", "completion",
  ),
  "only prompts that are too long": Case(
    "ppo", "prompts", jsonl({"prompt": "ba " * 40, "split": "train"}), None,
    "no_training_records", "data.prompts",
  ),
  "records of another kind": Case(
    "reward", "comparisons", jsonl(DEMONSTRATION), 1, "other_kind",
    "completions",
  ),
}  # fmt: skip


def error_of(done):
  """Returns the error; its text has at most three lines and a fix."""
  assert done.status == 2, done.err
  assert "Traceback" not in done.err
  lines = done.err.splitlines()
  (start,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
  error = lines[start:]
  assert len(error) <= 3
  assert all(len(line) <= 300 for line in error)
  assert error[-1].startswith("  fix: ")
  assert len(error[-1]) > len("  fix: ")
  assert done.error is not None
  return done.error


def replaced(flags, **values):
  """Replaces the values of flags, by the last part of their names."""
  unchanged = [
    f
    for f in flags
    if f.removeprefix("--").partition("=")[0].rpartition(".")[2] not in values
  ]
  assert len(unchanged) == len(flags) - len(values)
  names = {
    f.removeprefix("--").partition("=")[0].rpartition(".")[2]: f.partition("=")[
      0
    ]
    for f in flags
  }
  return unchanged + [f"{names[k]}={v}" for k, v in values.items()]


@pytest.mark.parametrize("name", BAD)
def test_bad_record_is_named_with_line_and_fix(name, stages, tmp_path):
  case = BAD[name]
  bad = tmp_path / case.name
  bad.write_bytes(case.content)
  flags = replaced(stages.flags(case.stage), **{case.kind: bad})
  command = [*flags, f"--workdir={tmp_path / 'run'}"]
  error = error_of(stages.run(case.stage, *command))
  assert (error.code, error.field) == (case.code, case.field)
  file = None if case.line is None else str(bad)
  assert (error.file, error.line) == (file, case.line)
  assert not results.snapshot(tmp_path / "run")


def test_corrected_file_works_with_the_same_command(stages, tmp_path):
  data = tmp_path / "data.jsonl"
  good = (stages.data / "demonstrations.jsonl").read_bytes()
  data.write_bytes(good[:-20])
  flags = replaced(stages.flags("sft"), demonstrations=data)
  command = [*flags, f"--workdir={tmp_path / 'run'}"]
  error = error_of(stages.run("sft", *command))
  assert (error.file, error.line) == (str(data), 30)
  data.write_bytes(good)
  assert stages.run("sft", *command).status == 0
  assert results.metrics(tmp_path / "run") == results.metrics(stages["sft"])


def test_corrected_path_works_in_the_same_workdir(stages, tmp_path):
  """A run that has read nothing does not claim the workdir."""
  flags = stages.flags("sft")
  wrong = replaced(flags, demonstrations=stages.data / "demonstration.jsonl")
  error = error_of(stages.run("sft", *wrong, f"--workdir={tmp_path / 'run'}"))
  assert error.code == "no_such_file"
  assert str(stages.data / "demonstrations.jsonl") in error.fix
  done = stages.run(
    "sft", *flags, "--sft.epochs=1", f"--workdir={tmp_path / 'run'}"
  )
  assert done.status == 0, done.err


@pytest.mark.parametrize(
  ("stage", "kind", "bad", "cause"),
  [
    ("ppo", "prompts", {"prompt": "ba " * 40}, "prompts over the token limit"),
    (
      "reward",
      "comparisons",
      RANKING | {"ranks": [2, 2]},
      "rankings with only ties",
    ),
    (
      "sft",
      "demonstrations",
      {"prompt": "write to me@corp.io", "completion": "ba"},
      "records with personal information (e-mail address)",
    ),
  ],
)
def test_skipped_records_are_counted_and_others_used(
  stage, kind, bad, cause, stages, tmp_path
):
  data = tmp_path / "data.jsonl"
  good = (stages.data / f"{kind}.jsonl").read_bytes()
  data.write_bytes(good + jsonl(bad | {"split": "train"}))
  flags = replaced(stages.flags(stage), **{kind: data})
  done = stages.run(stage, *flags, f"--workdir={tmp_path / 'run'}")
  assert done.status == 0, done.err
  (line,) = (x for x in done.err.splitlines() if x.startswith("data.jsonl "))
  assert f", 1 dropped (1 {cause})" in line
  assert results.metrics(tmp_path / "run") == results.metrics(stages[stage])


def unfinished(path):
  (path / "complete.json").unlink()


def model_lost(path):
  shutil.rmtree(path / "model")


def model_damaged(path):
  shutil.rmtree(path / "model" / "state")


def nothing(path):
  shutil.rmtree(path)


# Stage, stage to start from, how it is damaged, code of the error.
STARTS: dict[str, tuple[str, str, Callable | None, str]] = {
  "no such directory": ("ppo", "sft", nothing, "no_directory"),
  "unfinished": ("ppo", "sft", unfinished, "unfinished"),
  "no stage": ("sft", "pretrain", model_lost, "no_stage"),
  "damaged": ("sft", "pretrain", model_damaged, "unreadable_checkpoint"),
  "a reward model as policy": (
    "ppo",
    "reward",
    None,
    "other_kind",
  ),
}


@pytest.mark.parametrize("name", STARTS)
def test_unusable_start_stage_is_an_error(name, stages, tmp_path):
  stage, start, spoil, code = STARTS[name]
  path = tmp_path / "start"
  shutil.copytree(stages[start], path)
  if spoil is not None:
    spoil(path)
  flags = replaced(stages.flags(stage), init_from=path)
  error = error_of(stages.run(stage, *flags, f"--workdir={tmp_path / 'run'}"))
  assert error.code == code
  assert error.file is not None and error.file.startswith(str(path))
  assert not results.snapshot(tmp_path / "run")


def test_policy_is_not_a_reward_model(stages, tmp_path):
  flags = replaced(stages.flags("ppo"), reward_model=stages["sft"])
  error = error_of(stages.run("ppo", *flags, f"--workdir={tmp_path}"))
  assert (error.code, error.field) == ("other_kind", "ppo.reward_model")


def test_workdir_of_another_experiment_is_refused(stages, tmp_path):
  shutil.copytree(stages["sft"], tmp_path / "run")
  before = results.snapshot(tmp_path / "run")
  error = error_of(
    stages.run(
      "policy_init", *stages.flags("policy_init"), f"--workdir={tmp_path}/run"
    )
  )
  assert (error.code, error.file) == ("other_experiment", f"{tmp_path}/run")
  assert results.snapshot(tmp_path / "run") == before


def test_workdir_with_another_config_is_refused(stages, tmp_path):
  shutil.copytree(stages["sft"], tmp_path / "run")
  before = results.snapshot(tmp_path / "run")
  flags = [*stages.flags("sft"), "--sft.epochs=9", f"--workdir={tmp_path}/run"]
  error = error_of(stages.run("sft", *flags))
  assert error.code == "config_differs"
  assert "--sft.epochs=8" in error.problem and "9" in error.problem
  assert results.snapshot(tmp_path / "run") == before


def test_workdir_that_is_a_file_is_refused(stages, tmp_path):
  (tmp_path / "run").write_text("mine")
  flags = [*stages.flags("sft"), f"--workdir={tmp_path / 'run'}"]
  assert error_of(stages.run("sft", *flags)).file == str(tmp_path / "run")
  assert (tmp_path / "run").read_text() == "mine"


TOKENIZERS = {
  "missing.model": None,
  "broken.model": b"\x00nothing",
  "tokenizer.json": b'{"a": 1}',
  "vocabulary.xyz": b"ba be",
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_unknown_tokenizer_file_is_refused(name, stages, tmp_path):
  content = TOKENIZERS[name]
  if content is not None:
    (tmp_path / name).write_bytes(content)
  flags = [*stages.flags("pretrain"), f"--tokenizer.path={tmp_path / name}"]
  error = error_of(
    stages.run("pretrain", *flags, f"--workdir={tmp_path / 'run'}")
  )
  assert error.file == str(tmp_path / name)
  assert ".model" in error.fix
  assert not results.snapshot(tmp_path / "run")


SETTINGS = {
  "pretrain": [
    ("--pretrain.microbatch=3", "pretrain.microbatch"),
    ("--pretrain.sequence=25", "pretrain.sequence"),
    ("--model.vocab_size=20", "model.vocab_size"),
    ("--mesh.data=3", "mesh"),
  ],
  "sft": [("--data.max_response_tokens=15", "data.max_response_tokens")],
  "reward": [
    ("--reward.batch_size=8 --reward.microbatch=3", "reward.microbatch")
  ],
  "ppo_ptx": [
    ("--ppo.minibatch=3", "ppo.minibatch"),
    ("--ppo.microbatch=3", "ppo.microbatch"),
    ("--ppo.ptx_microbatch=5", "ppo.ptx_microbatch"),
    ("--ppo.ptx_sequence=25", "ppo.ptx_sequence"),
    ("--ppo.top_k=5", "--ppo.top_k"),
  ],
}


@pytest.mark.parametrize(
  ("stage", "changes", "field"),
  [(stage, *pair) for stage, pairs in SETTINGS.items() for pair in pairs],
)
def test_inconsistent_settings_are_refused(
  stage, changes, field, stages, tmp_path
):
  done = stages.run(
    stage, *stages.flags(stage), *changes.split(), f"--workdir={tmp_path}/run"
  )
  assert error_of(done).field == field
  assert not results.snapshot(tmp_path / "run")


def test_packed_rows_allow_any_microbatch(stages, tmp_path):
  """The user does not know the number of rows of a step."""
  flags = [*stages.flags("policy_init"), "--sft.microbatch=3"]
  done = stages.run("policy_init", *flags, f"--workdir={tmp_path}")
  assert done.status == 0, done.err


def test_different_tokenizers_are_refused(stages, tmp_path):
  other = tmp_path / "other"
  done = stages.run(
    "pretrain",
    *stages.flags("pretrain"),
    "--tokenizer.kind=bpe",
    "--tokenizer.vocab_size=330",
    "--pretrain.steps=1",
    f"--workdir={other}",
  )
  assert done.status == 0, done.err
  flags = replaced(stages.flags("ppo"), init_from=other)
  error = error_of(stages.run("ppo", *flags, f"--workdir={tmp_path / 'run'}"))
  assert error.code == "other_tokenizer"
  assert not results.snapshot(tmp_path / "run")
