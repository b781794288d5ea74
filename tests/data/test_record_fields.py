"""Fields that mean the same in every format, and fields that nothing reads."""

import json

import pytest

from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import reading
from instructgpt_jax.data.formats import common, registry
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)
from instructgpt_jax.errors import UserError


def read(tmp_path, *values, name="x.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(v) + "\n" for v in values))
  return reading.read_any(str(path))


def turns(*texts, system=""):
  roles = ("user", "assistant")
  conversation = [Turn(roles[i % 2], t) for i, t in enumerate(texts)]
  return (*([Turn("system", system)] if system else []), *conversation)


def messages(*texts, system="", **last):
  actual = [
    {"role": t.role, "content": t.text} for t in turns(*texts, system=system)
  ]
  actual[-1].update(last)
  return actual


# One record of each shape, whose prompt is "q".
SHAPES = {
  "own demonstrations": {"prompt": "q", "completion": "a"},
  "conversational": {
    "prompt": messages("q"),
    "completion": [{"role": "assistant", "content": "a"}],
  },
  "Alpaca": {"instruction": "q", "output": "a"},
  "Dolly": {"instruction": "q", "response": "a"},
  "questions": {"question": "q", "answer": "a"},
  "OpenOrca": {"question": "q", "response": "a"},
  "query": {"query": "q", "response": "a"},
  "messages": {"messages": messages("q", "a")},
  "ShareGPT": {
    "conversations": [
      {"from": "human", "value": "q"},
      {"from": "gpt", "value": "a"},
    ]
  },
  "own rankings": {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]},
  "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
  "whole conversations": {
    "chosen": messages("q", "a"),
    "rejected": messages("q", "b"),
  },
  "HH": {
    "chosen": "\n\nHuman: q\n\nAssistant: a",
    "rejected": "\n\nHuman: q\n\nAssistant: b",
  },
  "outputs": {
    "instruction": "q",
    "output_1": "a",
    "output_2": "b",
    "preference": 1,
  },
  "scored": {
    "prompt": "q",
    "responses": [{"text": "a", "score": 2}, {"text": "b", "score": 1}],
  },
  "own prompts": {"prompt": "q"},
}
shapes = pytest.mark.parametrize("shape", SHAPES)


@shapes
def test_system_history_and_ids_are_read_in_every_format(tmp_path, shape):
  value = SHAPES[shape]
  (plain,), _ = read(tmp_path, value)
  (r,), report = read(
    tmp_path,
    {
      **value,
      "system": "S",
      "history": [["h", "i"]],
      "user_id": 7,
      "labeler_id": "l",
      "split": "test",
    },
  )
  assert type(r) is type(plain) and plain.turns == turns("q")
  assert r.turns == turns("h", "i", "q", system="S")
  assert (r.user_id, r.split) == ("7", "test")
  if not isinstance(r, Prompt):
    assert r.labeler_id == "l"
  assert not report.unused and not report.skipped


@shapes
def test_unknown_fields_are_counted_in_every_format(tmp_path, shape):
  value = SHAPES[shape]
  records, report = read(
    tmp_path,
    {**value, "quality": 3, "empty": None, "id": 1},
    {**value, "quality": 4, "more": {"a": 1}, "blank": ""},
  )
  assert len(records) == 2
  assert report.unused == {"quality": 2, "more": 1}


@shapes
@pytest.mark.parametrize(
  "fields, reason",
  [
    ({"weight": 0}, "replies of weight 0"),
    ({"train": False}, "replies of weight 0"),
    ({"tools": [{"name": "f"}]}, "conversations with tools or tool calls"),
    (
      {"images": ["x.png"]},
      "records with images or other parts that are not text",
    ),
  ],
)
def test_fields_that_exclude_a_record(tmp_path, shape, fields, reason):
  value = SHAPES[shape]
  records, report = read(tmp_path, value, {**value, **fields})
  assert len(records) == 1 and report.skipped == {reason: 1}
  blank = {name: [] for name in ("tools", "images")}
  records, report = read(tmp_path, {**value, **blank, "weight": 1})
  assert len(records) == 1 and not report.skipped and not report.unused


@pytest.mark.parametrize("label", [False, 0, "false", "bad"])
@pytest.mark.parametrize("field", ["label", "kto_tag"])
def test_completions_labelled_bad_are_no_demonstrations(tmp_path, label, field):
  path = tmp_path / "x.jsonl"
  for shape, value in SHAPES.items():
    if shape in ("outputs", "own rankings", "own prompts", "scored"):
      continue
    good = {**value, field: True}
    lines = [good, {**value, field: label}]
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    records, report = reading.read_any(str(path))
    if not isinstance(records[0], Demonstration):
      # A label beside a pair says nothing that is known.
      assert report.unused == {field: 2}
      continue
    loaded, report = reading.read_demonstrations(str(path))
    assert len(loaded) == 1, shape
    assert report.skipped == {"completions labelled bad": 1}
    prompts, report = reading.read_prompts(str(path))
    assert len(prompts) == 2 and not report.skipped


def test_other_labels_are_counted(tmp_path):
  records, report = read(
    tmp_path, {"prompt": "q", "completion": "a", "label": "sports"}
  )
  assert isinstance(records[0], Prompt) and report.unused == {"label": 1}
  assert report.skipped == {"completions with an unknown label": 1}
  records, report = read(tmp_path, {"text": "t", "label": 0})
  assert isinstance(records[0], Document) and report.unused == {"label": 1}


def test_a_file_of_bad_completions_is_an_error(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"prompt": "q", "completion": "a", "label": false}\n')
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(path))
  assert (e.value.code, e.value.line) == ("nothing_left", 1)
  assert "1 completions labelled bad" in e.value.problem


def test_context_is_an_input(tmp_path):
  for value in (
    {"question": "q", "answer": "a", "context": "c"},
    {"prompt": "q", "completion": "a", "context": "c"},
    {"instruction": "q", "response": "a", "context": "c"},
  ):
    (r,), report = read(tmp_path, value)
    assert r.turns == turns("q\n\nc") and not report.unused
  for prompt in ("c\n\nq", "q\n c \n", "q\nc"):
    (r,), _ = read(
      tmp_path, {"prompt": prompt, "completion": "a", "context": "c"}
    )
    assert r.turns == turns(prompt)
  (r,), report = read(
    tmp_path, {"question": "q", "answer": "a", "context": {"title": ["t"]}}
  )
  assert r.turns == turns("q") and report.unused == {"context": 1}


@pytest.mark.parametrize(
  "text", ["<noinput>", "nan", "N/A", "None", "null", " ", "No Input", "n/a."]
)
def test_placeholders_are_no_input(tmp_path, text):
  for more in ("input", "context"):
    reply = {"input": "output", "context": "response"}[more]
    (r,), _ = read(tmp_path, {"instruction": "q", more: text, reply: "a"})
    assert r.turns == turns("q")
  (r,), _ = read(tmp_path, {"prompt": "q", "completion": "a", "system": text})
  assert r.turns == turns("q")


def test_a_number_that_is_missing_is_no_input(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"instruction": "q", "input": NaN, "output": "a"}\n')
  ((r,), _) = reading.read_any(str(path))
  assert r.turns == turns("q")


def test_inputs_that_look_like_placeholders_stay(tmp_path):
  for text in ("Nancy", "0", "()", "none of these", "N"):
    (r,), _ = read(tmp_path, {"instruction": "q", "input": text, "output": "a"})
    assert r.turns == turns(f"q\n\n{text}")


def test_an_input_is_added_though_the_instruction_holds_it(tmp_path):
  (r,), _ = read(
    tmp_path, {"instruction": "double 4", "input": "4", "output": "8"}
  )
  assert r.turns == turns("double 4\n\n4")


@pytest.mark.parametrize(
  "value, name",
  [
    ({"instruction": "q", "output": None}, "output"),
    ({"question": None, "answer": "a"}, "question"),
    ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected"),
    ({"prompt": "q", "response": "a", "helpfulness": None}, "helpfulness"),
  ],
)
def test_null_skips_a_public_record(tmp_path, value, name):
  good = {key: text or "z" for key, text in value.items()}
  if name == "helpfulness":
    good[name] = 3
  records, report = read(tmp_path, good, value)
  assert len(records) == 1
  assert report.skipped[f"records whose {name!r} is null"] == 1


def test_null_is_an_error_in_our_own_formats(tmp_path):
  with pytest.raises(UserError) as e:
    read(tmp_path, {"prompt": "q", "completion": None})
  assert (e.value.code, e.value.field) == ("wrong_type", "completion")


def test_an_input_can_stand_alone(tmp_path):
  (r,), _ = read(tmp_path, {"instruction": "", "input": "why?", "output": "a"})
  assert r.turns == turns("why?")


@pytest.mark.parametrize(
  "history",
  [
    [["h", "i"], ["j", "k"]],
    messages("h", "i", "j", "k"),
  ],
)
def test_history(tmp_path, history):
  value = {"instruction": "q", "output": "a", "history": history}
  (r,), _ = read(tmp_path, value)
  assert r.turns == turns("h", "i", "j", "k", "q")
  # A conversation that holds its history already is left as it is.
  whole = {"messages": messages("h", "i", "j", "k", "q", "a")}
  (r,), _ = read(tmp_path, {**whole, "history": history})
  assert r.turns == turns("h", "i", "j", "k", "q")


@pytest.mark.parametrize(
  "history, field",
  [("text", "history"), ([["h"]], "history[0]"), ([["h", 1]], "history[0]")],
)
def test_a_history_of_another_shape_is_refused(tmp_path, history, field):
  with pytest.raises(UserError) as e:
    read(tmp_path, {"instruction": "q", "output": "a", "history": history})
  assert (e.value.code, e.value.line) == ("wrong_type", 1)
  assert e.value.field == field


def test_two_system_texts_have_to_agree(tmp_path):
  value = {"messages": messages("q", "a", system="S")}
  for system, count in (("S", 1), ("T", 0)):
    records, report = read(tmp_path, {**value, "system": system})
    assert len(records) == count
    assert bool(report.skipped) == (count == 0)
  assert report.skipped == {"records whose fields contradict each other": 1}
  records, report = read(
    tmp_path, {**SHAPES["Alpaca"], "system": "S", "system_prompt": "T"}
  )
  assert not records and report.skipped


@pytest.mark.parametrize(
  "name, split",
  [
    ("train", "train"),
    ("Validation", "valid"),
    ("dev", "valid"),
    ("test_sft", "test"),
    ("train-00000", "train"),
    ("valid1", "valid"),
  ],
)
def test_split_names(tmp_path, name, split):
  (r,), report = read(tmp_path, {**SHAPES["Alpaca"], "split": name})
  assert r.split == split and not report.unused


@pytest.mark.parametrize("split", ["fold 3", 1, "trainer"])
def test_splits_of_no_known_name(tmp_path, split):
  for shape in ("Alpaca", "messages", "preferences"):
    (r,), report = read(tmp_path, {**SHAPES[shape], "split": split})
    assert r.split == "" and report.unused == {"split": 1}
  with pytest.raises(UserError) as e:
    read(tmp_path, {**SHAPES["own demonstrations"], "split": split})
  assert (e.value.code, e.value.field) == ("unknown_split", "split")


def test_weights_that_nothing_uses_are_counted(tmp_path):
  (r,), report = read(tmp_path, {**SHAPES["preferences"], "weight": 0.5})
  assert isinstance(r, Ranking)
  assert report.unused == {"weight (other than 0 and 1)": 1}


def test_nested_fields_are_counted(tmp_path):
  _, report = read(
    tmp_path, {"messages": messages("q", "a", name="n", weight=0.5)}
  )
  assert report.unused == {
    "messages[].name": 1,
    "messages[].weight (other than 0 and 1)": 1,
  }
  _, report = read(
    tmp_path,
    {
      "prompt": "q",
      "responses": [
        {"text": "a", "score": 2, "critique": "c"},
        {"text": "b", "score": 1, "critique": "d"},
      ],
    },
  )
  assert report.unused == {"responses[].critique": 1}


def test_unused_fields_are_shown(tmp_path, capsys):
  path = tmp_path / "x.jsonl"
  path.write_text(
    '{"prompt": "q", "completion": "a", "score": 1}\n'
    '{"prompt": "r", "completion": "a", "score": 2, "topic": "t"}\n'
  )
  assert command.main([str(path)]) == 0
  shown = "unused fields: score (2 records), topic (1 records)"
  assert shown in capsys.readouterr().out
  _, report = reading.read_demonstrations(str(path))
  assert report.unused == {"score": 2, "topic": 1}
  assert shown in str(report)


def test_every_common_field_is_read_or_declared_by_a_format():
  for known in registry.FORMATS:
    names = registry.known_fields(known.name)
    if known.common is None:
      assert set(common.FIELDS) <= names
