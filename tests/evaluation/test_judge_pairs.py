"""Pairs of answers and labelled pairs, in the formats of their publishers."""

import gzip
import json

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import judge_pairs
from tests.evaluation.made_judges import write_lines

LLMBAR = {"input": "Say hi.", "output_1": "Hi.", "output_2": "No.", "label": 1}
ALPACA = {
  "instruction": "Say hi.",
  "output_1": "Hi.",
  "generator_1": "a",
  "output_2": "No.",
  "generator_2": "b",
  "annotator": "alpaca_eval_gpt4",
  "preference": 2.0,
}
PANDALM = {
  "idx": 0,
  "cmp_key": "a_b",
  "instruction": "Say hi.",
  "input": "loudly",
  "response1": "Hi.",
  "response2": "HI!",
  "annotator1": 2,
  "annotator2": 2,
  "annotator3": 0,
}


def write_array(path, *records):
  path.write_text(json.dumps(records))
  return path


def only(files):
  ((name, file),) = files.items()
  return name, file


def test_answers_are_paired_by_prompt_and_by_their_number(tmp_path):
  chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content":
          "a"}, {"role": "user", "content": "r"}]  # fmt: skip
  one = write_lines(
    tmp_path / "a.jsonl",
    {"prompt": "p", "completion": "1", "ended": True},
    {"prompt": "p", "completion": "2", "ended": False},
    {"prompt": chat, "completion": "3", "ended": True},
    {"prompt": "long", "completion": None, "ended": None, "skipped": "900"},
    {"prompt": "alone", "completion": "4"},
  )
  two = write_lines(
    tmp_path / "b.jsonl",
    {"prompt": chat, "completion": "c"},
    {"prompt": "p", "completion": "a"},
    {"prompt": "p", "completion": "b", "score": 3},
    {"prompt": "p", "completion": ""},
  )
  pairs, notes, warnings = judge_pairs.read_answer_pairs(one, two)
  assert [(p.first, p.second) for p in pairs] == [
    ("1", "a"), ("2", "b"), ("3", "c"),
  ]  # fmt: skip
  assert pairs[2].prompt == "User: q\n\nAssistant: a\n\nUser: r"
  assert judge_pairs.prompt_numbers(pairs) == [0, 0, 1]
  assert notes == [
    f"{one}: left out 1 prompts without an answer",
    f"{two}: fields without use: score",
    f"{one}: 1 of 4 answers have no counterpart",
    f"{two}: 1 of 4 answers have no counterpart",
    f"{one}: 1 answers were cut at their length limit",
  ]
  assert warnings == (
    *(f"{note}." for note in notes[2:4]),
    f"{one}: 1 of 5 records are left out: prompts without an answer",
  )


def test_files_without_common_prompts_are_refused(tmp_path):
  one = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "1"})
  two = write_lines(
    tmp_path / "b.jsonl",
    *({"prompt": c, "completion": "1"} for c in "pqr"),
  )
  none = write_lines(tmp_path / "c.jsonl", {"prompt": "z", "completion": "1"})
  for against, code in ((none, "no_pairs"), (two, "unmatched")):
    with pytest.raises(UserError) as error:
      judge_pairs.read_answer_pairs(one, against)
    assert error.value.code == code
  pairs, notes, warnings = judge_pairs.read_answer_pairs(
    one, two, allow_unmatched=True
  )
  assert len(pairs) == len(notes) == len(warnings) == 1


def test_labels_of_each_format(tmp_path):
  llmbar = write_array(tmp_path / "l.json", LLMBAR, LLMBAR | {"input": "Bye",
                       "label": 2})  # fmt: skip
  _, file = only(judge_pairs.read_labeled_pairs(f"llmbar={llmbar}"))
  assert [p.labels for p in file.pairs] == [(1.0,), (0.0,)]
  assert file.pairs[0].prompt == "Say hi." and file.notes == []
  pandalm = write_array(tmp_path / "p.json", PANDALM)
  name, file = only(judge_pairs.read_labeled_pairs(f"pandalm={pandalm}"))
  assert name == f"pandalm {pandalm}"
  assert file.pairs[0].labels == (0.0, 0.0, 0.5)
  assert file.pairs[0].majority == 0.0
  assert file.pairs[0].prompt == "Say hi.\n\nloudly"


def test_annotations_of_one_pair_are_joined_in_either_order(tmp_path):
  turned = {"output_1": "No.", "output_2": "Hi.", "preference": 2}
  records = [
    ALPACA,
    ALPACA | {"preference": 1.5},
    ALPACA | turned | {"annotator": "another"},
    ALPACA | {"preference": None},
    ALPACA | {"output_2": "Hi."},
    ALPACA | {"preference": 1.2, "instruction": "Say bye."},
    ALPACA | {"preference": 0, "instruction": "Say bye."},
  ]
  path = tmp_path / "annotations.json.gz"
  path.write_bytes(gzip.compress(json.dumps(records).encode()))
  _, file = only(judge_pairs.read_labeled_pairs(f"alpaca_eval={path}"))
  first, second = file.pairs
  assert first.labels == (0.0, 0.5, 1.0) and first.majority == 0.5
  assert first.annotators == ("alpaca_eval_gpt4",) * 2 + ("another",)
  assert second.labels == (1.0, 0.5)
  assert len(file.warnings) == 2  # each reason leaves out 1 of 7
  assert file.notes == [
    f"{path}: left out 1 replies without a preference",
    f"{path}: left out 1 pairs of identical replies",
    f"{path}: 5 annotations are of 2 pairs",
  ]


@pytest.mark.parametrize(
  ("name", "record", "code", "field"),
  [
    ("llmbar", LLMBAR | {"label": 0}, "bad_label", "label"),
    ("llmbar", LLMBAR | {"label": "x"}, "wrong_type", "label"),
    ("llmbar", {"input": "x", "label": 1}, "missing_field", "output_1"),
    ("alpaca_eval", ALPACA | {"preference": 3}, "bad_label", "preference"),
    ("pandalm", PANDALM | {"annotator2": 3}, "bad_label", "annotator2"),
    ("pandalm", PANDALM | {"response1": 3}, "wrong_type", "response1"),
  ],
)
def test_malformed_labels_name_line_and_field(
  name, record, code, field, tmp_path
):
  good = {"llmbar": LLMBAR, "alpaca_eval": ALPACA, "pandalm": PANDALM}[name]
  path = write_lines(tmp_path / "x.jsonl", good, record)
  with pytest.raises(UserError) as error:
    judge_pairs.read_labeled_pairs(f"{name}={path}")
  assert (error.value.code, error.value.field) == (code, field)
  assert (error.value.file, error.value.line) == (path, 2)


@pytest.mark.parametrize("spec", ["llmbar", "llmbars=x.json", "llmbar="])
def test_an_element_that_is_no_set_is_refused(spec):
  with pytest.raises(UserError) as error:
    judge_pairs.read_labeled_pairs(spec)
  assert error.value.code == "bad_set"
