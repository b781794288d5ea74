"""The package's own sets: each item has right and wrong answers."""

import collections

import pytest

from instructgpt_jax.evaluation.tasks import answers, made_here, registry
from instructgpt_jax.runs import files
from tests.evaluation.tasks import fakes

SETS = ("generalisation", "simple_mistakes")
ITEMS = [
  (name, item)
  for name in SETS
  for item in files.read_json(made_here._DATA / f"{name}.json")
]


@pytest.mark.parametrize(
  ("name", "item"), ITEMS, ids=[item["id"] for _, item in ITEMS]
)
def test_right_answers_pass_and_wrong_ones_fail(name, item):
  assert set(item) == {
    "id", "kind", "prompt", "answer", "right", "wrong", "check",
  }  # fmt: skip
  assert set(item["check"]) <= set(made_here.CHECKS)
  assert item["right"] and len(item["wrong"]) >= 2
  for answer in (item["answer"], *item["right"]):
    assert made_here.is_fulfilled(answer, item["check"]), answer
  for answer in (*item["wrong"], item["prompt"], " \n"):
    assert not made_here.is_fulfilled(answer, item["check"]), answer


def test_the_sets_cover_their_kinds():
  kinds = {
    name: collections.Counter(item["kind"] for n, item in ITEMS if n == name)
    for name in SETS
  }
  assert set(kinds["generalisation"]) == {"language", "code"}
  assert set(kinds["simple_mistakes"]) == {
    "false_premise", "hedging", "plain_answer", "constraints",
  }  # fmt: skip
  for counts in kinds.values():
    assert 20 <= counts.total() <= 30 and min(counts.values()) >= 4
  assert len({item["id"] for _, item in ITEMS}) == len(ITEMS)


@pytest.mark.parametrize("name", SETS)
def test_scores_by_kind(name):
  asked = registry.load(name, "", count=0, seed=0)
  good = {item.prompt: item.answer for item in asked.items}
  rows = answers.measure(fakes.FakeModel(reply=good.__getitem__), asked)
  assert all(row.scores["fulfilled"] == 1 for row in rows)
  assert all(len(row.scores) == 2 for row in rows)
  rows = answers.measure(fakes.FakeModel(), asked)
  assert all(row.scores["fulfilled"] == 0 for row in rows)


@pytest.mark.parametrize(
  ("answer", "language", "is_right"),
  [
    ("Der Hund ist in dem Haus und schläft.", "de", True),
    ("The dog is in the house and sleeps.", "de", False),
    ("Le chien est dans la maison.", "fr", True),
    ("El perro duerme en la casa.", "fr", False),
    ("El perro duerme en la casa.", "es", True),
    ("Il cane è il mio.", "it", True),
    ("De hond is niet van ons.", "nl", True),
    ("O cão não é meu.", "pt", True),
    ("The first month is janeiro.", "pt", False),
    ("Roma", "it", True),
    ("It is Roma.", "it", False),
    ("Xyz xyz xyz xyz xyz", "it", False),
  ],
)
def test_the_language_of_an_answer(answer, language, is_right):
  check = {"language": language}
  assert made_here.is_fulfilled(answer, check) is is_right


@pytest.mark.parametrize(
  ("check", "right", "wrong"),
  [
    ({"any": ["ls"]}, "Use ls.", "Use else."),
    ({"all": ["a b", "c"]}, "C, and A B", "a, b and c"),
    ({"none": ["don't"]}, "I do", "I don’t"),
    ({"most_words": 2}, "one two", "one two three"),
    ({"most_words": 1}, "```sh\nls\n```", "ls -l"),
    ({"least_words": 2}, "It is.", "Yes!"),
    ({"matches": ["a[+]b", "c$"]}, "`A + b`, 'C'", "a + b, d"),
    ({"denies": ["rock"]}, "That isn’t so.", "It is cheese."),
    ({"denies": ["rock"]}, "It is rock.", "It is known."),
    ({"hedges": []}, "No one knows.", "Everyone knows."),
    ({"hedges": []}, "We don't know.", "We do."),
    ({"words": 3}, "one two three", "one two"),
  ],
)
def test_checks(check, right, wrong):
  assert made_here.is_fulfilled(right, check)
  assert not made_here.is_fulfilled(wrong, check)
