"""The command of a judge: its report, warnings and errors."""

import json
import types

import pytest

from experiments import judge as judge_main
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  judge_command,
  judge_statistics,
  pair_judges,
  reply_log,
)
from tests import printed
from tests.evaluation.made_judges import (
  TEMPLATE,
  RuleJudge,
  WordModel,
  WordTokenizer,
  longer,
  write_lines,
)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
  monkeypatch.setattr(judge_statistics, "RESAMPLES", 50)


@pytest.fixture
def paths(tmp_path):
  """Writes answers of two models, labels, and a template of the fakes."""
  sizes = [(i * 37) % 80 + 1 for i in range(60)]
  one, two = (
    write_lines(
      tmp_path / f"{name}.jsonl",
      *(
        {"prompt": f"p{i}", "completion": name * size(n), "ended": True}
        for i, n in enumerate(sizes)
      ),
    )
    for name, size in (("x", lambda n: n + 12), ("y", lambda n: 50))
  )
  labels = write_lines(
    tmp_path / "llmbar.jsonl",
    *(
      {"input": f"q{i}", "output_1": "short", "output_2": "l" * (i + 9),
       "label": 1}
      for i in range(40)
    ),
  )  # fmt: skip
  template = tmp_path / "template.txt"
  template.write_text(TEMPLATE)
  return types.SimpleNamespace(
    one=one, two=two, labels=labels, template=template, output=tmp_path / "out"
  )


def run(paths, judge, *flags):
  arguments = judge_command.parse(
    ["--judge=x", f"--template={paths.template}", f"--output={paths.output}",
     *flags],
    "",
  )  # fmt: skip
  judge_command.run(arguments, judge)
  report = json.loads((paths.output / judge_command.REPORT).read_text())
  lines = (paths.output / judge_command.VERDICTS).read_text().splitlines()
  return report, [json.loads(line) for line in lines]


def test_a_judge_of_length_is_exposed(paths, capsys):
  report, rows = run(
    paths, RuleJudge(longer), f"--answers={paths.one}",
    f"--against={paths.two}", f"--human=llmbar={paths.labels}",
  )  # fmt: skip
  name = f"llmbar {paths.labels}"
  figures = report["comparison"]
  assert figures["longer_preferred"]["mean"] == 1
  assert figures["length_controlled"]["low"] < 0.5
  assert report["human"][name]["accuracy"]["mean"] == 0
  assert report["human"][name]["labels_longer_preferred"]["mean"] == 0
  assert len(report["warnings"]) == 3
  page = capsys.readouterr().out
  assert page == (paths.output / judge_command.PAGE).read_text()
  for text in (
    "prefers the longer answer", "Read the length-controlled win rate",
    "not shown to be better than chance", "| length-controlled win rate |",
  ):  # fmt: skip
    assert text in page
  assert [row["set"] for row in rows] == ["answers"] * 60 + [name] * 40
  assert rows[0]["as_a"]["value"] == rows[0]["as_b"]["value"]


def test_labels_stand_beside_a_judges_preference_for_length(paths):
  """These labels prefer the shorter answer, and so does the judge."""

  def short(a, b):
    return 1.0 if a == "short" else 0.0

  report, _ = run(paths, RuleJudge(short), f"--human=llmbar={paths.labels}")
  (figures,) = report["human"].values()
  assert figures["accuracy"]["mean"] == 1 and figures["kappa"] is None
  (warning,) = report["warnings"]
  assert "prefers the shorter answer" in warning
  assert "the labels in 0.000" in warning and "comparison" not in report


def test_a_good_judge_has_no_warning(paths):
  """It sees what is better, whatever the length and the order."""
  labels = write_lines(
    paths.template.parent / "even.jsonl",
    *(
      {"input": f"q{i}", "output_1": "good" * (1 + i % 7), "output_2":
       "bad" * (1 + i * 3 % 11), "label": 1}
      for i in range(60)
    ),
  )  # fmt: skip
  judge = RuleJudge(lambda a, b: float(a.startswith("good")))
  report, _ = run(paths, judge, f"--human=llmbar={labels}")
  assert report["warnings"] == []


def test_pairs_without_a_verdict_are_counted_and_shown(paths, capsys):
  def rule(a, b):
    return None if "x" * 13 in (a, b) or len(a) < 20 else 1.0

  report, rows = run(
    paths, RuleJudge(rule), f"--answers={paths.one}", f"--against={paths.two}"
  )
  missing = sum(row["preference"] is None for row in rows)
  assert 0 < missing < 30
  assert report["comparison"]["pairs"] == 60 - missing
  assert report["left_out"] == [
    f"answers: {missing} of 60 pairs have no verdict: unclear",
    "answers: replies without a verdict, such as"
    " 'I think A', 'I think A', 'I think A'",
  ]
  assert "## Left out" in capsys.readouterr().out
  assert (report["left_out"][0] in report["warnings"]) == (missing > 6)


def test_a_judge_without_verdicts_is_an_error(paths):
  with pytest.raises(UserError) as error:
    run(paths, RuleJudge(lambda a, b: None), f"--human=llmbar={paths.labels}")
  assert error.value.code == "few_verdicts"
  assert "I think A" in str(error.value)
  assert not paths.output.exists()


def test_a_limit_is_drawn_and_shown(paths):
  report, rows = run(
    paths, RuleJudge(longer), f"--human=llmbar={paths.labels}", "--limit=10"
  )
  assert len(rows) == 10
  assert report["left_out"] == [
    f"llmbar {paths.labels}: 10 of 40 pairs drawn by --limit"
  ]


def test_a_local_judge_reads_its_own_template(paths, monkeypatch):
  """The model is made from its directory; a chat template is used if any."""
  made = []

  class Model(WordModel):
    def __init__(self, path):
      super().__init__(
        lambda context: {"A": 0.2, "B": 0.1, "tie": 0.1},
        WordTokenizer(object() if path == "chat" else None),
      )
      made.append(self)

  monkeypatch.setattr(judge_command, "load_model", Model)
  flags = [f"--human=llmbar={paths.labels}", f"--output={paths.output}"]
  for path, flag, used in (
    ("chat", "auto", True), ("chat", "false", False), ("plain", "auto", False),
  ):  # fmt: skip
    arguments = judge_command.parse(
      [f"--judge={path}", f"--chat_template={flag}", *flags], ""
    )
    judge_command.make_judge(arguments)(["Q:"])
    assert made[-1].asked[0][0][0].startswith("<user>") == used
  replies = reply_log.ReplyLog(paths.output / "replies.jsonl")
  arguments = judge_command.parse(["--judge=plain", *flags], "")
  for _ in range(2):  # The second one has all verdicts on disk.
    judge_command.make_judge(arguments, replies)(["Q:"])
  assert len(made[-2].asked) == 3 and made[-1].asked == []
  arguments = judge_command.parse(
    ["--judge=plain", "--chat_template=true", *flags], ""
  )
  with pytest.raises(UserError) as error:
    judge_command.make_judge(arguments)
  assert error.value.code == "no_chat_template"


@pytest.mark.parametrize(
  ("flags", "code", "field"),
  [
    (["--answers=ONE"], "one_model", "--against"),
    (["--against=ONE"], "one_model", "--answers"),
    ([], "nothing_to_judge", "--answers"),
    (["--human=llmbar=LABELS", "--judge=http://h/v1"], "judge_model",
     "--judge_model"),
    (["--human=llmbar=LABELS", "--judge_model=m"], "judge_model",
     "--judge_model"),
    (["--human=llmbar=LABELS", "--parallel=0"], "not_allowed", "--parallel"),
    (["--human=llmbar=LABELS", "--timeout=0"], "not_allowed", "--timeout"),
    (["--human=llmbar=LABELS", "--timeout=nan"], "not_allowed", "--timeout"),
    (["--human=llmbar=LABELS", "--template=LABELS"], "bad_template",
     "--template"),
    (["--human=llmbar=NOWHERE"], "no_such_file", None),
  ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(
  flags, code, field, paths, monkeypatch
):
  errors = printed.record_errors(monkeypatch)
  names = {
    "ONE": paths.one, "LABELS": paths.labels,
    "NOWHERE": str(paths.output / "nowhere"),
  }  # fmt: skip
  for name, value in names.items():
    flags = [flag.replace(name, value) for flag in flags]
  arguments = [f"--output={paths.output}", "--judge=d", *flags]
  assert judge_main.main(arguments) == 2
  assert errors[-1].code == code
  assert field is None or errors[-1].field == field


def test_a_report_is_not_replaced_unasked(paths):
  flags = [f"--human=llmbar={paths.labels}"]
  run(paths, RuleJudge(longer), *flags)
  with pytest.raises(UserError) as error:
    run(paths, RuleJudge(longer), *flags)
  assert error.value.code == "output_exists"
  run(paths, RuleJudge(longer), *flags, "--overwrite")
  # Nor is the page of another command.
  (paths.output / judge_command.REPORT).unlink()
  with pytest.raises(UserError) as error:
    run(paths, RuleJudge(longer), *flags)
  assert error.value.code == "output_exists"


def test_the_default_template_has_all_fields(tmp_path):
  path = tmp_path / "t.txt"
  path.write_text(pair_judges.TEMPLATE)
  assert pair_judges.read_template(path) == pair_judges.TEMPLATE
