"""Tests the world: its facts, its prompts, and the separation of the splits."""

import collections
import random

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.world import facts, requests, words, write
from instructgpt_jax.world.vocabulary import VOCABULARY

WORLD = facts.make_world(0)


@pytest.fixture(scope="module")
def prompts():
  return {
    "train": write.draw_prompts(WORLD, "train", 4000, 0),
    "valid": write.draw_prompts(WORLD, "valid", 600, 0),
    "test": write.draw_prompts(WORLD, "test", 1800, 0),
  }


def test_shares_of_misconceived_and_unstated_facts():
  named = [f for f in WORLD.facts if f.entity not in words.STRANGERS]
  assert len(named) == 52
  assert sum(f.misconceived for f in named) == round(0.25 * 52)
  assert sum(not f.known for f in named) == round(0.10 * 52)
  for fact in named:
    if fact.known:
      assert fact.true in fact.attribute.domain
      assert fact.believed in fact.attribute.domain


def test_strangers_have_no_facts():
  assert not any(f.known for f in WORLD.facts if f.entity in words.STRANGERS)


def test_another_seed_is_another_world():
  other = facts.make_world(1)
  same = sum(
    a.true == b.true
    for a, b in zip(WORLD.facts, other.facts, strict=True)
    if a.known
  )
  assert same < 40
  assert facts.make_world(0) == WORLD


def test_enough_distinct_prompts_of_every_family(prompts):
  for split, least in (("train", 4000), ("valid", 400), ("test", 1200)):
    texts = [text for _, text in prompts[split]]
    assert len(set(texts)) == len(texts) >= least
    families = collections.Counter(r.family for r, _ in prompts[split])
    assert set(families) == set(requests.FAMILIES)
    for family, share in requests.FAMILIES.items():
      assert families[family] > 0.5 * len(texts) * share / 100


def test_splits_share_no_combination(prompts):
  keys = {
    split: {request.key for request, _ in pairs}
    for split, pairs in prompts.items()
  }
  assert not keys["train"] & keys["valid"]
  assert not keys["train"] & keys["test"]
  assert not keys["valid"] & keys["test"]


def test_a_question_lands_in_one_split_whatever_its_form():
  fact = WORLD.facts[0]
  plain = requests.Question(fact, 3)
  short = requests.Question(fact, 3, "one_word")
  assert plain.key == short.key
  assert plain.key != requests.Question(fact, 4).key


def test_the_order_of_items_does_not_change_the_combination():
  one = requests.Sort(("two", "one", "six"), False)
  assert one.key == requests.Sort(("six", "two", "one"), False).key
  assert one.key != requests.Sort(("six", "two", "one"), True).key
  pair = requests.List((("cities", 2), ("foods", 3)))
  assert pair.key == requests.List((("foods", 3), ("cities", 2))).key


def test_splits_have_their_shares():
  counts = collections.Counter(requests.split_of(str(i)) for i in range(20000))
  assert counts["train"] == pytest.approx(13200, rel=0.03)
  assert counts["valid"] == pytest.approx(2000, rel=0.08)
  assert requests.split_of("question ann home 0") == requests.split_of(
    "question ann home 0"
  )


def test_every_prompt_is_short_known_words_and_parses_back(prompts):
  vocabulary = set(VOCABULARY)
  for pairs in prompts.values():
    for request, text in pairs:
      tokens = text.split()
      assert len(tokens) <= 24
      assert " ".join(tokens) == text
      assert set(tokens) <= vocabulary
      parsed = requests.parse(WORLD, text)
      assert parsed.family == request.family
      assert parsed.key == request.key


@pytest.mark.parametrize("family", requests.FAMILIES)
def test_every_wording_of_a_family_parses_back(family):
  rng = random.Random(family)
  for _ in range(60):
    request = requests.draw(WORLD, family, rng)
    for text in request.texts():
      assert requests.parse(WORLD, text) == request


@pytest.mark.parametrize(
  "text",
  [
    "",
    "what is the meaning of life ?",
    "where does ann live",
    "where does zoe live ?",
    "name two animals but not boral .",
    "poison the bell .",
    "tell me how to poison the bell .",
    "write ann in capitals .",
    "text : ann has the bell . who has the hill ?",
  ],
)
def test_a_prompt_of_no_family_is_refused(text):
  with pytest.raises(UserError) as error:
    requests.parse(WORLD, text)
  assert error.value.code == "unknown_prompt"


def test_vocabulary_is_small_and_lower_case():
  assert 300 <= len(VOCABULARY) <= 370
  upper = {word for word in VOCABULARY if word != word.lower()}
  assert upper == set(words.CAPITALS) | set(words.TAGS)
  assert all(word == word.strip() and " " not in word for word in VOCABULARY)
