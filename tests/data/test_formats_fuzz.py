"""Records with values of wrong types give records, skips or user errors."""

import copy
import random

import pytest

from instructgpt_jax.data.formats import FORMATS, FileReader
from instructgpt_jax.data.records import Ranking
from instructgpt_jax.errors import UserError

JUNK = (
  None, True, False, 0, -1, 2.5, float("nan"), float("inf"), 10**400, "", "1",
  " ", "text", "Human: a", "\n\nHuman: a\n\nAssistant:", "<|endoftext|>", [],
  [[]], [None],
  ["a"], [1], [{}], {}, {"a": 1}, {"text": None}, {"role": "user"},
  [{"role": "user", "content": "q"}], [{"from": "gpt", "value": "a"}],
  [{"id": 1, "text": "a"}], [["a", "b"]], [{"content": "q"}],
  {"role": "assistant", "content": "a"}, [{"role": None, "from": 1}],
)  # fmt: skip
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ITEMS = [{"id": "x", "body": "a"}, {"id": "y", "body": "b"}]
NODE = {"text": "a", "role": "assistant", "rank": 0, "replies": []}
# Fields whose values are not texts in a record of each format.
VALUES = {
  "messages": CHAT,
  "conversations": CHAT,
  "conversation": CHAT,
  "conversation_a": CHAT,
  "conversation_b": CHAT,
  "rejected_messages": CHAT,
  "completions": ["a", "b"],
  "ranks": [1, 2],
  "scores": [1, 2],
  "info": {"post": "p"},
  "summaries": [{"text": "a"}, {"text": "b"}],
  "summary": {"text": "a", "axes": {"overall": 3}},
  "body": {"messages": CHAT},
  "instances": [{"input": "", "output": "a"}],
  "items": ITEMS,
  "rank": ["x", "y"],
  "annotations": [
    {"result": [{"type": "pairwise", "value": {"selected": "left"}}]}
  ],
  "data": {"prompt": "q", "answer1": "a", "answer2": "b", "items": ITEMS},
  "preferred_output": CHAT[1:],
  "non_preferred_output": CHAT[1:],
  "prefer": "left",
  "annotator": 1,
  "annotator1": 1,
}
NUMBERS = {"choice", "preference", "labels", "score_0", "score_1",
           "helpfulness", "preference_strength", "better_response_id",
           "label", "weight"}  # fmt: skip
COMMON = {"system": "S", "history": [["a", "b"]], "split": "test",
          "user_id": 1, "context": "c", "tools": []}  # fmt: skip


def example(known):
  record = {
    name: copy.deepcopy(VALUES.get(name, 1 if name in NUMBERS else f"t {name}"))
    for name in known.example
  }
  if known.name == "Open-Assistant trees":
    record["prompt"] = {"text": "q", "replies": [NODE, {**NODE, "rank": 1}]}
  if known.name == "OpenAI preferences":
    record["input"] = {"messages": CHAT[:1]}
  if known.name in ("scored or ranked replies", "replies beside scores"):
    name = known.example[1]
    record[name] = [{"text": "a", "score": 1}, {"text": "b", "score": 2}]
    if "scores" in known.example:
      record[name] = ["a", "b"]
  if known.name == "Anthropic HH transcripts":
    for name in known.example:
      record[name] = f"\n\nHuman: q\n\nAssistant: {name}"
  if "JSON-MIN" in known.name:
    record["annotator"] = 1
  return record


def spoil(value, rng):
  """Replaces one value, at any depth."""
  if isinstance(value, dict) and value and rng.random() < 0.8:
    name = rng.choice(sorted(value))
    return {**value, name: spoil(value[name], rng)}
  if isinstance(value, list) and value and rng.random() < 0.8:
    i = rng.randrange(len(value))
    return [*value[:i], spoil(value[i], rng), *value[i + 1 :]]
  return copy.deepcopy(rng.choice(JUNK))


@pytest.mark.parametrize(
  "known", [f for f in FORMATS if f.example], ids=lambda f: f.name
)
def test_wrong_values_are_no_tracebacks(known):
  rng = random.Random(known.name)
  for _ in range(400):
    record = example(known)
    for name in rng.sample(sorted(COMMON), rng.randrange(3)):
      record.setdefault(name, copy.deepcopy(COMMON[name]))
    reader = FileReader("x.jsonl", None)
    rows = []
    try:
      for line, value in enumerate((spoil(record, rng), record), 1):
        rows.append(reader.read(line, value))
      rows += reader.finish()
    except UserError as error:
      assert error.line in (1, 2) and error.code
      continue
    for _, _, records, reason in rows:
      assert all(r.origin.startswith("x.jsonl:") for r in records)
      assert isinstance(reason, str)
      for r in records:
        if isinstance(r, Ranking):
          assert len(r.completions) == len(r.ranks) >= 2
          assert min(r.ranks) >= 1 and all(c.strip() for c in r.completions)
        if hasattr(r, "turns"):
          assert r.turns[-1].role == "user"
          assert all(t.text.strip() for t in r.turns)


MISSING = object()


def variants(value):
  """Yields a value with each of its parts missing or replaced, at any depth."""
  yield MISSING
  yield from JUNK
  parts = (
    value.items() if isinstance(value, dict)
    else enumerate(value) if isinstance(value, list) else ()
  )  # fmt: skip
  for name, part in parts:
    for other in variants(part):
      copied = copy.copy(value)
      if other is not MISSING:
        copied[name] = other
      else:
        del copied[name]
      yield copied


@pytest.mark.parametrize(
  "known", [f for f in FORMATS if f.example], ids=lambda f: f.name
)
def test_each_field_of_a_later_record_may_be_wrong_or_missing(known):
  good = example(known)
  whole = {**good, **COMMON}
  for name in {**whole, **known.fields}:
    for other in variants(whole.get(name)):
      bad = {**(whole if name in COMMON else good), name: other}
      if other is MISSING:
        del bad[name]
      reader = FileReader("x.jsonl", None)
      reader.read(1, copy.deepcopy(good))
      assert reader.format == known
      try:
        rows = [reader.read(2, copy.deepcopy(bad)), *reader.finish()]
      except UserError as error:
        assert error.line == 2 and error.code
        continue
      assert all(row[2] or row[3] or known.group for row in rows)


@pytest.mark.parametrize(
  "known", [f for f in FORMATS if f.example], ids=lambda f: f.name
)
@pytest.mark.parametrize(
  "record", [{}, {"id": 3}, {"prompt": "q"}, {"prompt": "q", "completion": "a"}]
)
def test_a_later_record_of_another_format(known, record):
  reader = FileReader("x.jsonl", None)
  reader.read(1, example(known))
  try:
    rows = [reader.read(2, record), *reader.finish()]
  except UserError as error:
    assert error.line == 2 and error.code and error.field != ""
    return
  assert all(row[2] or row[3] or known.group for row in rows)


@pytest.mark.parametrize(
  "known", [f for f in FORMATS if f.example], ids=lambda f: f.name
)
def test_the_example_fields_are_enough(known):
  reader = FileReader("x.jsonl", None)
  row = reader.read(1, example(known))
  assert row[1].name == known.name
  assert row[2] or row[3] or known.group
