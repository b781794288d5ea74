"""Nulls, NaN, numbers as text, labels, and fields that contradict others."""

import json
import math

import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)
from instructgpt_jax.errors import UserError

CONTRADICTION = "records whose fields contradict each other"
TIES = "rankings with only ties"
WEIGHT_0 = "replies of weight 0"
NAN, INF = math.nan, math.inf


def write(tmp_path, *values):
  path = tmp_path / "x.jsonl"
  path.write_text("".join(json.dumps(v) + "\n" for v in values))
  return str(path)


def read(tmp_path, *values):
  return reading.read_any(write(tmp_path, *values))


def error(tmp_path, *values):
  """Returns the code, line and field of the error that the values give."""
  with pytest.raises(UserError) as caught:
    read(tmp_path, *values)
  return caught.value.code, caught.value.line, caught.value.field


def turns(*texts, system=""):
  roles = ("user", "assistant")
  conversation = [Turn(roles[i % 2], t) for i, t in enumerate(texts)]
  return (*([Turn("system", system)] if system else []), *conversation)


def chat(*texts):
  return [{"role": t.role, "content": t.text} for t in turns(*texts)]


def best(record):
  return record.completions[record.ranks.index(1)]


WEBGPT = {"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 1.0,
          "score_1": 2.0}  # fmt: skip
SHP = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
SAFE = {"prompt": "q", "response_0": "a", "response_1": "b",
        "better_response_id": 1}  # fmt: skip
OUTPUTS = {"instruction": "q", "output_1": "a", "output_2": "b",
           "preference": 2}  # fmt: skip
STRENGTH = {"prompt": "q", "response_1": "a", "response_2": "b",
            "preference_strength": 1}  # fmt: skip
SUMMARIES = {"info": {"post": "p"}, "choice": 1,
             "summaries": [{"text": "a"}, {"text": "b"}]}  # fmt: skip
PANDALM = {"instruction": "q", "response1": "a", "response2": "b",
           "annotator1": 2}  # fmt: skip
PAIR = {"prompt": "q", "chosen": "b", "rejected": "a", "score_chosen": 9.0,
        "score_rejected": 1.0}  # fmt: skip
PARALLEL = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}
OWN = {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]}
RANKED = {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1]}


def scored(*replies):
  return {
    "prompt": "q",
    "completions": [
      {"text": text, **reply}
      for text, reply in zip("abc", replies, strict=False)
    ],
  }


# Numbers.


@pytest.mark.parametrize("number", [NAN, None, INF, -INF, 10**400])
@pytest.mark.parametrize(
  "value, name",
  [(WEBGPT, "score_0"), (WEBGPT, "score_1"), (SHP, "labels"),
   (SAFE, "better_response_id"), (OUTPUTS, "preference"),
   (STRENGTH, "preference_strength"), (SUMMARIES, "choice"),
   (PANDALM, "annotator1")],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_no_verdict(
  tmp_path, value, name, number
):
  value = {"labels": 0} | value if name == "labels" else value
  records, report = read(tmp_path, value, {**value, name: number})
  assert len(records) == 1 and sum(report.skipped.values()) == 1


@pytest.mark.parametrize("number", [NAN, None, INF, 10**400])
@pytest.mark.parametrize("i", [0, 1])
def test_lists_with_a_score_that_is_not_finite(tmp_path, i, number):
  scores = [1, 2]
  scores[i] = number
  records, report = read(tmp_path, PARALLEL, {**PARALLEL, "scores": scores})
  assert len(records) == 1 and sum(report.skipped.values()) == 1
  code, line, field = error(tmp_path, OWN, {**OWN, "scores": scores})
  assert (line, field) == (2, f"scores[{i}]")
  absent = number is None or number != number
  assert code == ("wrong_type" if absent else "not_finite")


def test_the_name_of_a_list_is_counted(tmp_path):
  _, report = read(tmp_path, PARALLEL, {**PARALLEL, "scores": [3, None]})
  assert report.skipped == {"records whose 'scores[]' is null": 1}


def test_scored_replies_without_a_finite_score_are_left_out(tmp_path):
  for number in (NAN, None, INF, 10**400, "N/A"):
    (r,), report = read(
      tmp_path, scored({"score": 1}, {"score": number}, {"score": 3})
    )
    assert (r.completions, r.ranks) == (("a", "c"), (2, 1))
    assert "rankings without their replies that lack a score" in report.notes


def test_a_helpfulness_of_nan_is_skipped(tmp_path):
  value = {"prompt": "q", "response": "a", "helpfulness": 1}
  (r,), report = read(
    tmp_path,
    value,
    {**value, "response": "b", "helpfulness": NAN},
    {**value, "response": "c", "helpfulness": "3"},
  )
  assert (r.completions, r.ranks) == (("a", "c"), (2, 1))
  assert report.skipped == {"records whose 'helpfulness' is null": 1}


@pytest.mark.parametrize(
  "value, name, numbers",
  [
    (WEBGPT, "score_1", ("2.5", 3)), (SHP, "labels", ("0", 0.0)),
    (SAFE, "better_response_id", ("1", 1.0)),
    (OUTPUTS, "preference", ("2", 2.0)),
    (STRENGTH, "preference_strength", ("1", 1.0)),
    (SUMMARIES, "choice", ("1", 1.0)), (PANDALM, "annotator1", ("2", 2.0)),
    (PAIR, "score_chosen", ("9.0", 9)), (OWN, "scores", (["1", "2"],)),
    (PARALLEL, "scores", (["1", "2.5"],)), (RANKED, "ranks", ([2.0, 1.0],)),
    (scored({"rank": 2}, {"rank": 1}), "completions",
     ([{"text": "a", "rank": "2"}, {"text": "b", "rank": "1"}],)),
  ],
)  # fmt: skip
def test_numbers_as_text_and_whole_floats(tmp_path, value, name, numbers):
  for number in numbers:
    (r,), report = read(tmp_path, {**value, name: number})
    assert best(r) == "b" and not report.skipped


@pytest.mark.parametrize(
  "value, name, number, code",
  [
    (SUMMARIES, "choice", 0.5, "wrong_type"),
    (SUMMARIES, "choice", "x", "wrong_type"),
    (SAFE, "better_response_id", True, "wrong_type"),
    (WEBGPT, "score_0", "7/10", "wrong_type"),
    (WEBGPT, "score_0", "1_000", "wrong_type"),
    (RANKED, "ranks", [1.5, 1], "bad_rank"),
  ],
)
def test_numbers_that_are_wrong(tmp_path, value, name, number, code):
  caught, line, field = error(tmp_path, value, {**value, name: number})
  assert (caught, line) == (code, 2) and field.startswith(name)


@pytest.mark.parametrize("score", ["7/10", {"h": 1}, [3], True])
def test_scores_that_are_no_numbers_are_counted(tmp_path, score):
  good = scored({"score": 2}, {"score": 1})
  records, report = read(tmp_path, good, scored({"score": score}, {}))
  assert len(records) == 1
  assert report.skipped == {"replies whose score is no number": 1}
  assert report.unused == {"completions[].score (no number)": 1}


def test_replies_are_compared_by_one_field(tmp_path):
  (r,), _ = read(
    tmp_path, scored({"score": 3}, {"score": 5}, {"rating": 99, "rank": 9})
  )
  assert (r.completions, r.ranks) == (("a", "b"), (2, 1))


# Transcripts.


@pytest.mark.parametrize("user", ["User", "Human"])
@pytest.mark.parametrize(
  "prompt, expected",
  [
    ("{}: hi", turns("hi")),
    ("{}: hi\n\nAssistant: yo\n\n{}: there", turns("hi", "yo", "there")),
    ("{}: hi\nAssistant: yo\n{}: there", turns("hi", "yo", "there")),
    ("You are nice.\n\n{}: hi\n\nAssistant:",
     turns("hi", system="You are nice.")),
    ("You are nice.\n\n{}: hi\n\nAssistant: yo\n\n{}: there",
     turns("hi", "yo", "there", system="You are nice.")),
    ("You are nice.\n{}: hi\nAssistant:",
     turns("hi", system="You are nice.")),
    ("You are nice.\n{}: hi\nAssistant: yo\n{}: there\nAssistant:",
     turns("hi", "yo", "there", system="You are nice.")),
    ("{}: hi\n\nAssistant: yo\n\n{}: there\nAssistant:",
     turns("hi", "yo", "there")),
    ("{}: hi\nAssistant: yo\n\n{}: there", turns("hi", "yo", "there")),
  ],
)  # fmt: skip
def test_transcripts_of_either_user(tmp_path, prompt, expected, user):
  prompt = prompt.replace("{}", user)
  for value in (
    {"prompt": prompt, "completion": "x"},
    {"prompt": prompt, "chosen": "x", "rejected": "y"},
    {"question": prompt, "answer": "x"},
    {"prompt": prompt, "responses": ["x", "y"], "scores": [1, 2]},
    prompt,
  ):
    (r,), _ = read(tmp_path, value)
    assert r.turns == expected


@pytest.mark.parametrize(
  "text",
  [
    "Explain the field\nUser: in this log.",
    "Explain this log.\n\nUser: root",
    "Sum up.\n\nUser: hi\n\nAssistant: yo",
    "Sum up.\nHuman: hi\nAssistant: yo\nHuman: there",
    "The User: field",
  ],
)
def test_texts_that_mention_a_user_stay(tmp_path, text):
  (r,), _ = read(tmp_path, {"prompt": text, "completion": "x"})
  assert r.turns == turns(text)


@pytest.mark.parametrize("user", ["User", "Human"])
@pytest.mark.parametrize("empty", ["\n\n", "\n"])
@pytest.mark.parametrize("lead", ["", "You are nice."])
def test_transcripts_beside_a_prompt(tmp_path, user, empty, lead):
  start = (lead and lead + empty) + f"{user}: hi{empty}Assistant: "
  value = {"prompt": "hi", "chosen": start + "a", "rejected": start + "b"}
  (r,), report = read(tmp_path, value)
  assert r.turns == turns("hi", system=lead)
  assert (r.completions, r.ranks) == (("a", "b"), (1, 2))
  records, report = read(tmp_path, value, {**value, "prompt": "other"})
  assert len(records) == 1 and report.skipped == {CONTRADICTION: 1}
  # One side may be the reply alone.
  (r,), _ = read(tmp_path, {**value, "rejected": "b"})
  assert r.completions == ("a", "b")


@pytest.mark.parametrize("lead", ["", "You are nice.\n\n"])
def test_transcripts_as_responses(tmp_path, lead):
  start = lead + "Human: q\n\nAssistant: "
  value = {"query": "q", "response": "a", "rejected_response": "b"}
  for names in (("response", "rejected_response"), ("rejected_response",)):
    more = {name: start + value[name] for name in names}
    (r,), _ = read(tmp_path, {**value, **more})
    assert r.turns == turns("q", system=lead.strip())
    assert (r.completions, r.ranks) == (("a", "b"), (1, 2))


def test_a_lead_of_a_transcript_has_to_be_the_system_text(tmp_path):
  start = "You are nice.\n\nHuman: hi\n\nAssistant: "
  value = {"prompt": "hi", "chosen": start + "a", "rejected": start + "b"}
  records, report = read(
    tmp_path,
    {**value, "system": "You are nice."},
    {**value, "system": "You are rude."},
  )
  assert [r.turns for r in records] == [turns("hi", system="You are nice.")]
  assert report.skipped == {CONTRADICTION: 1}


# Label Studio.

MINIMAL = {"prompt": "q", "answer1": "a", "answer2": "b", "annotator": 3}
ITEMS = {
  "prompt": "q",
  "annotator": 3,
  "items": [{"id": "x", "text": "a"}, {"id": "y", "text": "b"}],
}


@pytest.mark.parametrize(
  "more, better",
  [
    ({"prompt": "left", "prefer": "right"}, "b"),
    ({"answer1": "right", "answer2": "left", "prefer": "right"}, "left"),
    ({"prompt": "left", "which": "right"}, "b"),
    ({"hand": "left", "prefer": "right"}, "b"),
    ({"hand": "left", "choice": "right"}, "b"),
    ({"source": "left", "context": "left", "vote": "right"}, "b"),
    ({"choice": "Right"}, "b"),
    ({"label": "right"}, "b"),
  ],
)
def test_the_verdict_of_json_min(tmp_path, more, better):
  (r,), _ = read(tmp_path, {**MINIMAL, **more})
  assert best(r) == better


@pytest.mark.parametrize("more", [{"prompt": "left"}, {"prefer": None}])
def test_json_min_without_a_verdict(tmp_path, more):
  good = {**MINIMAL, "prefer": "left"}
  records, report = read(tmp_path, good, {**MINIMAL, **more})
  assert len(records) == 1
  assert report.skipped == {"replies without a preference": 1}


@pytest.mark.parametrize(
  "more",
  [{"one": "left", "two": "right"}, {"choice": "left", "winner": "left"}],
)
def test_two_verdicts_are_ambiguous(tmp_path, more):
  code, line, _ = error(tmp_path, {**MINIMAL, **more})
  assert (code, line) == ("ambiguous_verdict", 1)
  orders = {name: ["x", "y"] for name in more}
  if "one" in more:
    code, _, _ = error(tmp_path, {**ITEMS, **orders})
    assert code == "ambiguous_verdict"


@pytest.mark.parametrize("items", [None, [1], [], "x", "missing"])
def test_items_of_json_min_that_are_wrong(tmp_path, items):
  good = {**ITEMS, "rank": ["y", "x"]}
  bad = {**good, "items": items}
  if items == "missing":
    del bad["items"]
  if items in (None, [], [1]):
    records, report = read(tmp_path, good, bad)
    assert len(records) == 1 and sum(report.skipped.values()) == 1
  else:
    code, line, field = error(tmp_path, good, bad)
    assert code in ("wrong_type", "missing_field")
    assert (line, field) == (2, "items")


# Blank fields of the first record.


@pytest.mark.parametrize(
  "first, second, form",
  [
    ({"prompt": "q", "response": "a", "helpfulness": None},
     {"prompt": "q", "response": "b", "helpfulness": 3}, "HelpSteer"),
    ({"prompt": "q", "response": "r", "chosen": "a", "rejected": None},
     {"prompt": "q", "response": "r", "chosen": "a", "rejected": "b"},
     "prompt/chosen/rejected"),
    ({"instruction": "q", "completions": []},
     {"instruction": "q", "completions": [{"text": "a", "score": 1},
                                          {"text": "b", "score": 2}]},
     "scored or ranked replies"),
    ({"prompt": "q", "completions": []},
     {"prompt": "q", "completions": [{"text": "a", "score": 1},
                                     {"text": "b", "score": 2}]},
     "scored or ranked replies"),
    ({"query": "q", "responses": [], "scores": []},
     {"query": "q", "responses": ["a", "b"], "scores": [1, 2]},
     "replies beside scores"),
    ({"messages": None, "rejected_response": "b"},
     {"messages": chat("q", "a"), "rejected_response": "b"},
     "messages with a rejected response"),
    ({**SAFE, "better_response_id": None}, SAFE, "PKU-SafeRLHF"),
    ({**PAIR, "prompt": None}, PAIR, "prompt/chosen/rejected"),
    ({**OUTPUTS, "output_2": NAN}, OUTPUTS, "AlpacaEval/LLMBar pairs"),
  ],
)  # fmt: skip
def test_a_blank_field_does_not_change_the_format(
  tmp_path, first, second, form
):
  third = second
  if form == "HelpSteer":
    third = {**second, "response": "c", "helpfulness": 1}
  records, report = read(tmp_path, first, second, third)
  assert report.format == form
  assert all(isinstance(r, Ranking) for r in records)
  assert sum(report.skipped.values()) == 1


def test_a_lone_record_with_half_a_pair_is_a_pair(tmp_path):
  value = {"prompt": "q", "response": "r", "chosen": "a", "rejected": None}
  records, report = read(tmp_path, value)
  assert report.format == "prompt/chosen/rejected" and not records


def test_columns_that_are_null_in_every_record_give_no_format(tmp_path):
  value = {"prompt": "q", "response": "a", "helpfulness": None}
  records, report = read(tmp_path, value, value)
  assert report.format == "prompt/response"
  assert all(isinstance(r, Demonstration) for r in records)


@pytest.mark.parametrize("blank", [None, NAN, []])
@pytest.mark.parametrize(
  "name", ["messages", "completions", "responses", "chosen", "instances"]
)
def test_blank_columns_of_other_formats_are_absent(tmp_path, name, blank):
  for value in (
    {"instruction": "q", "output": "a"},
    {"prompt": "q", "completion": "a"},
  ):
    (r,), report = read(tmp_path, {**value, name: blank, "rejected": blank})
    assert isinstance(r, Demonstration) and not report.skipped


# Labels and weights.


@pytest.mark.parametrize(
  "label", [True, 1, 1.0, "good", "Yes", "positive", "like", "accepted",
            "chosen", "upvote", "thumbs up", "thumbs-up", ["good"], "", None],
)  # fmt: skip
def test_good_labels(tmp_path, label):
  messages = [*chat("q"), {**chat("q", "a")[1], "label": label}]
  for value in (
    {"prompt": "q", "completion": "a", "label": label},
    {"instruction": "q", "output": "a", "kto_tag": label},
    {"messages": messages},
  ):
    (r,), report = read(tmp_path, value)
    assert isinstance(r, Demonstration) and not report.skipped


@pytest.mark.parametrize(
  "label, known",
  [
    ("bad", True), ("rejected", True), (-1, True), ("no", True),
    ("negative", True), ("dislike", True), (["bad"], True), (False, True),
    ("thumbs down", True), (0.0, True), (0.2, False), ("sports", False),
    ({"a": 1}, False), (["good", "bad"], False),
  ],
)  # fmt: skip
def test_labels_that_are_not_good_are_not_learned(tmp_path, label, known):
  reason = (
    "completions labelled bad" if known else "completions with an unknown label"
  )
  messages = [*chat("q"), {**chat("q", "a")[1], "label": label}]
  for good, bad in (
    ({"prompt": "q", "completion": "a"}, {"label": label}),
    ({"instruction": "q", "output": "a"}, {"kto_tag": label}),
    ({"messages": chat("q", "a")}, {"messages": messages}),
    ({"prompt": "q", "completion": chat("q", "a")[1:]},
     {"completion": messages[1:]}),
  ):  # fmt: skip
    path = write(tmp_path, good, {**good, **bad})
    records, report = reading.read_demonstrations(path)
    assert len(records) == 1 and report.skipped == {reason: 1}


@pytest.mark.parametrize("weight", [0, 0.0, "0", -1, False])
def test_replies_of_weight_0_are_not_chosen(tmp_path, weight):
  reply = {"role": "assistant", "content": "a", "weight": weight}
  weighed = [*chat("q"), reply]
  arena = {"conversation_a": chat("q", "a"), "conversation_b": chat("q", "b"),
           "winner": "model_a"}  # fmt: skip
  pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
  swift = {"messages": chat("q", "a"), "rejected_response": "b"}
  for good, bad in (
    (pair, {"chosen": reply}),
    (pair, {"chosen": [reply]}),
    (pair, {"messages": weighed}),
    (swift, {"messages": weighed}),
    (swift, {"rejected_messages": weighed}),
    (arena, {"conversation_a": weighed}),
    ({"prompt": "q", "completion": chat("q", "a")[1:]},
     {"completion": [reply]}),
    ({"messages": chat("q"), "completion": "a"}, {"completion": reply}),
  ):  # fmt: skip
    records, report = read(tmp_path, good, {**good, **bad})
    assert len(records) == 1 and report.skipped == {WEIGHT_0: 1}


def test_labels_beside_rankings_are_counted(tmp_path):
  value = {"prompt": "q", "response": "a", "helpfulness": 1, "label": "bad"}
  more = {"response": "b", "helpfulness": 2, "label": "sports"}
  (r,), report = read(tmp_path, value, {**value, **more})
  assert best(r) == "b" and report.unused == {"label": 2}


# Context.


def test_a_context_belongs_to_the_last_question(tmp_path):
  path = write(tmp_path, {"messages": chat("a", "b", "c"), "context": "doc"})
  (prompt,), _ = reading.read_prompts(path)
  assert prompt.turns == turns("a", "b", "c\n\ndoc")
  records, report = read(
    tmp_path,
    {"messages": chat("a", "b", "c", "d"), "context": "doc"},
    {"messages": chat("a", "b", "c"), "context": "doc"},
  )
  assert [type(r) for r in records] == [Demonstration, Prompt]
  assert records[0].turns == turns("a", "b", "c\n\ndoc")
  reason = "replies to a question before that of the context"
  assert report.skipped == {reason: 1}
  messages = chat("a", "b", "c", "d")
  messages[-1]["weight"] = 0
  good = {"messages": chat("a", "b")}
  records, report = read(
    tmp_path, good, {"messages": messages, "context": "doc"}
  )
  assert len(records) == 1 and report.skipped == {reason: 1}


@pytest.mark.parametrize(
  "prompt, context, stands",
  [
    ("What is on page 5?", "5", False),
    ("Who is it?\n\nIt is Ann.", "It is Ann.", True),
    ("It is Ann.\n Who is it?", " It is Ann.\n", True),
    ("Who is Ann?", "Ann", False),
    ("Read " + "the long text " * 3 + "again.", "the long text " * 3, True),
  ],
)
def test_a_context_that_is_in_the_question(tmp_path, prompt, context, stands):
  (r,), _ = read(
    tmp_path, {"question": prompt, "answer": "a", "context": context}
  )
  whole = prompt if stands else f"{prompt}\n\n{context}"
  assert r.turns == turns(whole)


# Contradictions.

PLAIN = {"prompt": "q", "chosen": "a", "rejected": "b"}
SWIFT = {"messages": chat("q", "a"), "rejected_response": "b"}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a",
      "rejected": "\n\nHuman: q\n\nAssistant: b"}  # fmt: skip


@pytest.mark.parametrize(
  "good, more, reason",
  [
    (SHP, {"score_A": 1, "score_B": 5}, CONTRADICTION),
    (SHP, {"labels": 0, "score_A": 5, "score_B": 1}, CONTRADICTION),
    (OUTPUTS, {"label": 1}, CONTRADICTION),
    (STRENGTH, {"overall_preference": -1}, CONTRADICTION),
    (STRENGTH, {"context": chat("other")}, CONTRADICTION),
    (PARALLEL, {"ranks": [1, 2]}, CONTRADICTION),
    (PARALLEL, {"ratings": [2, 1]}, CONTRADICTION),
    (PARALLEL, {"instruction": "other"}, CONTRADICTION),
    (scored({"score": 1}, {"score": 2}),
     scored({"score": 1, "rating": 5}, {"score": 2, "rating": 1}),
     CONTRADICTION),
    (scored({"score": 1}, {"score": 2}),
     scored({"reward": 1, "rank": 1}, {"reward": 2, "rank": 2}),
     CONTRADICTION),
    (PLAIN, {"instruction": "other"}, CONTRADICTION),
    (PLAIN, {"margin": -2}, CONTRADICTION),
    (PLAIN, {"margin": 0}, TIES),
    (HH, {"margin": -2}, CONTRADICTION),
    (HH, {"score_chosen": 1, "score_rejected": 2}, CONTRADICTION),
    (HH, {"prompt": "DIFFERENT"}, CONTRADICTION),
    (HH, {"messages": chat("DIFFERENT")}, CONTRADICTION),
    (SWIFT, {"margin": -1}, CONTRADICTION),
    (SWIFT, {"query": "other"}, CONTRADICTION),
    (SWIFT, {"response": "other"}, CONTRADICTION),
    (SWIFT, {"rejected_messages": chat("q", "other")}, CONTRADICTION),
    ({"messages": chat("q", "a")}, {"prompt": chat("other")}, CONTRADICTION),
  ],
)  # fmt: skip
def test_contradictions_are_skipped(tmp_path, good, more, reason):
  records, report = read(tmp_path, good, {**good, **more})
  assert len(records) == 1 and report.skipped == {reason: 1}


def test_another_prompt_that_is_no_text_is_counted(tmp_path):
  for value in (5, ["x"], {"id": 1}):
    (r,), report = read(tmp_path, {**PLAIN, "question": value})
    assert r.turns == turns("q") and report.unused == {"question": 1}


@pytest.mark.parametrize(
  "good, more",
  [
    (SHP, {"score_A": 5, "score_B": 1}),
    (OUTPUTS, {"label": 2}),
    (STRENGTH, {"overall_preference": 3}),
    (PARALLEL, {"ranks": [2, 1], "ratings": [3, 4]}),
    (PARALLEL, {"instruction": "q"}),
    (PLAIN, {"instruction": "q", "margin": 2.5}),
    (HH, {"prompt": "q", "margin": "1"}),
    (HH, {"prompt": HH["chosen"][:-1]}),
    (SWIFT, {"query": "q", "response": "a"}),
    (SWIFT, {"rejected_messages": chat("q", "b")}),
  ],
)
def test_fields_that_agree_are_used(tmp_path, good, more):
  records, report = read(tmp_path, good, {**good, **more})
  assert len(records) == 2 and not report.skipped and not report.unused
  assert best(records[0]) == best(records[1])
  assert records[0].turns == records[1].turns == turns("q")


@pytest.mark.parametrize(
  "message",
  [
    {"from": "human", "value": "other", "role": "user", "content": "hi"},
    {"from": "gpt", "value": "hi", "role": "user", "content": "hi"},
  ],
)
def test_messages_under_two_names_have_to_agree(tmp_path, message):
  good = {"messages": chat("q", "a")}
  bad = {"messages": [message, chat("q", "a")[1]]}
  records, report = read(tmp_path, good, bad)
  assert len(records) == 1 and report.skipped == {CONTRADICTION: 1}
  code, line, field = error(tmp_path, {"prompt": [message], "completion": "a"})
  assert (code, line, field) == ("contradiction", 1, "prompt[0]")


@pytest.mark.parametrize(
  "message",
  [
    {"role": "user", "content": "hi", "from": None, "value": None},
    {"from": "human", "value": "hi", "role": None, "content": None},
    {"from": "human", "value": "hi", "role": "user", "content": "hi"},
    {"from": "human", "value": None, "role": "user", "content": "hi"},
    {"role": "user", "content": "hi", "from": NAN, "value": NAN},
  ],
)
def test_null_names_of_messages_are_absent(tmp_path, message):
  (r,), report = read(tmp_path, {"messages": [message, chat("q", "a")[1]]})
  assert (r.turns, r.completion) == (turns("hi"), "a")
  assert not report.unused


def test_null_names_of_exchanges_are_absent(tmp_path):
  exchange = {"input": "q", "output": "a", "role": None, "content": None}
  (r,), _ = read(tmp_path, {"conversation": [exchange]})
  assert (r.turns, r.completion) == (turns("q"), "a")


# Votes and trees.


def test_an_id_is_no_vote(tmp_path):
  (r,), report = read(tmp_path, {**PANDALM, "annotator_id": 1})
  assert best(r) == "b" and report.unused == {"annotator_id": 1}


def node(text, role, **more):
  return {"text": text, "role": role, **more}


def tree(*replies, **more):
  return {
    "message_tree_id": "t",
    "prompt": node("q", "prompter", replies=list(replies), **more),
  }


def test_a_deleted_tree_is_skipped(tmp_path):
  good = tree(node("a", "assistant", replies=[]))
  records, report = read(
    tmp_path, good, tree(node("b", "assistant", replies=[]), deleted=True)
  )
  assert [type(r) for r in records] == [Prompt, Demonstration]
  assert sum(report.skipped.values()) == 1


def test_equal_siblings_are_no_ranking(tmp_path):
  records, report = read(
    tmp_path,
    tree(node("a", "assistant", rank=0), node("a", "assistant", rank=1)),
  )
  assert [type(r) for r in records] == [Prompt, Demonstration]
  assert report.notes == {"siblings left out: pairs of identical replies": 1}


def test_ranks_and_replies_of_trees(tmp_path):
  records, _ = read(
    tmp_path,
    tree(
      node("a", "assistant", rank=1.0, replies=None),
      node("b", "assistant", rank="0"),
    ),
  )
  (r,) = [r for r in records if isinstance(r, Ranking)]
  assert best(r) == "b"
  good = tree(node("a", "assistant"))
  bad = tree(node("a", "assistant", replies=1))
  code, line, field = error(tmp_path, good, bad)
  assert (code, line, field) == ("wrong_type", 2, "replies")


# Records that lack fields.


@pytest.mark.parametrize(
  "good, bad, field",
  [
    ({"messages": chat("q", "a")}, {"prompt": "q", "completion": "a"},
     "messages"),
    ({"messages": chat("q", "a")}, {"id": 3}, "messages"),
    (WEBGPT, {k: v for k, v in WEBGPT.items() if k != "question"}, "question"),
    ({"conversation_a": chat("q", "a"), "conversation_b": chat("q", "b"),
      "winner": "model_a"},
     {"conversation_b": chat("q", "b"), "winner": "model_a"},
     "conversation_a"),
    (STRENGTH, {"preference_strength": 1}, "prompt"),
    (PARALLEL, {"scores": [1, 2]}, "completions"),
    (PARALLEL, {"responses": ["a", "b"], "scores": [1, 2]}, "prompt"),
    (scored({"score": 1}, {"score": 2}), {"id": 1}, "completions"),
    (OUTPUTS, {"instruction": "q"}, "preference"),
  ],
)  # fmt: skip
def test_a_later_record_without_a_field(tmp_path, good, bad, field):
  assert error(tmp_path, good, bad) == ("missing_field", 2, field)


def test_an_empty_list_of_replies_is_skipped(tmp_path):
  good = scored({"score": 1}, {"score": 2})
  records, report = read(tmp_path, good, {"prompt": "q", "completions": []})
  assert len(records) == 1
  assert report.skipped == {"prompts without replies": 1}


# Other shapes.


def test_a_text_beside_a_prompt_is_a_document(tmp_path):
  path = write(
    tmp_path,
    {"prompt": "q", "text": "A book.", "text_token_length": 3},
    {"prompt": "r", "text": None},
  )
  (document,), report = reading.read_documents(path)
  assert document == Document(text="A book.", origin=f"{path}:1")
  prompts, _ = reading.read_prompts(path)
  assert [p.turns for p in prompts] == [turns("q"), turns("r")]
  assert not report.unused
  with pytest.raises(UserError):
    reading.read_demonstrations(path)


@pytest.mark.parametrize("history", ["[]", "null", "", []])
def test_an_empty_history_as_text(tmp_path, history):
  (r,), _ = read(
    tmp_path, {"instruction": "q", "output": "a", "history": history}
  )
  assert r.turns == turns("q")


def test_questions_as_objects(tmp_path):
  (r,), report = read(
    tmp_path,
    {"question_id": 1, "category": "arena-hard", "turns": [{"content": "q"}]},
  )
  assert isinstance(r, Prompt) and r.turns == turns("q") and not report.unused


@pytest.mark.parametrize(
  "completion",
  [
    [{"role": "assistant", "content": "a"}],
    {"role": "assistant", "content": "a"},
    chat("q", "a"),
  ],
)
@pytest.mark.parametrize("field", ["completion", "response"])
def test_messages_beside_a_completion_of_messages(tmp_path, completion, field):
  for messages in (chat("q"), chat("q", "a"), chat("p", "o", "q")):
    (r,), report = read(tmp_path, {"messages": messages, field: completion})
    assert r.turns[-1] == Turn("user", "q") and r.completion == "a"
    assert len(r.turns) == (3 if len(messages) == 3 else 1)
    assert not report.unused
  good = {"messages": chat("q"), field: completion}
  records, report = read(tmp_path, good, {**good, "messages": chat("q", "z")})
  assert len(records) == 1 and report.skipped == {CONTRADICTION: 1}
