"""Public formats of pairs, K-way rankings, prompts, and their containers."""

import json

import pytest

from instructgpt_jax.data import formats, reading
from instructgpt_jax.data.records import Demonstration, Prompt, Ranking, Turn
from instructgpt_jax.errors import UserError

ORDER_ONLY = "graded preferences, whose order alone is used"
GRADED = f"{ORDER_ONLY} without --reward.margin=grade"


def read(tmp_path, *values, name="x.jsonl"):
  path = tmp_path / name
  path.write_text(
    json.dumps(values[0] if len(values) == 1 else values, indent=1)
    if name.endswith(".json")
    else "".join(json.dumps(v) + "\n" for v in values)
  )
  return reading.read_any(str(path))


def user(text):
  return (Turn("user", text),)


def chat(*texts):
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]


WEBGPT = {
  "question": {"dataset": "eli5", "id": "1", "full_text": "q"},
  "quotes_0": {"title": [], "extract": []},
  "answer_0": "a",
  "tokens_0": {"prefix": [1]},
  "score_0": 0.5,
  "quotes_1": {},
  "answer_1": "b",
  "tokens_1": {},
  "score_1": -0.5,
}
SHP = {
  "post_id": "1",
  "domain": "askbaking_train",
  "history": "q",
  "human_ref_A": "a",
  "human_ref_B": "b",
  "labels": 1,
  "score_A": 9,
  "score_B": 3,
  "score_ratio": 3.0,
  "seconds_difference": 5.0,
}
SUMMARIES = {
  "info": {"id": "t3", "post": "p", "title": "t", "subreddit": "r"},
  "summaries": [
    {"text": "a", "policy": "sup", "note": None},
    {"text": "b", "policy": "ref", "note": None},
  ],
  "choice": 0,
  "worker": "w1",
  "batch": "b0",
  "split": "valid2",
  "extra": {"confidence": 8},
}
POST = user("SUBREDDIT: r/r\n\nTITLE: t\n\nPOST: p\n\nTL;DR:")
OPENAI = {
  "input": {"messages": chat("q"), "tools": []},
  "preferred_output": [{"role": "assistant", "content": "a"}],
  "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
ARENA = {
  "question_id": "1",
  "model_a": "m",
  "model_b": "n",
  "winner": "model_a",
  "judge": "j1",
  "conversation_a": chat("q", "a"),
  "conversation_b": chat("q", "b"),
  "turn": 1,
  "anony": True,
}
SAFE = {
  "prompt": "q",
  "response_0": "a",
  "response_1": "b",
  "better_response_id": 0,
}
STRENGTH = {
  "prompt": "q",
  "response_1": "a",
  "response_2": "b",
  "preference_strength": -2,
}
STRENGTH_3 = {
  "domain": "general",
  "context": chat("q"),
  "response1": "a",
  "response2": "b",
  "overall_preference": -1,
}
MINIMAL = {
  "id": 1,
  "prompt": "q",
  "answer1": "a",
  "answer2": "b",
  "prefer": "left",
  "annotator": 3,
  "annotation_id": 9,
  "lead_time": 1.5,
}
OUTPUTS = {
  "instruction": "q",
  "output_1": "a",
  "output_2": "b",
  "preference": 1.2,
  "annotator": "gpt",
}


@pytest.mark.parametrize(
  "value, change, form",
  [
    (SHP, {"labels": 0, "score_A": 3, "score_B": 9}, "SHP"),
    (WEBGPT, {"score_0": -1, "score_1": 1}, "WebGPT comparisons"),
    (SUMMARIES, {"choice": 1}, "OpenAI summary comparisons"),
    (ARENA, {"winner": "model_b"}, "Chatbot Arena"),
    (SAFE, {"better_response_id": 1}, "PKU-SafeRLHF"),
    (STRENGTH, {"preference_strength": 1}, "HelpSteer preferences"),
    (STRENGTH_3, {"overall_preference": 3}, "HelpSteer preferences"),
    (MINIMAL, {"prefer": "right"}, "Label Studio, JSON-MIN"),
    (OUTPUTS, {"preference": 1.8}, "AlpacaEval/LLMBar pairs"),
  ],
  ids=lambda v: v if isinstance(v, str) else None,
)
def test_verdicts(tmp_path, value, change, form):
  """The better reply has rank 1, whichever it is."""
  rankings, report = read(tmp_path, value, {**value, **change})
  assert report.format == form and not report.skipped
  assert all(isinstance(r, Ranking) for r in rankings)
  assert [r.completions for r in rankings] == [("a", "b")] * 2
  assert [r.ranks for r in rankings] == [(1, 2), (2, 1)]
  assert {r.turns for r in rankings} == {
    POST if value is SUMMARIES else user("q")
  }
  notes = {
    ORDER_ONLY: (SHP, SUMMARIES, OUTPUTS),
    GRADED: (WEBGPT, STRENGTH, STRENGTH_3),
  }
  assert report.notes == {
    n: 2 for n, values in notes.items() if value in values
  }
  is_graded = GRADED in report.notes
  for r in rankings:
    by_grade = sorted(zip(r.grades, r.ranks, strict=False), reverse=True)
    assert [rank for _, rank in by_grade] == ([1, 2] if is_graded else [])
  assert not report.unused or value is WEBGPT


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
OWN = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}


@pytest.mark.parametrize(
  "value, grades",
  [
    ({**PAIR, "margin": 2}, (2, 0)),
    ({**PAIR, "score_chosen": 8, "score_rejected": 5.5}, (2.5, 0)),
    ({**PAIR, "margin": 1, "score_chosen": 8, "score_rejected": 2}, (1, 0)),
    (PAIR, ()),
    (WEBGPT, (1, 0)),
    ({**STRENGTH, "preference_strength": 3}, (0, 3)),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 9]}, (1, 9)),
    ({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}, ()),
    (OWN, ()),
    ({**OWN, "scores": [6, 2]}, (6, 2)),
    ({**OWN, "scores": [6, 2], "grades": [3, 5]}, (3, 5)),
    ({**OWN, "scores": [6, 2], "labeling": {"overall": [7, 1]}}, (7, 1)),
    ({**OWN, "grades": [3, 5], "labeling": {"overall": [7, 1]}}, (3, 5)),
  ],
)
def test_grades_are_read_where_there_are_some(tmp_path, value, grades):
  (r,), _ = read(tmp_path, value)
  assert r.grades == grades


def test_own_grades_are_one_number_for_each_completion(tmp_path):
  for grades, code in (([1], "rank_count"), ([1, "good"], "wrong_type")):
    with pytest.raises(UserError) as caught:
      read(tmp_path, {**OWN, "grades": grades})
    assert (caught.value.code, caught.value.line) == (code, 1)


@pytest.mark.parametrize(
  "value, labeler, split",
  [(SUMMARIES, "w1", "valid"), (ARENA, "j1", ""), (MINIMAL, "3", ""),
   (OUTPUTS, "gpt", "")],
)  # fmt: skip
def test_labelers_of_verdicts(tmp_path, value, labeler, split):
  (r,), _ = read(tmp_path, value)
  assert (r.labeler_id, r.split) == (labeler, split)


@pytest.mark.parametrize(
  "value, reason",
  [
    ({**WEBGPT, "score_0": 0.0, "score_1": 0.0}, "rankings with only ties"),
    ({**ARENA, "winner": "tie (bothbad)"}, "rankings with only ties"),
    ({**ARENA, "conversation_b": chat("z", "b")},
     "pairs whose prompts differ"),
    ({**STRENGTH, "preference_strength": 0}, "rankings with only ties"),
    ({**STRENGTH, "preference_strength": None},
     "replies without a preference"),
    ({**MINIMAL, "prefer": None}, "replies without a preference"),
    ({**OUTPUTS, "preference": 1.5}, "rankings with only ties"),
    ({**OPENAI, "input": {"messages": chat("q"), "tools": [{"f": 1}]}},
     "conversations with tools or tool calls"),
    ({**SHP, "human_ref_B": "a"}, "pairs of identical replies"),
    ({**SHP, "human_ref_B": " "}, "empty completions"),
  ],
)  # fmt: skip
def test_verdicts_that_rank_nothing(tmp_path, value, reason):
  good = {**value}
  for name in (WEBGPT, ARENA, STRENGTH, MINIMAL, OUTPUTS, OPENAI, SHP):
    if name.keys() == value.keys():
      good = name
  rankings, report = read(tmp_path, good, value)
  assert len(rankings) == 1 and report.skipped == {reason: 1}


@pytest.mark.parametrize(
  "value, field, code",
  [
    ({**SHP, "labels": 2}, "labels", "bad_preference"),
    ({**SUMMARIES, "choice": 2}, "choice", "bad_preference"),
    ({**SUMMARIES, "summaries": [{"text": "a"}]}, "summaries",
     "completion_count"),
    ({**OUTPUTS, "preference": 0.5}, "preference", "bad_preference"),
    ({**WEBGPT, "score_0": "x"}, "score_0", "wrong_type"),
    ({**ARENA, "winner": 3}, "winner", "wrong_type"),
  ],
)  # fmt: skip
def test_verdicts_that_are_wrong(tmp_path, value, field, code):
  with pytest.raises(UserError) as e:
    read(tmp_path, value)
  assert (e.value.line, e.value.field, e.value.code) == (1, field, code)


def test_articles_to_summarize(tmp_path):
  info = {"id": "c", "site": "cnn", "title": "t", "article": "x"}
  (r,), _ = read(tmp_path, {**SUMMARIES, "info": info})
  assert r.turns == user("TITLE: t\n\nARTICLE: x\n\nTL;DR:")


def test_openai_preferences(tmp_path):
  rankings, report = read(tmp_path, OPENAI)
  assert report.format == "OpenAI preferences" and not report.unused
  (r,) = rankings
  assert (r.turns, r.completions, r.ranks) == (user("q"), ("a", "b"), (1, 2))


def test_openai_batch_requests(tmp_path):
  def request(*texts, **body):
    return {
      "custom_id": "1",
      "method": "POST",
      "url": "/v1/chat/completions",
      "body": {"model": "m", "messages": chat(*texts), **body},
    }

  records, report = read(
    tmp_path,
    request("a"),
    request("a", "b", "c", max_tokens=9),
    request("a", tools=[{"type": "function"}]),
    request("a", response_format={"type": "json"}),
  )
  prompts = [r for r in records if isinstance(r, Prompt)]
  assert [len(p.turns) for p in prompts] == [1, 3, 1]
  assert report.skipped == {"conversations with tools or tool calls": 1}
  assert report.unused == {"body.response_format": 1}


@pytest.mark.parametrize(
  "value",
  [
    {"messages": chat("q", "a"), "rejected_response": "b"},
    {"messages": chat("q", "a"), "rejected_messages": chat("q", "b")},
    {"messages": chat("q", "a"), "rejected_messages": chat("q", "b")[1:]},
    {"query": "q", "response": "a", "rejected_response": "b"},
  ],
)
def test_rejected_responses(tmp_path, value):
  (r,), report = read(tmp_path, value)
  assert (r.turns, r.completions, r.ranks) == (user("q"), ("a", "b"), (1, 2))
  assert not report.unused


@pytest.mark.parametrize(
  "value",
  [
    {"system_prompt": "S", "question": "q", "response": "a", "id": "niv.1"},
    {"system": "S", "query": "q", "response": "a"},
    {"system": "S", "prompt": "q", "response": "a"},
    {"system": "S", "input": "q", "output": "a"},
    {"prompt": [{"role": "system", "content": "S"}, *chat("q")],
     "response": "a"},
  ],
)  # fmt: skip
def test_single_replies_under_other_names(tmp_path, value):
  (r,), report = read(tmp_path, value)
  assert isinstance(r, Demonstration) and r.completion == "a"
  assert r.turns == (Turn("system", "S"), *user("q"))
  assert not report.unused


# Several scored or ranked replies.


def ultrafeedback(*scores, **fields):
  return {
    "source": "evol_instruct",
    "instruction": "q",
    "models": ["m"] * len(scores),
    "completions": [
      {"model": "m", "response": f"r{i}", "overall_score": s, **fields}
      for i, s in enumerate(scores)
    ],
    "correct_answers": ["None"],
  }


def test_ultrafeedback(tmp_path):
  rankings, report = read(
    tmp_path,
    ultrafeedback(7.5, 9.0, 7.5, 3),
    ultrafeedback("8", "2", custom_system_prompt="S"),
    ultrafeedback(5, 5),
  )
  assert report.format == "scored or ranked replies"
  assert [(r.turns, r.ranks) for r in rankings] == [
    (user("q"), (2, 1, 2, 3)),
    (user("q"), (1, 2)),
  ]
  assert rankings[0].completions == ("r0", "r1", "r2", "r3")
  assert report.skipped == {"rankings with only ties": 1}
  assert report.unused == {"completions[].custom_system_prompt": 1}
  assert report.notes == {GRADED: 3}


def test_ultrafeedback_by_its_ratings(tmp_path):
  def reply(name, *ratings):
    aspects = ("helpfulness", "honesty", "instruction_following")
    return {
      "response": name,
      "annotations": {
        a: {"Rating": r, "Rationale": "x"}
        for a, r in zip(aspects, ratings, strict=False)
      },
    }

  (r,), report = read(
    tmp_path,
    {
      "instruction": "q",
      "completions": [
        reply("a", "3", "N/A", "4"),
        reply("b", "5", "5", "5"),
        reply("c", "N/A"),
      ],
    },
  )
  assert (r.completions, r.ranks) == (("a", "b"), (2, 1))
  assert "rankings without their replies that lack a score" in report.notes


def test_nectar(tmp_path):
  (r,), report = read(
    tmp_path,
    {
      "prompt": "\n\nHuman: q\n\nAssistant: ",
      "answers": [
        {"answer": name, "model": "m", "rank": rank}
        for name, rank in (("a", 2.0), ("b", 1.0), ("c", 2.0), ("d", 7.0))
      ],
      "turns": 1,
      "num_responses": 4,
      "source": ["lmsys"],
      "good_natured": True,
    },
  )
  assert r.turns == user("q") and r.completions == ("a", "b", "c", "d")
  assert r.ranks == (2, 1, 2, 3)
  assert not report.notes and not report.unused


@pytest.mark.parametrize(
  "value",
  [
    {"user_input": "q", "responses_and_scores": [
      {"response": "a", "source": "m", "score": 7},
      {"response": "b", "source": "n", "score": 9}]},
    {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
    {"query": "q", "responses": ["a", "b"], "ratings": [-3.5, 2]},
    {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]},
    {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1],
     "scores": [0.1, 0.2]},
    {"prompt": "q", "answers": ["a", "b"], "ranks": [2, 1]},
    {"prompt": "q", "completions": [
      {"completion": "a", "rank": 2}, {"completion": "b", "rank": 1}]},
  ],
)  # fmt: skip
def test_other_scores(tmp_path, value):
  (r,), report = read(tmp_path, value)
  assert (r.turns, r.completions, r.ranks) == (user("q"), ("a", "b"), (2, 1))
  assert not report.unused and not report.skipped


def test_scores_and_ranks_that_contradict_each_other(tmp_path):
  value = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}
  with pytest.raises(UserError) as e:
    read(tmp_path, {**value, "scores": [1, 2]})
  assert (e.value.code, e.value.field) == ("scores_contradict_ranks", "scores")
  with pytest.raises(UserError) as e:
    read(tmp_path, {**value, "scores": [1]})
  assert (e.value.code, e.value.field) == ("rank_count", "scores")


def helpsteer(prompt, response, helpfulness, **more):
  return {
    "prompt": prompt,
    "response": response,
    "helpfulness": helpfulness,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 1,
    **more,
  }


def test_helpsteer_is_grouped_by_prompt(tmp_path):
  values = [
    helpsteer("p", "a", 3),
    helpsteer("q", "only", 4),
    helpsteer("p", "b", 4),
    helpsteer("p", "c", 3),
    helpsteer("r", "x", 2),
    helpsteer("r", "y", 2),
    helpsteer("p", "d", 1, split="test"),
    helpsteer("p", "e", 2, split="test"),
  ]
  path = tmp_path / "x.jsonl"
  path.write_text("".join(json.dumps(v) + "\n" for v in values))
  rankings, report = reading.read_rankings(str(path))
  assert report.files[0].format == "HelpSteer"
  assert [(r.turns, r.completions, r.ranks, r.split) for r in rankings] == [
    (user("p"), ("a", "b", "c"), (2, 1, 2), ""),
    (user("p"), ("d", "e"), (2, 1), "test"),
  ]
  assert rankings[0].origin == f"{path}:1"
  assert report.skipped == {
    "replies that no other reply to the prompt is compared with": 1,
    "rankings with only ties": 1,
  }
  prompts, report = reading.read_prompts(str(path))
  assert [p.turns for p in prompts] == [user(t) for t in "pqrp"]
  assert not report.skipped


def test_summary_scores_are_grouped_by_worker(tmp_path):
  def value(text, overall, worker):
    return {
      "info": SUMMARIES["info"],
      "summary": {"text": text, "policy": "x",
                  "axes": {"overall": overall, "coverage": 1}},
      "worker": worker, "batch": "b", "split": "test",
    }  # fmt: skip

  rankings, _ = read(
    tmp_path,
    value("a", 3, "w"),
    value("a", 7, "v"),
    value("b", 6, "w"),
    value("b", 2, "v"),
  )
  assert [(r.ranks, r.labeler_id, r.split) for r in rankings] == [
    ((2, 1), "w", "test"),
    ((1, 2), "v", "test"),
  ]
  assert rankings[0].turns == POST


# Label Studio.


def task(*results, data=None, **annotation):
  return {
    "id": 1,
    "data": data or {"prompt": "q", "answer1": "a", "answer2": "b"},
    "annotations": [
      {"id": 2, "completed_by": 5, "result": [r], **annotation} for r in results
    ],
    "predictions": [],
  }


def selected(side):
  return {"type": "pairwise", "value": {"selected": side}}


ITEMS = {
  "prompt": "q",
  "items": [
    {"id": "x", "body": "a"},
    {"id": "y", "body": "b"},
    {"id": 3, "title": "c"},
  ],
}


def test_label_studio_pairs(tmp_path):
  rankings, report = read(
    tmp_path,
    [
      task(selected("left"), selected("right")),
      task(selected("left"), was_cancelled=True),
      task(selected("left"), completed_by={"id": 8, "email": "e"}),
      task(),
    ],
    name="x.json",
  )
  assert report.format == "Label Studio"
  assert [(r.completions, r.ranks, r.labeler_id) for r in rankings] == [
    (("a", "b"), (1, 2), "5"),
    (("a", "b"), (2, 1), "5"),
    (("a", "b"), (1, 2), "8"),
  ]
  assert report.skipped == {
    "cancelled annotations": 1,
    "replies without a preference": 1,
  }


@pytest.mark.parametrize(
  "order",
  [
    ["y", "3", "x"],
    {"rank": ["y", "3", "x"]},
    {"rank": ["y", "3", "x"], "_": []},
    {"_": ["y", 3, "x"]},
  ],
)
def test_label_studio_rankings(tmp_path, order):
  result = {"type": "ranker", "value": {"ranker": order}}
  (r,), report = read(tmp_path, [task(result, data=ITEMS)], name="x.json")
  assert (r.turns, r.completions) == (user("q"), ("b", "c", "a"))
  assert r.ranks == (1, 2, 3) and not report.unused


@pytest.mark.parametrize(
  "order", [["y", 3, "x"], {"rank": ["y", "3", "x"]},
            {"type": "ranker", "ranker": {"rank": ["y", "3", "x"]}}],
)  # fmt: skip
@pytest.mark.parametrize("name", ["items", "answers"])
def test_label_studio_rankings_in_json_min(tmp_path, order, name):
  value = {
    "id": 1,
    "prompt": "q",
    name: ITEMS["items"],
    "ranking": order,
    "annotator": 4,
    "lead_time": 2.5,
  }
  (r,), report = read(tmp_path, [value], name="x.json")
  assert report.format == "Label Studio rankings, JSON-MIN"
  assert (r.turns, r.completions) == (user("q"), ("b", "c", "a"))
  assert (r.ranks, r.labeler_id) == ((1, 2, 3), "4") and not report.unused


def test_label_studio_buckets_rank_nothing(tmp_path):
  result = {
    "type": "ranker",
    "value": {"ranker": {"good": ["x"], "bad": ["y"]}},
  }
  good = {"type": "ranker", "value": {"ranker": ["y", "x"]}}
  rankings, report = read(
    tmp_path, task(good, data=ITEMS), task(result, data=ITEMS)
  )
  assert len(rankings) == 1
  assert report.skipped == {"rankings in several named buckets": 1}
  assert report.notes == {"rankings of a part of their items": 1}


def test_label_studio_fields_that_nothing_reads(tmp_path):
  data = {"prompt": "q", "answer1": "a", "answer2": "b", "persona": "p"}
  _, report = read(tmp_path, task(selected("left"), data=data))
  assert report.unused == {"data.persona": 1}


# Containers.


@pytest.mark.parametrize(
  "name", ["data", "examples", "records", "rows", "train", "completions",
           "conversations"],
)  # fmt: skip
def test_a_list_inside_an_object(tmp_path, name):
  records = [{"messages": chat("q", "a")}, {"messages": chat("r", "a")}]
  documents, report = read(
    tmp_path, {"version": "1", "meta": {"n": 2}, name: records}, name="x.json"
  )
  assert report.format == "messages"
  assert [r.turns for r in documents] == [user("q"), user("r")]
  assert report.unused == {
    f"version (beside {name})": 1,
    f"meta (beside {name})": 1,
  }
  # One value a line by json.dumps(indent=1).
  first, second = (int(r.origin.split(":")[-1]) for r in documents)
  lines = (tmp_path / "x.json").read_text().split("\n")
  assert '"q"' in "".join(lines[first : first + 6])
  assert '"r"' in "".join(lines[second : second + 6])


def test_errors_in_a_list_inside_an_object_name_the_line(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(
    '{"version": 1,\n "data": [\n  {"prompt": "a", "completion": "b"},\n'
    '  {"prompt": "c", "completion": 3}\n ],\n "end": true}\n'
  )
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(path))
  assert (e.value.line, e.value.field) == (4, "completion")


def test_lists_named_after_splits(tmp_path):
  def records(name):
    return [{"prompt": name, "completion": "a"}]

  loaded, _ = read(
    tmp_path,
    {name: records(name) for name in ("train", "validation", "test")},
    name="x.json",
  )
  assert [(r.turns, r.split) for r in loaded] == [
    (user("train"), "train"),
    (user("validation"), "valid"),
    (user("test"), "test"),
  ]


@pytest.mark.parametrize(
  "value",
  [
    {"test": [{"prompt": "q", "completion": "a"}]},
    {"split": "test", "data": [{"prompt": "q", "completion": "a"}]},
    {"data": [{"prompt": "q", "completion": "a", "split": "test"}]},
    {"split": "train",
     "data": [{"prompt": "q", "completion": "a", "split": "test"}]},
  ],
)  # fmt: skip
def test_the_split_of_a_list(tmp_path, value):
  (r,), report = read(tmp_path, value, name="x.json")
  assert r.split == "test" and not report.unused


def test_other_lists_beside_the_records(tmp_path):
  value = {
    "tags": ["x", "y"],
    "features": [{"name": "prompt"}],
    "rows": [{"prompt": "q", "completion": "a"}],
  }
  (r,), report = read(tmp_path, value, name="x.json")
  assert r.turns == user("q")
  assert report.unused == {"tags (beside rows)": 1, "features (beside rows)": 1}


def test_prompts_inside_an_object(tmp_path):
  prompts, _ = read(tmp_path, {"prompts": ["a", "b"]}, name="x.json")
  assert [r.turns for r in prompts] == [user("a"), user("b")]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x"])
def test_texts_beside_an_id_are_a_conversation(tmp_path, name):
  path = tmp_path / name
  path.write_text(json.dumps({"id": "0", "data": ["q1", "a1", "q2", "a2"]}))
  (r,), report = reading.read_any(str(path))
  assert (len(r.turns), r.turns[0], r.completion) == (3, user("q1")[0], "a2")
  assert not report.unused and not report.skipped


def test_a_directory_with_one_conversation(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps({"id": 0, "data": ["q", "a"]}))
  (tmp_path / "b.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
  records, report = reading.read_demonstrations(str(tmp_path))
  assert [r.completion for r in records] == ["a", "c"] and not report.ignored


def test_texts_without_an_id_are_prompts(tmp_path):
  prompts, _ = read(tmp_path, {"version": 1, "data": ["a", "b"]}, name="x.json")
  assert [r.turns for r in prompts] == [user("a"), user("b")]


@pytest.mark.parametrize(
  "value",
  [
    {"prompt": "q", "completions": [{"completion": "a"}]},
    {"messages": chat("q", "a")},
    {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
  ],
)
def test_a_record_is_no_container(tmp_path, value):
  records, _ = read(tmp_path, value, name="x.json")
  assert [r.turns for r in records] == [user("q")]


# What is not recognised.


def test_a_hint_names_only_known_fields(tmp_path):
  for read_kind, value, field in (
    (reading.read_demonstrations, {"promt": "q", "completion": "a"}, "prompt"),
    (reading.read_demonstrations, {"instruction": "q", "outputs": "a"},
     "output"),
    (reading.read_rankings, {"prompt": "q", "choosen": "a", "rejected": "b"},
     "chosen"),
  ):  # fmt: skip
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(value) + "\n")
    try:
      read_kind(str(path))
    except UserError as e:
      assert e.line == 1
      if e.code == "unknown_format":
        assert e.field == field and repr(field) in e.fix
    else:
      raise AssertionError("nothing is wrong with it")


@pytest.mark.parametrize(
  "value",
  [
    {"source": "s", "system_id": "i", "system_output": "o", "context": "c"},
    {"passage": "p", "qas": [{"q": 1}]},
    {"ctx": "c", "endings": ["a", "b"], "ind": 3},
  ],
)
def test_errors_for_other_files_show_their_fields(tmp_path, value):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(value) + "\n")
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(path))
  assert (e.value.code, e.value.field) == ("unknown_format", None)
  assert all(repr(name) in e.value.problem for name in value)
  assert "'prompt' and 'completion'" in e.value.fix
  assert "Alpaca" in e.value.fix and "SHP" not in e.value.fix
  with pytest.raises(UserError) as e:
    reading.read_any(str(path))
  assert all(known.name in e.value.fix for known in formats.FORMATS)


def test_a_list_of_unknown_objects_is_no_list_of_records(tmp_path):
  path = tmp_path / "state.json"
  path.write_text('{"_data_files": [{"filename": "a"}, {"filename": "b"}]}')
  with pytest.raises(UserError) as e:
    reading.read_any(str(path))
  assert "'_data_files'" in e.value.problem
  path.write_text('{\n"data": [\n{"filename": "a"}, {"filename": "b"}]}')
  with pytest.raises(UserError) as e:
    reading.read_any(str(path))
  assert "'filename'" in e.value.problem and e.value.line == 3


def test_an_object_of_objects(tmp_path):
  path = tmp_path / "x.json"
  path.write_text('{"0": {"article": "a"}, "1": {"article": "b"}}')
  with pytest.raises(UserError) as e:
    reading.read_any(str(path))
  assert e.value.code == "unknown_format" and "list" in e.value.fix
