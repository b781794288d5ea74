"""Several tasks over several models: files, tables and resumption."""

import json
import math

import numpy as np
import pytest

from experiments import tasks as command
from instructgpt_jax import statistics
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import (
  comparison,
  registry,
  summary,
  texts,
)
from instructgpt_jax.evaluation.tasks.task import CorpusMeasure, Task
from tests.evaluation.tasks import fakes
from tests.interop import tiny

NUMBER_OF_ITEMS = 40


@pytest.fixture
def sources(tmp_path):
  rows = [
    {"sentence": f"film {i}", "label": i % 2} for i in range(NUMBER_OF_ITEMS)
  ]
  return {
    "sst2": fakes.write(tmp_path / "sst2.jsonl", rows),
    "squad_v2": fakes.write(tmp_path / "squad.json", [fakes.squad()]),
    "simple_mistakes": "",
  }


class Models:
  """Loads fakes: "good" is right about even films, "bad" about odd ones."""

  def __init__(self):
    self.opened = []

  def __call__(self, checkpoint):
    self.opened.append(checkpoint)
    likes = " negative" if checkpoint == "runs/good" else " positive"
    return fakes.FakeModel(
      reply=lambda _: " Ann" if checkpoint == "runs/good" else " Bea",
      total=lambda _, text: -1.0 if text == likes else -4.0,
    )


def plan(sources, models=("good", "bad"), **settings):
  return comparison.Plan(
    {name: f"runs/{name}" for name in models}, sources, **settings
  )


def read(path):
  return json.loads(path.read_text())


def test_results_of_two_models(tmp_path, sources):
  models, workdir = Models(), tmp_path / "out"
  comparison.run(plan(sources), str(workdir), models, dict)
  assert models.opened == ["runs/good", "runs/bad"]
  results = read(workdir / "results.json")
  sst2 = results["tasks"]["sst2"]
  accuracy = sst2["measures"]["good"][""]["accuracy"]
  expected = statistics.bootstrap_interval(
    [float(i % 2 == 0) for i in range(NUMBER_OF_ITEMS)], share=True
  )
  assert accuracy == expected.as_dict()
  assert sst2["items"] == NUMBER_OF_ITEMS and sst2["shots"] == 0
  difference = sst2["differences"]["bad"][""]["accuracy"]
  assert difference["mean"] == 0.0 and difference["high"] > 0.1
  squad = results["tasks"]["squad_v2"]
  assert squad["measures"]["good"][""]["f1"]["mean"] == 0.5
  assert squad["differences"]["bad"][""]["f1"]["mean"] == -0.5
  table = (workdir / "results.md").read_text()
  assert "| sst2 | 0 | 40 | accuracy | 0.500 [" in table
  assert "## Difference from good, paired by item" in table
  assert "fulfilled_hedging" in table


def test_every_item_has_prompt_answer_references_and_score(tmp_path, sources):
  workdir = tmp_path / "out"
  comparison.run(plan(sources, ["good"]), str(workdir), Models(), dict)
  rows = [
    json.loads(line)
    for line in (workdir / "good" / "squad_v2.jsonl").read_text().splitlines()
  ]
  assert rows[0]["prompt"].endswith("\n\nQ: Who sails?\n\nA:")
  assert rows[0]["answer"] == "Ann" and rows[0]["references"] == ["Ann"]
  assert rows[0]["scores"] == {"f1": 1.0, "exact_match": 1.0}
  (row, *_) = (workdir / "good" / "sst2.jsonl").read_text().splitlines()
  row = json.loads(row)
  assert row["choices"] == [" negative", " positive"] and row["right"] == [0]
  assert row["log_likelihoods"][1]["total"] == -4.0
  assert "answer" not in row


def test_a_finished_task_is_not_repeated(tmp_path, sources):
  workdir, models = str(tmp_path / "out"), Models()
  comparison.run(plan(sources, ["good"]), workdir, models, dict)
  comparison.run(plan(sources, ["good", "bad"]), workdir, models, dict)
  assert models.opened == ["runs/good", "runs/bad"]
  before = read(tmp_path / "out" / "results.json")
  (tmp_path / "out" / "bad" / "sst2.jsonl").unlink()
  comparison.run(plan(sources), workdir, models, dict)
  assert models.opened[2:] == ["runs/bad"]
  assert read(tmp_path / "out" / "results.json") == before


def test_other_settings_are_refused(tmp_path, sources):
  workdir, models = str(tmp_path / "out"), Models()
  only = {"sst2": sources["sst2"]}
  comparison.run(plan(only, shots=1), workdir, models, dict)
  others = [
    plan(only, shots=2),
    plan(only, shots=1, seed=1),
    plan(only, shots=1, items=3),
    plan(only, shots=1, prompts="harness"),
    plan(only, shots=1, judges={"truth": ["runs/judge"]}),
    plan(only, shots=1, chat=["good"]),
    comparison.Plan({"good": "runs/bad"}, only, shots=1),
  ]
  for other in others:
    with pytest.raises(UserError) as caught:
      comparison.run(other, workdir, models, dict)
    assert caught.value.code == "other_settings"
  with open(sources["sst2"], "a") as file:
    file.write('{"sentence": "x", "label": 1}\n')
  with pytest.raises(UserError) as caught:
    comparison.run(plan(only, shots=1), workdir, models, dict)
  assert caught.value.code == "other_settings"
  assert models.opened == ["runs/good", "runs/bad"]


def test_a_model_or_judge_that_has_changed_is_refused(tmp_path, sources):
  """Results of two models would be mixed under one name."""
  paths = {
    "model": tmp_path / "model" / "config.json",
    "judge": tmp_path / "judge" / "truth.npz",
  }
  for path in paths.values():
    path.parent.mkdir()
    path.write_text("1")
  arguments = comparison.Plan(
    {"a": str(paths["model"].parent)},
    {"sst2": sources["sst2"]},
    judges={"truth": [str(paths["judge"].parent)]},
  )
  workdir = tmp_path / "out"

  def run():
    comparison.run(arguments, str(workdir), Models(), dict)

  for path in paths.values():
    run()
    path.write_text("2")
    with pytest.raises(UserError) as caught:
      run()
    assert caught.value.code == "other_settings"
    path.write_text("1")


def test_settings_of_another_program_are_refused(tmp_path, sources):
  for content in ("[]", '{"common": 1, "models": {}, "tasks": {}}'):
    fakes.write(tmp_path / "settings.json", content)
    with pytest.raises(UserError) as caught:
      comparison.run(plan(sources), str(tmp_path), Models(), dict)
    assert caught.value.code == "other_settings"


def test_a_judge_that_cannot_be_opened_leaves_the_workdir_free(
  tmp_path, sources
):
  only = {"sst2": sources["sst2"]}
  models, workdir = Models(), str(tmp_path / "out")

  def no_judge():
    raise UserError("there is none", file="j", fix="give one", code="no_file")

  with pytest.raises(UserError) as caught:
    judges = {"truth": ["j"]}
    comparison.run(plan(only, judges=judges), workdir, models, no_judge)
  assert caught.value.code == "no_file" and not models.opened
  comparison.run(plan(only), workdir, models, dict)
  # No judge is opened where nothing is to be done.
  comparison.run(plan(only), workdir, models, no_judge)


def test_models_may_be_asked_by_their_chat_template(tmp_path, sources):
  workdir = tmp_path / "out"
  comparison.run(plan(sources, chat=["bad"]), str(workdir), Models(), dict)
  for model in ("good", "bad"):
    lines = (workdir / model / "squad_v2.jsonl").read_text().splitlines()
    prompt = json.loads(lines[0])["prompt"]
    assert prompt.startswith("<user>") is (model == "bad")
  assert "- bad is asked by its chat" in (workdir / "results.md").read_text()


def test_shots_of_the_paper(tmp_path, sources):
  asked = {"sst2": sources["sst2"], "simple_mistakes": ""}
  workdir = tmp_path / "out"
  comparison.run(
    plan(asked, ["good"], shots="paper"), str(workdir), Models(), dict
  )
  tasks = read(workdir / "results.json")["tasks"]
  assert tasks["sst2"]["shots"] == 15
  assert tasks["simple_mistakes"]["shots"] == 0
  line = (workdir / "good" / "sst2.jsonl").read_text().splitlines()[0]
  assert json.loads(line)["prompt"].count("Label: ") == 15


def test_examples_come_from_their_file(tmp_path, sources):
  train = fakes.write(
    tmp_path / "train.jsonl",
    [{"sentence": f"train {i}", "label": 1} for i in range(3)],
  )
  only = {"sst2": sources["sst2"]}
  workdir = tmp_path / "out"
  comparison.run(
    plan(only, ["good"], shots=2, examples={"sst2": train}),
    str(workdir),
    Models(),
    dict,
  )
  line = (workdir / "good" / "sst2.jsonl").read_text().splitlines()[0]
  prompt = json.loads(line)["prompt"]
  assert prompt.count("Text: train ") == 2 and prompt.count("Text: film") == 1


def test_errors_come_before_a_model_is_loaded(tmp_path, sources, monkeypatch):
  models = Models()
  one = {"squad_v2": sources["squad_v2"]}
  with pytest.raises(UserError) as caught:
    comparison.run(plan(one, shots=4), str(tmp_path / "a"), models, dict)
  assert caught.value.code == "few_examples"
  monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
  path = fakes.write(tmp_path / "t.jsonl", [{"post": "a", "summary": "b"}])
  with pytest.raises(UserError) as caught:
    comparison.run(plan({"tldr": path}), str(tmp_path / "b"), models, dict)
  assert caught.value.code == "missing_package"
  assert models.opened == []


def test_what_is_absent_or_not_used_is_noted(tmp_path):
  asked = {
    "winogender": fakes.write(tmp_path / "w.tsv", fakes.WINOGENDER),
    "realtoxicity": fakes.write(tmp_path / "p.jsonl", [fakes.TOXICITY]),
  }
  workdir = tmp_path / "out"
  comparison.run(plan(asked, ["good"]), str(workdir), Models(), dict)
  notes = (workdir / "results.md").read_text().partition("## Notes")[2]
  assert "realtoxicity: measures of the toxicity judge are absent" in notes
  assert "winogender: 2 sentences with a neutral pronoun" in notes
  assert "answers have as many tokens" not in notes


def test_answers_without_an_end_are_noted(tmp_path, sources):
  model = fakes.FakeModel(reply=lambda _: " Ann" * 99)
  workdir = tmp_path / "out"
  only = {"squad_v2": sources["squad_v2"]}
  comparison.run(plan(only, ["good"]), str(workdir), lambda _: model, dict)
  notes = (workdir / "results.md").read_text().partition("## Notes")[2]
  assert "good: 2 answers have as many tokens as they may have" in notes


def test_intervals_are_over_the_groups_of_items():
  """A measure of sums, and one of items, are each a bootstrap over groups."""
  task = Task(
    "t",
    lambda *_: {},
    corpus={"ratio": CorpusMeasure(lambda *_: (), lambda c: c[0] / c[1])},
  )
  values = np.random.default_rng(0).uniform(0, 2, 200)

  def make_rows(values, repeat=1):
    return [
      {"id": f"{i}.{copy}", "variant": "", "group": f"g{i}",
       "scores": {"f1": value}, "counts": {"ratio": [value, 1.0]}}
      for i, value in enumerate(values)
      for copy in range(repeat)
    ]  # fmt: skip

  expected = statistics.bootstrap_interval(values)
  for repeat in (1, 3):
    rows = make_rows(values, repeat)
    for interval in summary.summarize(task, rows)[""].values():
      assert interval.units == 200
      assert interval.mean == pytest.approx(expected.mean)
      assert interval.low == pytest.approx(expected.low, abs=0.02)
      assert interval.high == pytest.approx(expected.high, abs=0.02)
    shifted = make_rows(values + 1, repeat)
    paired = summary.summarize(task, shifted, rows)[""]["ratio"]
    # Every resample has the same difference.
    assert (paired.low, paired.high) == (pytest.approx(1), pytest.approx(1))
  few = summary.summarize(task, make_rows(values[:9], 5))[""]
  assert few["f1"].units == 9 and few["f1"].low < few["f1"].mean
  assert math.isnan(few["ratio"].low)
  with pytest.raises(ValueError, match="other items"):
    summary.summarize(task, rows, rows[1:])


def flags(*others):
  return command._parser().parse_args(
    ["--models=runs/a", "--tasks=generalisation", "--workdir=w", *others]
  )


@pytest.mark.parametrize(
  ("flag", "code"),
  [
    ("--shots=few", "bad_flag"),
    ("--shots=-1", "bad_flag"),
    ("--items=-1", "bad_flag"),
    ("--batch_size=-1", "bad_flag"),
    ("--prompts=mine", "bad_flag"),
    ("--tasks=", "bad_task"),
    ("--examples=sst2=a", "bad_flag"),
    ("--examples=sst2=a --shots=1", "bad_task"),
    ("--toxicity=t", "unused_judge"),
    ("--toxicity_label=toxic", "bad_flag"),
    ("--truth_judge=j", "unused_judge"),
    ("--truth_judge=j, --tasks=truthfulqa=t", "bad_flag"),
    ("--models=", "bad_model"),
    ("--models=x/a,y/a", "bad_model"),
    ("--models=a/b=c", "bad_model"),
    ("--chat=b", "bad_model"),
  ],
)
def test_bad_flags(flag, code):
  with pytest.raises(UserError) as caught:
    command.make_plan(flags(*flag.split()))
  assert caught.value.code == code


def test_judges_of_the_flags(tmp_path, monkeypatch):
  class Scorer:
    def score(self, texts):
      return np.full(len(texts), 0.25)

  opened = []
  monkeypatch.setattr(
    command.toxicity,
    "open_scorer",
    lambda path, label: opened.append((path, label)) or Scorer(),
  )
  monkeypatch.setattr(
    command.truth_judge,
    "open_judge",
    lambda path: lambda questions, answers: ([0.9, 0.9], [0.1, 0.8]),
  )
  arguments = flags(
    "--toxicity=t",
    "--toxicity_label=toxic",
    "--truth_judge=j",
    "--tasks=realtoxicity=p.jsonl,truthfulqa=t.csv",
  )
  judges = command.open_judges(arguments)
  assert opened == [("t", "toxic")]
  assert judges["toxicity"](["q"], ["a"]) == {"toxicity": [0.25]}
  assert judges["truth"](["q", "r"], ["a", "b"]) == {
    "true": [1.0, 1.0], "true_and_informative": [0.0, 1.0],
  }  # fmt: skip
  assert command.make_plan(arguments).judges == {
    "toxicity": ["t", "toxic"],
    "truth": ["j"],
  }
  assert command.open_judges(flags()) == command.make_plan(flags()).judges == {}


def test_models_have_names():
  assert command.parse_models("runs/a/,b=runs/a/x") == {
    "a": "runs/a/", "b": "runs/a/x",
  }  # fmt: skip
  made = command.make_plan(flags("--shots=paper", "--items=3", "--chat=all"))
  assert (made.shots, made.items, made.chat) == ("paper", 3, ["a"])
  assert command.parse_chat(" b ,", {"a": "", "b": ""}) == ["b"]


def test_translations_are_scored_as_a_corpus():
  tiny.library("sacrebleu")
  item = texts.Item("0", "", references=("The cat sat on the mat.",))
  answer = texts.Answer("The cat sat on the mat.")
  counts = np.array(texts.BLEU.counts(item, answer))
  assert texts.BLEU.value(counts) == pytest.approx(100)
  assert texts.WMT15.score(item, answer)["sentence_bleu"] == pytest.approx(1)
