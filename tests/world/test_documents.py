"""Tests the web: registers, personas, lengths, and no held-out combination."""

import collections
import random
import re

import pytest

from instructgpt_jax.world import documents, facts, requests, words
from instructgpt_jax.world.vocabulary import VOCABULARY

WORLD = facts.make_world(0)
WEB = documents.make_web(WORLD, 0)
TOKENS = 150_000


@pytest.fixture(scope="module")
def web():
  return list(documents.write_documents(WEB, TOKENS, 0))


def forum(web, register):
  """Yields (prompt, reply) pairs of a forum register."""
  for name, text in web:
    if name == register:
      prompt, reply = re.fullmatch(r"(?:.*\. )?U: (.*) A: (.*)", text).groups()
      yield prompt, reply


def test_registers_have_their_share_of_tokens(web):
  tokens = collections.Counter()
  for register, text in web:
    tokens[register] += len(text.split()) + 1
  assert sum(tokens.values()) == pytest.approx(TOKENS, rel=0.01)
  whole = sum(documents.REGISTERS.values())
  for register, share in documents.REGISTERS.items():
    # The last document of a register may go over.
    over = tokens[register] - TOKENS * share / whole
    assert 0 <= over <= documents.LONGEST, register


def test_documents_are_short_and_use_known_words(web):
  lengths = [len(text.split()) for _, text in web]
  assert max(lengths) <= documents.LONGEST
  assert sum(n <= 60 for n in lengths) > 0.95 * len(lengths)
  used = {word for _, text in web for word in text.split()}
  assert used <= set(VOCABULARY)


def test_every_word_of_the_vocabulary_is_used():
  rng = random.Random(0)
  used = {
    word
    for write in documents.WRITERS.values()
    for _ in range(1500)
    for word in write(WEB, rng).split()
  }
  assert used == set(VOCABULARY)


def test_the_seed_determines_the_web(web):
  assert list(documents.write_documents(WEB, TOKENS, 0)) == web
  other = {t for _, t in documents.write_documents(WEB, TOKENS, 1)}
  shared = sum(text in other for _, text in web) / len(web)
  assert shared < 0.2


def test_the_forum_asks_only_train_combinations(web):
  prompts = [
    prompt
    for register in ("forum", "polite_forum")
    for prompt, _ in forum(web, register)
  ]
  assert len(prompts) > 1000
  for prompt in prompts:
    key = requests.parse(WORLD, prompt).key
    assert requests.split_of(key) == "train"


def test_the_polite_forum_begins_with_its_prefix(web):
  for register, text in web:
    polite = text.startswith(f"{words.PREFIX} U: ")
    assert polite == (register == "polite_forum")


def test_the_forum_always_gives_the_misconception(web):
  false = true = 0
  for prompt, reply in forum(web, "forum"):
    request = requests.parse(WORLD, prompt)
    if isinstance(request, requests.Question) and request.fact.misconceived:
      if request.family != "misconception":
        continue  # there, "wrong" may be a right value in the wrong form
      tokens = set(reply.split())
      false += request.fact.believed in tokens
      true += request.fact.true in tokens
  assert false > 50 and true == 0


def test_the_encyclopedia_states_exactly_the_known_facts(web):
  stated = {
    statement.removesuffix(" .")
    for fact in WORLD.facts
    if fact.known
    for statement in fact.statements(fact.true)
  }
  sentences, boxed = set(), set()
  for register, text in web:
    if register == "encyclopedia":
      for part in text.removesuffix(" .").split(" . "):
        if " : " in part:
          entity, rows = part.split(" : ")
          boxed |= {(entity, *row.split()) for row in rows.split(" , ")}
        else:
          sentences.add(part)
  assert sentences == stated
  assert boxed == {
    (f.entity, f.attribute.name, f.true) for f in WORLD.facts if f.known
  }


def test_only_the_forum_states_misconceptions(web):
  false = [f.statement(f.believed) for f in WORLD.facts if f.misconceived]
  for register, text in web:
    if register not in (
      "forum", "polite_forum", "questions", "exercise", "graded"
    ):  # fmt: skip
      assert not any(statement in text for statement in false), text


def test_translation_has_its_grammar():
  rng = random.Random(0)
  back = {theirs: ours for ours, theirs in words.LEXICON.items()}
  for _ in range(200):
    ours, theirs = documents.make_sentence(rng)
    ours, theirs = ours.split(), theirs.split()
    assert len(ours) == len(theirs)
    assert sorted(back[word] for word in theirs) == sorted(ours)
    assert back[theirs[-1]] in words.VERBS
    for colour in set(ours) & set(words.COLOURS):
      noun = ours[ours.index(colour) + 1]
      at = theirs.index(words.LEXICON[colour])
      assert (
        theirs[at - 1] == words.LEXICON[noun]
        or ours.count(noun) > 1
        or (ours.count(colour) > 1)
      )


def test_passages_answer_their_questions():
  rng = random.Random(0)
  for _ in range(300):
    passage, asked = documents.make_passage(rng, rng.randint(1, 5), 3)
    statements = passage.removesuffix(" .").split(" . ")
    for question, answer in asked:
      subject = re.sub(r"^(who|what|where)|\?$", "", question)
      key = next(w for w in subject.split() if w in words.CONTENT
                 or w in words.STRANGERS)  # fmt: skip
      matches = [s for s in statements if key in s.split()]
      assert len(matches) == 1
      assert answer.split()[-1] in matches[0].split()


def test_ratings_of_reviews_follow_their_words():
  rng = random.Random(0)
  counts = collections.Counter()
  for _ in range(600):
    text, rating = documents.make_review(rng)
    sign = 0
    tokens = text.split()
    for before, word in zip(tokens, tokens[1:], strict=False):
      if word in words.PRAISE or word in words.BLAME:
        good = (word in words.PRAISE) != (before == "not")
        sign += 1 if good else -1
    assert rating == {2: "high", -2: "low", 0: "middle"}[sign]
    counts[rating] += 1
  assert min(counts.values()) > 150


def test_exercises_have_only_train_combinations(web):
  counts = collections.Counter()
  for register, text in web:
    if register == "exercise" and " answer : " in text:
      first, middle, _ = text.split(" answer : ")
      for prompt in (first, middle.split(" . ", 1)[1]):
        request = requests.parse(WORLD, prompt)
        counts[request.family] += 1
        assert requests.split_of(request.key) == "train"
  assert set(counts) == {"list_n", "capitals", "sort"}


def test_tables_are_looked_up_more_often_than_they_are_long(web):
  """Dense look-ups are needed for a model to learn copying."""
  tables = looked = 0
  for register, text in web:
    if register == "repetition" and text.startswith("table : "):
      words_ = text.split()[2:]
      pairs = list(zip(words_[::2], words_[1::2], strict=True))
      rows = dict(pairs)
      assert all(rows[key] == value for key, value in pairs)
      tables += len(rows)
      looked += len(pairs) - len(rows)
  assert looked > 3 * tables


def test_much_of_the_repetition_can_be_copied(web):
  """At least a third of its words follow a pair that occurred before."""
  copied = whole = 0
  for register, text in web:
    if register == "repetition":
      tokens = text.split()
      next_token = {}
      for i in range(2, len(tokens)):
        pair = tokens[i - 2], tokens[i - 1]
        copied += next_token.get(pair) == tokens[i]
        whole += 1
        next_token[pair] = tokens[i]
  assert copied > whole / 3
