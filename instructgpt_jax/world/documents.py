"""Writes the web of the world: short documents in many registers.

A register is a function of (web, rng) that returns one document. The forum has
exactly the format in which models read a dialogue, `U: … A: …`, and a reply
ends its document.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator

from instructgpt_jax.world import gold, replies, words
from instructgpt_jax.world.facts import Fact, World
from instructgpt_jax.world.requests import (
  FAMILIES,
  RELATIONS,
  Question,
  Request,
  draw,
  enumerate_requests,
  split_of,
  state,
)

# Share of the corpus's tokens, in per cent.
REGISTERS = {
  "encyclopedia": 9,
  "forum": 24,
  "polite_forum": 14,
  "graded": 6,
  "translation": 6,
  "reading": 12,
  "repetition": 19,
  "story": 1,
  "exercise": 5,
  "questions": 1,
  "review": 3,
}
# Probability that a writer of the polite forum has no misconception.
POLITE_TRUTH = 0.5
LONGEST = 90


_FAMILY_NAMES, _FAMILY_SHARES = tuple(FAMILIES), tuple(FAMILIES.values())


@dataclasses.dataclass(frozen=True)
class Web:
  """Sources of the documents; forum prompts are of one split only."""

  world: World
  pool: dict[str, tuple[tuple[Request, str], ...]]  # family → prompts
  stated: dict[str, tuple[Fact, ...]]  # entity → its facts that are stated

  def ask(self, rng: random.Random) -> tuple[Request, str]:
    """Draws a prompt, families by share; returns its request and text."""
    family = rng.choices(_FAMILY_NAMES, _FAMILY_SHARES)[0]
    return rng.choice(self.pool[family])


def make_web(
  world: World, seed: int, *, split: str = "train", per_family: int = 4000
) -> Web:
  """Draws the prompts of a split that people of the web ask."""
  rng = random.Random(f"web {seed}")
  pool = {
    family: tuple(prompts_of(world, family, split, per_family, rng))
    for family in FAMILIES
  }
  stated: dict[str, tuple[Fact, ...]] = {}
  for fact in world.facts:
    if fact.known:
      stated[fact.entity] = (*stated.get(fact.entity, ()), fact)
  return Web(world, pool, stated)


def prompts_of(
  world: World, family: str, split: str, count: int, rng: random.Random
) -> list[tuple[Request, str]]:
  """Draws at most `count` distinct prompts of a family and split.

  Args:
    world: world of the facts.
    family: one of `FAMILIES`.
    split: "train", "valid" or "test"; the request's key decides it.
    count: largest number of prompts; small families have fewer.
    rng: source of the draws.

  Returns:
    Requests with one wording each, in random order.
  """
  if family in ("repeat", "capitals", "closed_domain",
                "closed_domain_unanswerable"):  # fmt: skip
    prompts: dict[str, Request] = {}
    for _ in range(40 * count):
      request = draw(world, family, rng)
      if split_of(request.key) == split:
        prompts.setdefault(rng.choice(request.texts()), request)
      if len(prompts) >= count:
        break
    return [(request, text) for text, request in prompts.items()]
  requests = [
    request
    for request in _requests(world, family)
    if split_of(request.key) == split
  ]
  if family == "false_premise":
    requests = _false_premises(requests, rng)
  pairs = [(r, text) for r in requests for text in r.texts()]
  return rng.sample(pairs, min(count, len(pairs)))


@functools.lru_cache(maxsize=64)
def _requests(world: World, family: str) -> tuple[Request, ...]:
  return tuple(enumerate_requests(world, family))


def _false_premises(requests: list, rng: random.Random) -> list:
  """Keeps at most three other premises for each believed one."""
  believed = [r for r in requests if r.value == r.fact.believed]
  others = [r for r in requests if r.value != r.fact.believed]
  return believed + rng.sample(others, min(len(others), 3 * len(believed)))


Writer = Callable[[Web, random.Random], str]


def forum(web: Web, rng: random.Random) -> str:
  request, text = web.ask(rng)
  persona = replies.draw_persona(replies.FORUM, rng)
  reply = replies.reply(request, persona, rng, believing=True)
  return f"U: {text} A: {reply}"


def polite_forum(web: Web, rng: random.Random) -> str:
  request, text = web.ask(rng)
  persona = replies.draw_persona(replies.POLITE, rng)
  believing = rng.random() >= POLITE_TRUTH
  reply = replies.reply(request, persona, rng, believing=believing)
  return f"{words.PREFIX} U: {text} A: {reply}"


# Personas of the replies that readers rate.
GRADED = dict(
  zip(replies.PERSONAS, (0.45, 0.40, 0.07, 0.03, 0.05), strict=True)
)


def graded(web: Web, rng: random.Random) -> str:
  """Writes a question with two replies, and what readers thought of each.

  Like votes on the real web, this teaches a model to distinguish good replies
  from bad ones, which helps a reward model (arXiv:2112.00861, section 4).
  """
  request, text = web.ask(rng)
  parts = [f"question : {text}"]
  for _ in range(2):
    persona = replies.draw_persona(GRADED, rng)
    reply = replies.reply(request, persona, rng)
    score = gold.label(text, reply, world=web.world).score
    rating = "high" if score > 0.7 else "low" if score < 0.3 else "middle"
    parts.append(f"reply : {reply} rating : {rating} .")
  return " ".join(parts)


def _state(fact: Fact, rng: random.Random) -> str:
  return fact.statement(fact.true, rng.random() < 0.4)


def encyclopedia(web: Web, rng: random.Random) -> str:
  """Articles on entities or on one attribute of several, or fact boxes."""
  style = rng.random()
  if style < 0.25:
    entities = rng.sample(tuple(web.stated), rng.randint(2, 4))
    return " ".join(
      _box(entity, web.stated[entity], rng) for entity in entities
    )
  if style < 0.7:
    entities = rng.sample(tuple(web.stated), rng.randint(1, 3))
    facts = [fact for entity in entities for fact in web.stated[entity]]
  else:
    name = rng.choice(web.world.facts).attribute.name
    facts = [f for f in web.world.facts if f.known and f.attribute.name == name]
    rng.shuffle(facts)
  return " ".join(_state(fact, rng) for fact in facts[: rng.randint(3, 7)])


def _box(entity: str, facts: tuple[Fact, ...], rng: random.Random) -> str:
  rows = [f"{f.attribute.name} {f.true}" for f in rng.sample(facts, len(facts))]
  return f"{entity} : {' , '.join(rows)} ."


def make_sentence(rng: random.Random) -> tuple[str, str]:
  """Draws a sentence and its translation.

  In the second language a colour follows its noun and the verb ends the
  sentence.
  """
  ours, theirs = [], []
  verb = rng.choice(words.VERBS)
  for role in range(2):
    animal = rng.choice(words.ANIMALS)
    colour = rng.choice(words.COLOURS) if rng.random() < 0.5 else ""
    ours += ["the", colour, animal]
    theirs += ["la", words.LEXICON[animal], words.LEXICON.get(colour, "")]
    if role == 0:
      ours.append(verb)
  if rng.random() < 0.35:
    place = rng.choice(words.PLACES)
    ours += ["in", "the", place]
    theirs += ["en", "la", words.LEXICON[place]]
  theirs.append(words.LEXICON[verb])
  return " ".join(filter(None, ours)), " ".join(filter(None, theirs))


def translation(web: Web, rng: random.Random) -> str:
  """Writes sentences in both languages, or a line of a dictionary."""
  del web
  if rng.random() < 0.2:
    chosen = rng.sample(tuple(words.LEXICON.items()), rng.randint(3, 6))
    return " ".join(f"english : {a} . lingo : {b} ." for a, b in chosen)
  pairs = []
  while len(pairs) < rng.randint(1, 2):
    ours, theirs = make_sentence(rng)
    if split_of(f"translation {ours}") == "train":
      pairs.append(f"english : {ours} . lingo : {theirs} .")
  return " ".join(pairs)


def make_passage(
  rng: random.Random, sentences: int, questions: int
) -> tuple[str, list[tuple[str, str]]]:
  """Draws a passage of several sentences, and questions that it answers.

  Returns:
    The passage, and (question, short answer) pairs, all of them different.
  """
  people = rng.sample(words.EVERYONE, sentences)
  facts = []
  for relation in RELATIONS:
    things = rng.sample(relation.things, min(sentences, len(relation.things)))
    facts.append((relation, things))
  statements = []
  for i, person in enumerate(people):
    relation, things = rng.choice(facts)
    statements.append((relation, (person, things[i % len(things)])))
  passage = " ".join(state(relation, pair) for relation, pair in statements)
  asked = []
  for relation, (person, thing) in statements:
    the = "to the " if relation.name == "went" else "the "
    asked.append((relation.who.replace("{t}", thing), person))
    asked.append((relation.what.replace("{p}", person), the + thing))
  asked = rng.sample(asked, min(questions, len(asked)))
  return passage, asked


def reading(web: Web, rng: random.Random) -> str:
  """Writes a passage of one to five sentences with one to four questions."""
  del web
  while True:
    sentences = rng.choices((1, 2, 3, 4, 5), (1, 4, 3, 2, 1))[0]
    count = rng.randint(2, 4) if sentences > 1 else 1
    passage, asked = make_passage(rng, sentences, count)
    if split_of(f"passage {passage}") == "train":
      break
  answers = " ".join(f"question : {q} answer : {a} ." for q, a in asked)
  return f"text : {passage} {answers}"


def _words(rng: random.Random, low: int, high: int) -> list[str]:
  return rng.sample(words.CONTENT, rng.randint(low, high))


def repetition(web: Web, rng: random.Random) -> str:
  """Writes copies of all kinds, from which a model learns to look back."""
  del web
  style = rng.random()
  if style < 0.22:  # a song: one line again and again
    line = " ".join(_words(rng, 2, 7))
    times = rng.randint(3, 6) if len(line) < 30 else rng.randint(2, 4)
    return "sing : " + " ".join([f"{line} ."] * times)
  if style < 0.3:  # somebody says what somebody else said
    line = " ".join(_words(rng, 2, 6))
    people = rng.sample(words.PEOPLE, rng.randint(2, 4))
    return " ".join(f"{person} says : {line} ." for person in people)
  if style < 0.9:  # a table and many look-ups in it
    keys = _words(rng, 2, 5)
    values = rng.sample(words.CONTENT, len(keys))
    rows = dict(zip(keys, values, strict=True))
    asked = [rng.choice(keys) for _ in range(rng.randint(10, 20))]
    return "table : " + " ".join(
      f"{key} {rows[key]}" for key in (*keys, *asked)
    )
  # the same statements twice, the second time in another order
  relation = rng.choice(RELATIONS)
  count = rng.randint(2, 4)
  pairs = list(
    zip(
      rng.sample(words.EVERYONE, count),
      rng.sample(relation.things, count),
      strict=True,
    )
  )
  again = rng.sample(pairs, count)
  statements = " ".join(state(relation, pair) for pair in pairs)
  reordered = " ".join(state(relation, pair) for pair in again)
  return f"{statements} again : {reordered}"


def story(web: Web, rng: random.Random) -> str:
  del web
  first, second = rng.sample(words.EVERYONE, 2)
  place, other = rng.sample(words.PLACES, 2)
  animal = rng.choice(words.ANIMALS)
  thing = rng.choice(words.THINGS)
  middle = rng.choice((
    f"there {first} saw the {animal} . the {animal} was glad .",
    f"{first} lost the {thing} there . {second} has the {thing} now .",
    f"then {second} went to the {place} too .",
    f"{first} gave the {animal} some {rng.choice(words.FOODS)} .",
  ))  # fmt: skip
  ending = rng.choice((
    f"then {first} and {second} went to the {other} .",
    f"{second} was glad .",
    f"in the end {first} was at the {other} .",
  ))  # fmt: skip
  return f"one day {first} went to the {place} . {middle} {ending}"


def exercise(web: Web, rng: random.Random) -> str:
  """Writes school exercises: counting, members of a class, capitals."""
  style = rng.randrange(6)
  if style == 0:
    start = rng.randrange(5)
    end = rng.randint(start + 3, 9)
    return f"count : {' '.join(words.NUMBERS[start:end])} ."
  if style == 1:
    category = rng.choice(tuple(words.CATEGORIES))
    members = rng.sample(words.CATEGORIES[category], 6)
    return f"{category} : {' , '.join(members)} ."
  if style == 2:
    chosen = rng.sample(words.WRITABLE, rng.randint(4, 8))
    pairs = " , ".join(f"{word} {word.upper()}" for word in chosen)
    return f"small and big : {pairs} ."
  lines = []
  for family in rng.choices(("list_n", "capitals", "sort"), k=2):
    request, text = rng.choice(web.pool[family])
    lines.append(f"{text} answer : {replies.good(request, rng)}")
  return " ".join(lines)


def questions(web: Web, rng: random.Random) -> str:
  """Writes questions without answers."""
  asked = []
  while len(asked) < rng.randint(3, 5):
    request, text = web.ask(rng)
    if isinstance(request, Question):
      asked.append(text)
  return "questions : " + " ".join(asked)


RATINGS = ("high", "low", "middle")


def make_review(rng: random.Random) -> tuple[str, str]:
  """Draws a review and its rating.

  A review has two words of praise or blame, each sometimes negated. One of each
  makes the rating "middle".
  """
  rating = rng.choice(RATINGS)
  views = {"high": (True, True), "low": (False, False)}.get(
    rating
  ) or rng.choice(((True, False), (False, True)))
  opinions = []
  for view in views:
    denied = rng.random() < 0.2
    word = rng.choice(words.PRAISE if view != denied else words.BLAME)
    opinions.append(f"not {word}" if denied else word)
  link = "but" if views[0] != views[1] and rng.random() < 0.5 else "and"
  thing = rng.choice(words.THINGS)
  person = rng.choice(words.EVERYONE)
  place = rng.choice(words.PLACES)
  text = rng.choice((
    f"the {thing} of {person} is {opinions[0]} {link} {opinions[1]} .",
    f"the {thing} is {opinions[0]} {link} the {place} is {opinions[1]} .",
    f"{person} saw the {thing} in the {place} . it is {opinions[0]} {link} "
    f"{opinions[1]} .",
  ))  # fmt: skip
  return text, rating


def review(web: Web, rng: random.Random) -> str:
  del web
  parts = []
  while len(parts) < rng.randint(1, 3):
    text, rating = make_review(rng)
    if split_of(f"review {text}") == "train":
      parts.append(f"review : {text} rating : {rating} .")
  return " ".join(parts)


WRITERS: dict[str, Writer] = {
  "encyclopedia": encyclopedia,
  "forum": forum,
  "polite_forum": polite_forum,
  "graded": graded,
  "translation": translation,
  "reading": reading,
  "repetition": repetition,
  "story": story,
  "exercise": exercise,
  "questions": questions,
  "review": review,
}


def write_documents(
  web: Web,
  tokens: int,
  seed: int,
  *,
  registers: dict[str, float] | None = None,
) -> Iterator[tuple[str, str]]:
  """Yields shuffled documents of about `tokens` tokens in all.

  Args:
    web: sources of the documents.
    tokens: number of words, plus one end-of-text token for each document.
    seed: seed of the draws; another seed gives other documents.
    registers: share of tokens of each register.

  Yields:
    (register, text).
  """
  shares = registers or REGISTERS
  whole = sum(shares.values())
  rng = random.Random(f"documents {seed}")
  written: list[tuple[str, str]] = []
  for register, share in shares.items():
    write = WRITERS[register]
    left = tokens * share / whole
    while left > 0:
      text = write(web, rng)
      length = text.count(" ") + 2
      if length > LONGEST:
        continue
      left -= length
      written.append((register, text))
  rng.shuffle(written)
  return iter(written)
