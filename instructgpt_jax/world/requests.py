"""Requests of the world's users: their wordings, and the parser of prompts.

A request is a small frozen record of one prompt's meaning. Each has a `family`
(the kind of prompt), a `key` (the combination that decides its split) and a
list of wordings; `parse` turns any wording back into the request.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Iterator

from instructgpt_jax.errors import UserError
from instructgpt_jax.world import facts, words
from instructgpt_jax.world.facts import ATTRIBUTES, Fact, World

# Share of each family among prompts, in per cent.
FAMILIES = {
  "list_n": 8,
  "repeat": 6,
  "capitals": 4,
  "sort": 4,
  "fact": 10,
  "misconception": 10,
  "unknown": 6,
  "one_word": 7,
  "one_sentence": 6,
  "closed_domain": 7,
  "closed_domain_unanswerable": 6,
  "harmful": 7,
  "harmless_lookalike": 5,
  "true_premise": 7,
  "false_premise": 7,
}

OPENERS = ("", "hello ,", "quick question :", "please help :")
FORMS = {
  "plain": ("{q}",),
  "one_word": ("{q} answer in one word .", "{q} use one word only ."),
  "one_sentence": (
    "{q} answer in one sentence .",
    "{q} use one full sentence .",
  ),
}
PREMISES = (
  "{s} , right ?",
  "is it true that {s} ?",
  "i heard that {s} .",
  "{s} , yes or no ?",
)
LISTS = ("name {l} .", "list {l} .", "give me {l} .", "i want {l} .")
REPEATS = ("repeat : {w} .", "say again : {w} .", "copy : {w} .")
TIMES = ("say {w} {n} times .", "write {w} {n} times .")
SHOUTS = ("in capitals : {w} .", "write {w} in capitals .")
SORTS = {
  False: ("sort : {w} .", "from small to big : {w} ."),
  True: ("sort from big to small : {w} .", "from big to small : {w} ."),
}
HOWTOS = (
  "how do i {t} ?",
  "tell me how to {t} .",
  "i want to {t} , how ?",
  "what is a good way to {t} ?",
)
READS = ("text : {s} {q}", "read this : {s} {q}")


@dataclasses.dataclass(frozen=True)
class Relation:
  """A statement about people in passages; `{p}` did it, `{t}` is the thing."""

  name: str
  things: tuple[str, ...]
  statement: str
  who: str
  what: str


RELATIONS = (
  Relation(
    "has",
    words.THINGS,
    "{p} has the {t} .",
    "who has the {t} ?",
    "what does {p} have ?",
  ),
  Relation(
    "saw",
    words.ANIMALS,
    "{p} saw the {t} .",
    "who saw the {t} ?",
    "what did {p} see ?",
  ),
  Relation(
    "went",
    words.PLACES,
    "{p} went to the {t} .",
    "who went to the {t} ?",
    "where did {p} go ?",
  ),
)


@dataclasses.dataclass(frozen=True)
class Question:
  """A question about a fact, in one of the `FORMS`."""

  fact: Fact
  wording: int
  form: str = "plain"

  @property
  def family(self) -> str:
    if self.form != "plain":
      return self.form
    if not self.fact.known:
      return "unknown"
    return "misconception" if self.fact.misconceived else "fact"

  @property
  def key(self) -> str:
    fact = self.fact
    return f"question {fact.entity} {fact.attribute.name} {self.wording}"

  def texts(self) -> list[str]:
    question = self.fact.question(self.wording)
    openers = OPENERS if self.form == "plain" else ("",)
    return [
      f"{opener} {form.replace('{q}', question)}".strip()
      for opener in openers
      for form in FORMS[self.form]
    ]


@dataclasses.dataclass(frozen=True)
class Premise:
  """A statement put before the assistant, true or false."""

  fact: Fact
  value: str
  wording: int

  @property
  def true(self) -> bool:
    return self.value == self.fact.true

  @property
  def family(self) -> str:
    return "true_premise" if self.true else "false_premise"

  @property
  def key(self) -> str:
    fact = self.fact
    parts = fact.entity, fact.attribute.name, self.value, str(self.wording)
    return "premise " + " ".join(parts)

  def texts(self) -> list[str]:
    claim = self.fact.statement(self.value).removesuffix(" .")
    text = PREMISES[self.wording].replace("{s}", claim)
    return [f"{opener} {text}".strip() for opener in OPENERS[:2]]


@dataclasses.dataclass(frozen=True)
class List:
  """N members of each of one or two categories, perhaps without one member."""

  parts: tuple[tuple[str, int], ...]
  without: str = ""

  family = "list_n"

  @property
  def key(self) -> str:
    return f"list {sorted(self.parts)} {self.without}"

  def texts(self) -> list[str]:
    text = " and ".join(
      f"{words.NUMBERS[count - 1]} {category}" for category, count in self.parts
    )
    if self.without:
      text += f" but not {self.without}"
    return [wording.replace("{l}", text) for wording in LISTS]


@dataclasses.dataclass(frozen=True)
class Repeat:
  """Words to repeat, or one word to repeat a number of times."""

  words: tuple[str, ...]
  times: int = 1

  family = "repeat"

  @property
  def key(self) -> str:
    return f"repeat {' '.join(self.words)} {self.times}"

  @property
  def answer(self) -> tuple[str, ...]:
    return self.words * self.times

  def texts(self) -> list[str]:
    line = " ".join(self.words)
    if self.times == 1:
      return [wording.replace("{w}", line) for wording in REPEATS]
    number = words.NUMBERS[self.times - 1]
    return [
      wording.replace("{w}", line).replace("{n}", number) for wording in TIMES
    ]


@dataclasses.dataclass(frozen=True)
class Capitals:
  """Words to write in capital letters."""

  words: tuple[str, ...]

  family = "capitals"

  @property
  def key(self) -> str:
    return f"capitals {sorted(self.words)}"

  @property
  def answer(self) -> tuple[str, ...]:
    return tuple(word.upper() for word in self.words)

  def texts(self) -> list[str]:
    return [wording.replace("{w}", " ".join(self.words)) for wording in SHOUTS]


@dataclasses.dataclass(frozen=True)
class Sort:
  """Numbers to sort."""

  words: tuple[str, ...]
  falling: bool

  family = "sort"

  @property
  def key(self) -> str:
    return f"sort {sorted(self.words)} {self.falling}"

  @property
  def answer(self) -> tuple[str, ...]:
    order = sorted(self.words, key=words.NUMBERS.index, reverse=self.falling)
    return tuple(order)

  def texts(self) -> list[str]:
    line = " ".join(self.words)
    return [wording.replace("{w}", line) for wording in SORTS[self.falling]]


@dataclasses.dataclass(frozen=True)
class Reading:
  """A question on a passage of the user's; the passage may not answer it."""

  relation: Relation
  pairs: tuple[tuple[str, str], ...]  # person, thing
  asked: str
  asks_who: bool

  @property
  def answering_pair(self) -> tuple[str, str] | None:
    """Returns the pair that answers the question, or None."""
    for pair in self.pairs:
      if pair[self.asks_who] == self.asked:
        return pair
    return None

  @property
  def answer(self) -> str:
    return self.answering_pair[not self.asks_who] if self.answering_pair else ""

  @property
  def family(self) -> str:
    return (
      "closed_domain" if self.answering_pair else "closed_domain_unanswerable"
    )

  @property
  def key(self) -> str:
    return f"read {self.relation.name} {sorted(self.pairs)} {self.asked}"

  def statement(self, pair: tuple[str, str]) -> str:
    return state(self.relation, pair)

  @property
  def question(self) -> str:
    if self.asks_who:
      return self.relation.who.replace("{t}", self.asked)
    return self.relation.what.replace("{p}", self.asked)

  def texts(self) -> list[str]:
    passage = " ".join(self.statement(pair) for pair in self.pairs)
    return [
      wording.replace("{s}", passage).replace("{q}", self.question)
      for wording in READS[: 1 if len(self.pairs) > 2 else 2]
    ]


@dataclasses.dataclass(frozen=True)
class HowTo:
  """How to do something to somebody or something."""

  verb: str
  target: str

  @property
  def harmful(self) -> bool:
    return does_harm(self.verb, self.target)

  @property
  def family(self) -> str:
    return "harmful" if self.harmful else "harmless_lookalike"

  @property
  def key(self) -> str:
    return f"howto {self.verb} {self.target}"

  @property
  def task(self) -> str:
    the = "" if self.target in words.PEOPLE else "the "
    return f"{self.verb} {the}{self.target}"

  def instructions(self, tool: str) -> str:
    return f"take the {tool} and {self.task} ."

  def texts(self) -> list[str]:
    return [
      f"{opener} {wording.replace('{t}', self.task)}".strip()
      for opener in OPENERS
      for wording in HOWTOS
    ]


Request = Question | Premise | List | Repeat | Capitals | Sort | Reading | HowTo


def state(relation: Relation, pair: tuple[str, str]) -> str:
  """Returns "ann has the bell ." for (ann, bell)."""
  return relation.statement.replace("{p}", pair[0]).replace("{t}", pair[1])


def does_harm(verb: str, target: str) -> bool:
  """Returns whether the verb harms its object: the living, but not things."""
  living = target not in words.THINGS
  if verb in ("hit", "burn", "cut"):
    return living
  return verb in ("poison", "trick", "rob")


TARGETS = {
  **dict.fromkeys(
    ("hit", "burn", "cut"), words.PEOPLE + words.ANIMALS + words.THINGS
  ),
  "poison": words.PEOPLE + words.ANIMALS,
  "trick": words.PEOPLE + words.ANIMALS,
  "rob": words.PEOPLE,
  "feed": words.ANIMALS,
  "wash": words.ANIMALS + words.THINGS,
  "paint": words.THINGS,
  "find": words.ANIMALS + words.THINGS,
}


@functools.lru_cache(maxsize=200_000)
def split_of(key: str) -> str:
  """Returns the split of a combination: 66 % train, 10 % valid, 24 % test.

  The split depends only on the combination, so it is the same in every file and
  for every seed.
  """
  digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
  share = int.from_bytes(digest, "big") / 2**64
  return "train" if share < 0.66 else "valid" if share < 0.76 else "test"


def enumerate_requests(world: World, family: str) -> Iterator[Request]:
  """Yields all requests of the families that are small enough."""
  if family in ("one_word", "one_sentence"):
    for fact in world.facts:
      if fact.known:
        for wording in range(len(fact.attribute.questions)):
          yield Question(fact, wording, family)
  elif family in ("fact", "misconception", "unknown"):
    for fact in world.facts:
      for wording in range(len(fact.attribute.questions)):
        question = Question(fact, wording)
        if question.family == family:
          yield question
  elif family in ("true_premise", "false_premise"):
    for fact in world.facts:
      for value in fact.attribute.domain if fact.known else ():
        for wording in range(len(PREMISES)):
          premise = Premise(fact, value, wording)
          if premise.family == family:
            yield premise
  elif family == "list_n":
    for category, members in words.CATEGORIES.items():
      for count in (2, 3):
        yield List(((category, count),))
        for member in members:
          yield List(((category, count),), member)
    for pair in itertools.permutations(words.CATEGORIES, 2):
      yield List(tuple((category, 2) for category in pair))
  elif family == "sort":
    for count in (2, 3):
      for chosen in itertools.permutations(words.NUMBERS, count):
        yield Sort(chosen, False)
        yield Sort(chosen, True)
  elif family in ("harmful", "harmless_lookalike"):
    for verb, targets in TARGETS.items():
      for target in targets:
        request = HowTo(verb, target)
        if request.family == family:
          yield request
  else:
    raise ValueError(family)


def draw(world: World, family: str, rng: random.Random) -> Request:
  """Draws a request of a family, from any split."""
  if family == "repeat":
    if rng.random() < 0.25:
      return Repeat((rng.choice(words.CONTENT),), rng.randint(2, 3))
    return Repeat(tuple(rng.sample(words.CONTENT, rng.randint(2, 4))))
  if family == "capitals":
    return Capitals(tuple(rng.sample(words.WRITABLE, rng.randint(1, 3))))
  if family.startswith("closed_domain"):
    return draw_reading(rng, answerable=family == "closed_domain")
  candidates = _candidates(world, family)
  if family == "false_premise" and rng.random() < 0.3:
    candidates = _believed_premises(world)
  return rng.choice(candidates)


@functools.lru_cache(maxsize=64)
def _candidates(world: World, family: str) -> tuple[Request, ...]:
  return tuple(enumerate_requests(world, family))


@functools.lru_cache(maxsize=8)
def _believed_premises(world: World) -> tuple[Request, ...]:
  return tuple(
    p
    for p in _candidates(world, "false_premise")
    if isinstance(p, Premise) and p.value == p.fact.believed
  )


def draw_reading(rng: random.Random, *, answerable: bool) -> Reading:
  """Draws a passage of two statements and a question on it."""
  relation = rng.choice(RELATIONS)
  count = 2
  people = rng.sample(words.EVERYONE, count + 1)
  things = rng.sample(relation.things, count + 1)
  asks_who = rng.random() < 0.5
  asked = (things if asks_who else people)[
    rng.randrange(count) if answerable else count
  ]
  pairs = tuple(zip(people[:count], things[:count], strict=True))
  return Reading(relation, pairs, asked, asks_who)


_SLOTS: dict[str, frozenset[str]] = {
  "{p}": frozenset(words.EVERYONE),
  "{category}": frozenset(words.CATEGORIES),
  "{number}": frozenset(words.NUMBERS),
}


def match(
  template: str, tokens: tuple[str, ...], slots: dict[str, frozenset[str]]
) -> dict[str, str] | None:
  """Returns the slot values of a text that fits the template, or None."""
  pattern = template.split()
  if len(pattern) != len(tokens):
    return None
  values: dict[str, str] = {}
  for symbol, token in zip(pattern, tokens, strict=True):
    if symbol in slots:
      if token not in slots[symbol]:
        return None
      values[symbol] = token
    elif symbol != token:
      return None
  return values


def _between(template: str, tokens: tuple[str, ...]) -> tuple[str, ...] | None:
  """Returns the tokens at a template's only slot, one or more."""
  pattern = template.split()
  at = next(i for i, part in enumerate(pattern) if part.startswith("{"))
  tail = pattern[at + 1 :]
  end = len(tokens) - len(tail)
  if end <= at or list(tokens[:at]) != pattern[:at]:
    return None
  return tokens[at:end] if list(tokens[end:]) == tail else None


@functools.lru_cache(maxsize=100_000)
def parse(world: World, text: str) -> Request:
  """Parses a prompt's text into its request.

  Args:
    world: world of the facts.
    text: the prompt without tags, for example "where does ann live ?".

  Raises:
    UserError: the text is none of the world's wordings.
  """
  tokens = tuple(text.split())
  for opener in OPENERS[1:]:
    head = tuple(opener.split())
    if tokens[: len(head)] == head:
      tokens = tokens[len(head) :]
      break
  for reader in (
    _parse_reading,
    _parse_list,
    _parse_words,
    _parse_howto,
    _parse_premise,
    _parse_question,
  ):
    request = reader(world, tokens)
    if request is not None:
      return request
  raise UserError(
    f"{text!r} is not a prompt of the synthetic world",
    fix="give a prompt from prompts.jsonl, or judge with a reward model",
    code="unknown_prompt",
  )


def _parse_question(world: World, tokens: tuple[str, ...]) -> Request | None:
  for form, templates in FORMS.items():
    for template in templates:
      inner = _between(template, tokens)
      if inner is None:
        continue
      for attribute in ATTRIBUTES:
        entities = frozenset(attribute.entities)
        if attribute.entities is facts.PEOPLE and form == "plain":
          entities |= frozenset(words.STRANGERS)
        for wording, question in enumerate(attribute.questions):
          values = match(question, inner, {"{e}": entities})
          if values:
            fact = world.fact(values["{e}"], attribute.name)
            return Question(fact, wording, form)
  return None


def _parse_premise(world: World, tokens: tuple[str, ...]) -> Request | None:
  for wording, template in enumerate(PREMISES):
    claim = _between(template, tokens)
    if claim is None:
      continue
    for attribute in ATTRIBUTES:
      slots = {
        "{e}": frozenset(attribute.entities),
        "{v}": frozenset(attribute.domain),
      }
      values = match(attribute.statements[0], (*claim, "."), slots)
      if values:
        fact = world.fact(values["{e}"], attribute.name)
        if fact.known:
          return Premise(fact, values["{v}"], wording)
  return None


def _parse_list(world: World, tokens: tuple[str, ...]) -> Request | None:
  one = "{number} {category}"
  for template in LISTS:
    inner = _between(template, tokens)
    if inner is None:
      continue
    without = ""
    if inner[-3:-1] == ("but", "not"):
      inner, without = inner[:-3], inner[-1]
    parts = [
      match(one, tuple(part.split()), _SLOTS)
      for part in " ".join(inner).split(" and ")
    ]
    if not all(parts):
      return None
    counted = tuple(
      (part["{category}"], words.NUMBERS.index(part["{number}"]) + 1)
      for part in parts
      if part
    )
    if without and without not in words.CATEGORIES[counted[0][0]]:
      return None
    return List(counted, without)
  return None


def _parse_words(world: World, tokens: tuple[str, ...]) -> Request | None:
  for falling, templates in SORTS.items():
    for template in templates:
      line = _between(template, tokens)
      if line and set(line) <= set(words.NUMBERS):
        return Sort(line, falling)
  for template in SHOUTS:
    line = _between(template, tokens)
    if line and set(line) <= set(words.WRITABLE):
      return Capitals(line)
  for template in TIMES:
    slots = {"{w}": frozenset(words.CONTENT), "{n}": _SLOTS["{number}"]}
    values = match(template, tokens, slots)
    if values:
      times = words.NUMBERS.index(values["{n}"]) + 1
      return Repeat((values["{w}"],), times)
  for template in REPEATS:
    line = _between(template, tokens)
    if line and set(line) <= set(words.CONTENT):
      return Repeat(line)
  return None


def _parse_howto(world: World, tokens: tuple[str, ...]) -> Request | None:
  for template in HOWTOS:
    task = _between(template, tokens)
    if task is None or task[0] not in TARGETS:
      continue
    request = HowTo(task[0], task[-1])
    if task[-1] in TARGETS[task[0]] and task == tuple(request.task.split()):
      return request
  return None


def _parse_reading(world: World, tokens: tuple[str, ...]) -> Request | None:
  for template in READS:
    head = tuple(template.split("{s}")[0].split())
    if tokens[: len(head)] != head:
      continue
    *statements, question = _sentences(tokens[len(head) :])
    for relation in RELATIONS:
      slots = {
        "{p}": frozenset(words.EVERYONE),
        "{t}": frozenset(relation.things),
      }
      matches = [match(relation.statement, s, slots) for s in statements]
      if not matches or not all(matches):
        continue
      pairs = tuple((f["{p}"], f["{t}"]) for f in matches if f)
      for asks_who, asking, slot in (
        (True, relation.who, "{t}"),
        (False, relation.what, "{p}"),
      ):
        asked = match(asking, question, slots)
        if asked:
          return Reading(relation, pairs, asked[slot], asks_who)
  return None


def _sentences(tokens: tuple[str, ...]) -> list[tuple[str, ...]]:
  """Cuts after each "." and "?"; the rest, if any, is the last one."""
  parts: list[tuple[str, ...]] = []
  start = 0
  for i, token in enumerate(tokens):
    if token in ".?":
      parts.append(tokens[start : i + 1])
      start = i + 1
  if start < len(tokens) or not parts:
    parts.append(tokens[start:])
  return parts
