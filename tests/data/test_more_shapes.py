"""Unusual variants of formats in public files."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.data.curation import splits
from instructgpt_jax.data.curation.drops import HELD_OUT
from instructgpt_jax.data.formats import common
from instructgpt_jax.data.records import Demonstration, Prompt, Ranking, Turn
from instructgpt_jax.errors import UserError


def read(tmp_path, *values, name="x.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(v) + "\n" for v in values))
  return reading.read_any(str(path))


def refused(tmp_path, value):
  with pytest.raises(UserError) as caught:
    read(tmp_path, value)
  assert caught.value.line == 1
  return caught.value


def user(text):
  return (Turn("user", text),)


@pytest.mark.parametrize(
  "name, split",
  [
    ("test_sft", "test"), ("test2", "test"), ("test[:10%]", "test"),
    ("dev-clean", "valid"), ("held-out", "test"), ("holdout", "test"),
    ("train_prefs", "train"), ("train/test", None), ("test+valid", None),
    ("tested", None), ("attest", None),
  ],
)  # fmt: skip
def test_names_of_splits(name, split):
  assert common.split_name(name) == split


@pytest.mark.parametrize(
  "label, used", [("thumbs_up", True), ("thumbs_down", False), (-1, False)]
)
def test_labels_of_completions(tmp_path, label, used):
  records, _ = read(
    tmp_path, {"prompt": "q", "completion": "a", "label": label}
  )
  assert any(isinstance(r, Demonstration) for r in records) == used


def test_a_context_of_several_texts(tmp_path):
  (record,), report = read(
    tmp_path, {"question": "q", "context": ["one", "two"], "answer": "a"}
  )
  assert "one\n\ntwo" in record.turns[-1].text and not report.unused


@pytest.mark.parametrize(
  "record",
  [
    {
      "inputs_pretokenized": "q", "targets_pretokenized": "a",
      "inputs": [1, 2], "targets": [3],
    },
    {"inputs": "q", "targets": "a"},
    {"conversation": [{"input": "q", "output": "a"}]},
  ],
  ids=["P3", "FLAN", "Capybara"],
)  # fmt: skip
def test_demonstrations_of_other_shapes(tmp_path, record):
  (actual,), report = read(tmp_path, record)
  assert isinstance(actual, Demonstration)
  assert (actual.turns, actual.completion) == (user("q"), "a")
  assert not report.unused


def test_exchanges_of_several_turns(tmp_path):
  exchanges = [{"input": t, "output": t.upper()} for t in ("a", "b")]
  (record,), _ = read(tmp_path, {"conversation": exchanges})
  texts = [turn.text for turn in record.turns]
  assert (texts, record.completion) == (["a", "A", "b"], "B")


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
  "more, used",
  [
    ({"status": "tie"}, False), ({"rating": [4, 4]}, False),
    ({"status": "pending"}, True), ({"rating": [9, 4]}, True),
  ],
)  # fmt: skip
def test_ties_among_pairs(tmp_path, more, used):
  if not used:
    with pytest.raises(UserError) as caught:
      reading.read_rankings(write(tmp_path, PAIR | more))
    assert caught.value.code == "nothing_left"
    return
  (record,), _ = reading.read_rankings(write(tmp_path, PAIR | more))
  assert record.completions == ("a", "b") and record.ranks == (1, 2)


def write(tmp_path, *values):
  path = tmp_path / "y.jsonl"
  path.write_text("".join(json.dumps(v) + "\n" for v in values))
  return str(path)


def scored(*replies):
  return {"prompt": "q", "completions": [dict(r) for r in replies]}


def test_scores_that_contradict_ranks_are_skipped(tmp_path):
  good = scored(
    {"completion": "a", "score": 9, "rank": 1},
    {"completion": "b", "score": 2, "rank": 2},
  )
  bad = scored(
    {"completion": "a", "score": 2, "rank": 1},
    {"completion": "b", "score": 9, "rank": 2},
  )
  records, report = reading.read_rankings(write(tmp_path, good, bad))
  assert [(r.completions, r.ranks) for r in records] == [(("a", "b"), (1, 2))]
  assert sum(report.skipped.values()) == 1


def test_one_reply_at_several_ranks_is_counted(tmp_path):
  ranking = {"prompt": "q", "completions": ["a", "b", "a"], "ranks": [1, 2, 3]}
  same = {"prompt": "p", "completions": ["a", "a"], "ranks": [1, 2]}
  records, report = reading.read_rankings(write(tmp_path, ranking, same))
  assert [type(r) for r in records] == [Ranking]
  assert report.notes == {"rankings with one reply at several ranks": 1}
  assert sum(report.skipped.values()) == 1


@pytest.mark.parametrize("value", [0, 3])
def test_labels_that_count_from_0_are_refused(tmp_path, value):
  """A preference of 0 is a tie; a label of 0 may be the first reply."""
  pair = {"instruction": "q", "output_1": "a", "output_2": "b"}
  error = refused(tmp_path, pair | {"label": value})
  assert (error.code, error.field) == ("bad_preference", "label")


@pytest.mark.parametrize(
  "text",
  [
    '[{"role": "user", "content": "q"}]',
    "[{'role': 'user', 'content': 'q'}]",
  ],
)
def test_messages_written_as_text_are_refused(tmp_path, text):
  error = refused(tmp_path, {"prompt": text, "completion": "a"})
  assert (error.code, error.field) == ("encoded_messages", "prompt")
  error = refused(tmp_path, PAIR | {"chosen": text})
  assert (error.code, error.field) == ("encoded_messages", "chosen")


@pytest.mark.parametrize(
  "table",
  [
    {"prompt": ["p", "q"], "completion": ["a", "b"]},
    {"prompt": {"0": "p", "1": "q"}, "completion": {"0": "a", "1": "b"}},
  ],
  ids=["lists", "objects"],
)
def test_a_table_of_columns_is_named(tmp_path, table):
  assert refused(tmp_path, table).code == "columns"


def test_a_ranking_without_its_prompt_is_no_table(tmp_path):
  error = refused(tmp_path, {"completions": ["a", "b"], "ranks": [1, 2]})
  assert error.field == "prompt"


def test_null_columns_of_other_formats_are_not_the_format(tmp_path):
  record = {"instruction": "q", "output": "a", "chosen": None, "rejected": None}
  (actual,), _ = read(tmp_path, record)
  assert isinstance(actual, Demonstration) and actual.completion == "a"


def test_a_null_reply_makes_no_prompt_of_a_demonstration(tmp_path):
  broken = {"prompt": "q", "completion": None}
  with pytest.raises(UserError) as caught:
    read(tmp_path, broken, {"prompt": "p", "completion": "a"})
  assert caught.value.field == "completion"


def test_a_json_array_in_a_txt_file_is_refused(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
  with pytest.raises(UserError) as caught:
    reading.read_documents(str(path))
  assert (caught.value.code, caught.value.line) == ("json_in_txt", 1)
  path.write_text("[1] See the notes.\n[2] {Braces}.\n")
  assert len(reading.read_documents(str(path))[0]) == 1


def label_studio(to_name, selected):
  return {
    "data": {"prompt": "q", "answer1": "a", "answer2": "b"},
    "annotations": [
      {
        "result": [
          {
            "type": "pairwise",
            "to_name": to_name,
            "value": {"selected": selected},
          }
        ]
      }
    ],
  }


@pytest.mark.parametrize(
  "to_name, selected, best",
  [
    ("answer1,answer2", "left", "a"), ("answer1,answer2", "right", "b"),
    ("answer2,answer1", "left", "b"), ("answer2,answer1", "right", "a"),
  ],
)  # fmt: skip
def test_the_left_side_is_the_one_that_the_control_names_first(
  tmp_path, to_name, selected, best
):
  (record,), _ = reading.read_rankings(
    write(tmp_path, label_studio(to_name, selected))
  )
  assert dict(zip(record.ranks, record.completions, strict=True))[1] == best


LONG = "Which river runs through the largest town of the north?"


def later(text):
  turns = (*user("Hello."), Turn("assistant", "Hi."), Turn("user", text))
  return Demonstration(turns=turns, completion="a", split="train")


def test_a_held_out_prompt_as_a_later_turn_is_no_training_record():
  data = configs.Data()
  records = [later(LONG), later("Go on.")]
  held_out = [Prompt(turns=user(t), split="test") for t in (LONG, "Go on.")]
  splitter = splits.Splitter([*records, *held_out], data)
  parts, drops = splitter.split(records)
  # A short turn says nothing without what stands before it.
  assert [r.turns[-1].text for r in parts["train"]] == ["Go on."]
  assert dict(drops) == {HELD_OUT: 1}
