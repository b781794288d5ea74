"""Forms: what is accepted, what is refused, and the order of display."""

import itertools
import json

import pytest

from instructgpt_jax.labeling import forms

RANKING = {"turns": [], "completions": ["a", "b", "c"], "sources": ["x"] * 3}
COMPARISON = {"turns": [], "completions": ["a", "b"]}
GIVEN = {"turns": [{"role": "user", "content": "Why?"}]}


def ranking(**changes):
  content = {
    "ranks": [1, 2, 3],
    "overall": [7, 4, 1],
    "flags": [{}, {"hallucination": True}, {}],
    "notes": "",
    "cannot_judge": None,
  }
  return {**content, **changes}


def demonstration(**changes):
  content = {
    "kind": "plain",
    "intent": "to learn",
    "prompt": "Why?",
    "examples": [],
    "answer": "Because.",
  }
  return {**content, **changes}


def errors(task, payload, content):
  with pytest.raises(forms.FormError) as caught:
    forms.validate(task, payload, content)
  assert caught.value.code == "form" and caught.value.fix
  return set(caught.value.errors)


def test_ranking_is_normalized():
  content = forms.validate(
    "ranking", RANKING, ranking(ranks=[3, 1, 3], notes=" a\r\nb\r ")
  )
  assert content["ranks"] == [2, 1, 2]
  assert content["notes"] == "a\nb"
  assert [sum(flags.values()) for flags in content["flags"]] == [0, 1, 0]
  assert all(set(f) == set(forms.FLAG_NAMES) for f in content["flags"])
  assert content["cannot_judge"] is None
  assert forms.validate("ranking", RANKING, content) == content


def test_the_form_has_the_eleven_fields_of_the_paper():
  assert len(set(forms.FLAG_NAMES)) == 11


@pytest.mark.parametrize(
  "changes, fields",
  [
    ({"ranks": [1, None, 4]}, {"rank-1", "rank-2"}),
    ({"ranks": [0, 1, True]}, {"rank-0", "rank-2"}),
    ({"ranks": [1, 2]}, {"ranks", "rank-0", "rank-1", "rank-2"}),
    ({"ranks": None}, {"rank-0", "rank-1", "rank-2"}),
    ({"ranks": [1.0, 2, 3]}, {"rank-0"}),
    ({"overall": [0, 8, 4]}, {"overall-0", "overall-1"}),
    ({"flags": [{"hallucination": 1}, {}, {}]}, {"flag-0-hallucination"}),
    ({"flags": [{"rude": True}, {}, {}]}, {"flag-0-rude"}),
    ({"flags": [[], {}, {}]}, {"flags-0"}),
    ({"notes": 3}, {"notes"}),
    ({"notes": "\0"}, {"notes"}),
    ({"notes": "\ud800"}, {"notes"}),
    ({"notes": "x" * 2001}, {"notes"}),
    ({"cannot_judge": " "}, {"cannot_judge"}),
    ({"rank": 1}, {"rank"}),
  ],
)
def test_invalid_rankings_name_their_fields(changes, fields):
  assert errors("ranking", RANKING, ranking(**changes)) == fields


def test_a_ranking_that_cannot_be_judged_has_no_ranks():
  content = forms.validate(
    "ranking", RANKING, {"cannot_judge": " In Dutch ", "ranks": [1, 2, None]}
  )
  assert content["cannot_judge"] == "In Dutch"
  assert content["ranks"] == content["overall"] == content["flags"] == []


@pytest.mark.parametrize("content", [None, [], "x", 3])
def test_a_form_is_an_object(content):
  assert errors("ranking", RANKING, content) == {"form"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_display_order_and_stored_order_are_inverse(order):
  stored = forms.validate("ranking", RANKING, ranking())
  shown = forms.to_displayed("ranking", RANKING, stored, order)
  # The page's first answer is the stored one of index order[0].
  assert shown["ranks"] == [stored["ranks"][i] for i in order]
  assert shown["flags"] == [stored["flags"][i] for i in order]
  assert forms.to_stored("ranking", RANKING, shown, order) == stored


def test_the_confidence_of_a_swapped_comparison_is_mirrored():
  shown = {"confidence": 2, "notes": ""}  # the first shown is better
  stored = forms.to_stored("comparison", COMPARISON, shown, [1, 0])
  assert stored["confidence"] == 8
  assert forms.to_displayed("comparison", COMPARISON, stored, [1, 0]) == shown
  assert forms.to_stored("comparison", COMPARISON, shown, [0, 1]) == shown


def test_drafts_without_values_survive_reordering():
  draft = {"ranks": [None, 1, None], "confidence": None}
  shown = forms.to_displayed("ranking", RANKING, draft, [2, 0, 1])
  assert shown["ranks"] == [None, None, 1]
  assert forms.to_stored("comparison", COMPARISON, draft, [1, 0]) == draft


@pytest.mark.parametrize("confidence", [None, 0, 10, "5", True, 4.5])
def test_confidence_is_one_to_nine(confidence):
  content = {"confidence": confidence}
  assert errors("comparison", COMPARISON, content) == {"confidence"}


@pytest.mark.parametrize(
  "payload, changes, fields",
  [
    ({}, {"intent": " "}, {"intent"}),
    ({}, {"kind": "given"}, {"kind"}),
    ({}, {"kind": None, "prompt": "", "answer": ""}, None),
    ({}, {"kind": "few_shot"}, {"examples"}),
    (
      {},
      {"kind": "few_shot", "examples": [["q", ""], ["", "a"]]},
      {"answer-0", "question-1"},
    ),
    ({}, {"examples": [["q"]], "kind": "few_shot"}, {"examples"}),
    (GIVEN, {"answer": "x" * 20_001}, {"answer"}),
  ],
)
def test_invalid_demonstrations_name_their_fields(payload, changes, fields):
  fields = fields or {"kind", "prompt", "answer"}
  assert errors("demonstration", payload, demonstration(**changes)) == fields


def test_a_given_prompt_is_not_stored_again():
  content = forms.validate("demonstration", GIVEN, demonstration())
  assert content["kind"] == "given" and content["prompt"] == ""


def test_empty_rows_of_examples_are_dropped():
  pairs = [["q", "a"], ["", ""], ["r", "b"]]
  content = forms.validate(
    "demonstration", {}, demonstration(kind="few_shot", examples=pairs)
  )
  assert content["examples"] == [["q", "a"], ["r", "b"]]
  assert content["answer"] == ""


def test_screening_has_four_forms():
  sensitive = {"kind": "sensitive", "completions": ["a", "b"]}
  assert forms.validate("screening", sensitive, {"sensitive": [True, False]})[
    "sensitive"
  ] == [True, False]
  assert errors("screening", sensitive, {"sensitive": [True, None]}) == {
    "sensitive-1"
  }
  groups = {"kind": "groups", "groups": ["x", "y"]}
  assert forms.validate("screening", groups, {"groups": ["y"]})["groups"] == [
    "y"
  ]
  assert errors("screening", groups, {"groups": ["z"]}) == {"groups"}
  ranked = {"kind": "ranking", **RANKING}
  assert forms.validate("screening", ranked, ranking())["ranks"] == [1, 2, 3]
  answered = {"kind": "demonstration", **GIVEN}
  assert (
    forms.validate("screening", answered, demonstration())["kind"] == "given"
  )


def test_fields_of_a_page_become_content():
  fields = {
    "rank-0": "2",
    "rank-1": "1",
    "rank-2": "-1",
    "overall-0": "7",
    "overall-1": "seven",
    "flag-1-hallucination": "on",
    "notes": "n",
    "cannot_judge_reason": "not chosen",
  }
  content = forms.parse("ranking", RANKING, fields)
  assert content["ranks"] == [2, 1, None]
  assert content["overall"] == [7, None, None]
  assert content["flags"][1]["hallucination"]
  assert content["cannot_judge"] is None
  json.dumps(content)
  fields = {"question-0": "q", "answer-0": "a", "kind": "few_shot"}
  content = forms.parse("demonstration", {}, fields)
  assert content["examples"] == [["q", "a"]]
  sensitive = {"kind": "sensitive", "completions": ["a", "b"]}
  content = forms.parse("screening", sensitive, {"sensitive-1": "no"})
  assert content["sensitive"] == [None, False]
  content = forms.parse("screening", {"kind": "groups"}, {"group-1": "on"})
  assert content["groups"] == [forms.GROUPS[1]]
