"""Stages that read prepared records, and those that read their files."""

import json
import pathlib
import shutil

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers
from instructgpt_jax.data.prepared import command, layout
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import inputs, rankings
from tests.training import results, toy
from tests.training.test_bad_input import error_of, replaced

KINDS = ("demonstrations", "comparisons", "prompts")


def prepare(path, sources, tokenizer):
  flags = [f"--data.{kind}={sources / kind}.jsonl" for kind in KINDS]
  flags += [f"--to={path}", f"--tokenizer={tokenizer}", "--preset=world"]
  flags += [f for f in toy.MODEL if f.startswith("--data.")]
  assert command.main(flags) == 0


@pytest.fixture(scope="module")
def sources(stages, once):
  """Returns the directory of sources without a prompt in common.

  Stages that read one of them alone then have the splits of all.
  """

  def fill(path):
    for kind, colour in zip(KINDS, toy.COLOURS, strict=False):
      lines = (stages.data / f"{kind}.jsonl").read_text().splitlines()
      records = [json.loads(line) for line in lines]
      for record in records:
        words = record["prompt"].split()[1:]
        record["prompt"] = " ".join([colour, *words])
      toy.write_lines(path / f"{kind}.jsonl", records)

  return once("sources of prepared records", fill)


@pytest.fixture(scope="module")
def prepared(stages, sources, once):
  def fill(path):
    prepare(path / "records", pathlib.Path(sources), stages["pretrain"])

  return f"{once('prepared records', fill)}/records"


def flags_of(stages, name, path):
  """Returns a stage's flags with other sources of records.

  Args:
    stages: the stages.
    name: name of the stage.
    path: kind → path.
  """
  kinds = [kind for kind in toy.READS[name] if kind in KINDS]
  return replaced(stages.flags(name), **{kind: path(kind) for kind in kinds})


@pytest.mark.parametrize("name", ["reward", "ppo"])
def test_a_stage_learns_the_same_from_prepared_records(
  name, stages, sources, prepared, tmp_path
):
  from_files = flags_of(stages, name, lambda kind: f"{sources}/{kind}.jsonl")
  from_shards = flags_of(stages, name, lambda kind: prepared)
  for flags, run in ((from_files, "files"), (from_shards, "shards")):
    done = stages.run(name, *flags, f"--workdir={tmp_path / run}")
    assert done.status == 0, done.err
  assert f"prepared in {prepared}: " in done.err
  a, b = (
    results.arrays(tmp_path / run / "model") for run in ("shards", "files")
  )
  assert a.keys() == b.keys()
  for key in b:
    assert (a[key] == b[key]).all(), key
  assert results.metrics(tmp_path / "shards") == results.metrics(
    tmp_path / "files"
  )
  assert results.summary(tmp_path / "shards") == results.summary(
    tmp_path / "files"
  )


def test_a_killed_run_resumes_bit_for_bit(stages, prepared, tmp_path):
  flags = flags_of(stages, "reward", lambda kind: prepared)
  straight, run = (f"--workdir={tmp_path / n}" for n in ("straight", "run"))
  assert stages.run("reward", *flags, straight).status == 0
  child = stages.server.start("experiments.reward", *flags, run)
  total = results.lines(tmp_path / "straight")
  assert results.kill_after(child, tmp_path / "run", total // 2).status == -9
  done = stages.run("reward", *flags, run)
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_other_records_are_refused_on_resume(
  stages, sources, prepared, tmp_path
):
  path = tmp_path / "records"
  shutil.copytree(prepared, path)
  flags = flags_of(stages, "reward", lambda kind: path)
  run = f"--workdir={tmp_path / 'run'}"
  stopped = stages.server.run(
    "tests.training.at_step", "3", "sigterm", "reward", *flags, run
  )
  assert stopped.status == 0, stopped.err
  shutil.rmtree(path)
  changed = tmp_path / "sources"
  shutil.copytree(sources, changed)
  file = changed / "comparisons.jsonl"
  lines = file.read_text().splitlines(True)
  file.write_text("".join(lines[1:]))
  prepare(path, changed, stages["pretrain"])
  error = error_of(stages.run("reward", *flags, run))
  assert (error.code, error.field) == ("data_changed", "data.comparisons")


# Without a run.


def reward_config(directory, **section):
  data = configs.Data(
    comparisons=str(directory), max_prompt_tokens=10, max_response_tokens=6,
    user_tag="U:", assistant_tag="A:", turn_separator=" ",
  )  # fmt: skip
  return configs.RewardExperiment(data=data, reward=configs.Reward(**section))


@pytest.fixture
def labeled(tmp_path, stages):
  """Returns the path of rankings by three labelers, and their directory."""
  lines = [
    {
      "prompt": f"red {toy.WORDS[i % 40]} {toy.WORDS[i * 7 % 40]}",
      "completions": ["ba be", "ka ko", "mo"],
      "ranks": [1, 2, 2],
      "labeler_id": "abc"[i % 3],
      "split": "valid" if i % 5 == 0 else "train",
    }
    for i in range(40)
  ]
  path = tmp_path / "labeled.jsonl"
  toy.write_lines(path, lines)
  flags = [f"--data.comparisons={path}", f"--to={tmp_path / 'out'}"]
  flags += [f"--tokenizer={stages['pretrain']}", "--preset=world"]
  flags += [f for f in toy.MODEL if f.startswith("--data.")]
  assert command.main(flags) == 0
  return path, tmp_path / "out"


@pytest.mark.parametrize(
  "section", [{}, {"leave_out": "b"}, {"leave_out": "a,c", "max_rankings": 5}]
)
def test_the_selected_rankings_are_those_of_files(section, labeled):
  path, directory = labeled
  tokenizer = tokenizers.load_tokenizer(directory / layout.TOKENIZER)
  opened = [
    rankings.open_rankings(reward_config(source, **section), tokenizer)
    for source in (directory, path)
  ]
  for name in ("train", "valid", "left_out"):
    actual, expected = (getattr(o, name) for o in opened)
    assert len(actual) == len(expected)
    for i in range(len(expected)):
      assert str(actual[i]) == str(expected[i])
    assert actual.token_counts.tolist() == expected.token_counts.tolist()
    if name == "train" or (name == "left_out") <= bool(section):
      assert len(actual)


@pytest.mark.parametrize(
  ("section", "code"),
  [
    ({"pairs": True}, "not_prepared"),
    ({"max_completions": 2}, "not_prepared"),
    ({"margin": "grade"}, "not_prepared"),
    ({"leave_out": "d"}, "unknown_labeler"),
    ({"leave_out": "a,b,c"}, "no_rankings"),
  ],
)
def test_selections_that_are_refused(section, code, labeled):
  _, directory = labeled
  tokenizer = tokenizers.load_tokenizer(directory / layout.TOKENIZER)
  with pytest.raises(UserError) as caught:
    rankings.open_rankings(reward_config(directory, **section), tokenizer)
  assert caught.value.code == code


def test_large_sources_should_be_prepared(labeled, monkeypatch, capsys):
  path, _ = labeled
  data = configs.Data(comparisons=str(path))
  inputs.rankings(data, None)
  assert "prepare" not in capsys.readouterr().err
  monkeypatch.setattr(inputs, "LARGE_BYTES", 100)
  inputs.rankings(data, None)
  line = capsys.readouterr().err
  assert "warning: data.comparisons" in line
  assert f"prepare --data.comparisons={path}" in line
