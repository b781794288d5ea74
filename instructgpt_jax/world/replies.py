"""Writes the replies of the world's people: the best one, and others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from instructgpt_jax.world import words
from instructgpt_jax.world.requests import (
  Capitals,
  HowTo,
  List,
  Premise,
  Question,
  Reading,
  Repeat,
  Request,
  Sort,
  state,
)

T = TypeVar("T")

# Shares of personas on the open forum, and under the polite prefix line.
PERSONAS = ("good", "wrong", "padded", "rude", "off")
FORUM: dict[str, float] = dict(
  zip(PERSONAS, (0.22, 0.41, 0.17, 0.08, 0.12), strict=True)
)
POLITE: dict[str, float] = dict(
  zip(PERSONAS, (0.57, 0.18, 0.14, 0.03, 0.08), strict=True)
)


def best(request: Request) -> str:
  """Returns the reply that scores 1; it is always the same."""
  return good(request, None)


def good(
  request: Request, rng: random.Random | None, *, believing: bool = False
) -> str:
  """Writes a good reply.

  Args:
    request: the request of the prompt.
    rng: source of wording and choice of items; None uses the usual ones.
    believing: whether the writer shares the forum's misconceptions.
  """
  match request:
    case Question(fact=fact, form=form):
      value = fact.believed if believing else fact.true
      if not fact.known:
        return words.UNKNOWN
      if form == "one_word":
        return f"{value} ."
      return fact.statement(value)
    case Premise(fact=fact, value=value):
      known = fact.believed if believing else fact.true
      return f"{'yes' if value == known else 'no'} , {fact.statement(known)}"
    case List():
      return f"{' , '.join(_items(request, rng))} ."
    case Repeat() | Capitals() | Sort():
      return f"{' '.join(request.answer)} ."
    case Reading():
      pair = request.answering_pair
      return request.statement(pair) if pair else words.UNSTATED
    case HowTo():
      if request.harmful:
        return words.REFUSAL
      return request.instructions(words.TOOLS[request.verb])


def _items(request: List, rng: random.Random | None) -> list[str]:
  items: list[str] = []
  for category, count in request.parts:
    members = [
      m for m in words.CATEGORIES[category]
      if m != request.without and m not in items
    ]  # fmt: skip
    items += rng.sample(members, count) if rng else members[:count]
  return items


def wrong(request: Request, rng: random.Random) -> str:
  """Writes a confident reply that fails in its family's typical way."""
  match request:
    case Question(fact=fact, form=form):
      if fact.misconceived:
        value = fact.believed
      else:
        value = _other(fact.attribute.domain, (fact.true,), rng)
      style = rng.random()
      if form == "one_word":
        if style < 0.5:  # right, but not in one word
          return fact.statement(fact.true if rng.random() < 0.5 else value)
        return f"{value} ."
      if form == "one_sentence" and style < 0.5:
        true = fact.true if rng.random() < 0.5 else value
        both = " ".join(fact.statements(true))
        return f"{true} ." if style < 0.25 else both
      return fact.statement(value)
    case Premise(fact=fact, value=value):
      if request.true:
        other = _other(fact.attribute.domain, (value,), rng)
        return f"no , {fact.statement(other)}"
      return f"yes , {fact.statement(value)}"
    case List():
      return _wrong_list(request, rng)
    case Repeat():
      return _wrong_line(list(request.answer), words.CONTENT, rng)
    case Capitals():
      if rng.random() < 0.7:
        return f"{' '.join(request.words)} ."
      return _wrong_line(list(request.answer), words.CAPITALS, rng)
    case Sort():
      order = tuple(rng.sample(request.words, len(request.words)))
      if rng.random() < 0.7 and order != request.answer:
        return f"{' '.join(order)} ."
      return _wrong_line(list(request.answer), words.NUMBERS, rng)
    case Reading():
      return _wrong_reading(request, rng)
    case HowTo(verb=verb):
      if request.harmful:
        return request.instructions(words.TOOLS[verb])
      if rng.random() < 0.4:
        return words.REFUSAL
      other = _other(tuple(words.TOOLS.values()), (words.TOOLS[verb],), rng)
      return request.instructions(other)


def _other(domain: Sequence[T], but: Sequence[T], rng: random.Random) -> T:
  """Draws a member of the domain that is none of `but`."""
  return rng.choice([value for value in domain if value not in but])


def _wrong_list(request: List, rng: random.Random) -> str:
  items = _items(request, rng)
  style = rng.random()
  if style < 0.4 and len(items) > 2:
    items = items[: rng.randint(1, len(items) - 1)]
  elif style < 0.7:
    members = words.CATEGORIES[request.parts[0][0]]
    items += rng.sample(members, rng.randint(1, 2))
  elif request.without and style < 0.9:
    items[rng.randrange(len(items))] = request.without
  else:
    other = _other(
      tuple(words.CATEGORIES), tuple(c for c, _ in request.parts), rng
    )
    items = rng.sample(words.CATEGORIES[other], len(items))
  return f"{' , '.join(items)} ."


def _wrong_line(line: list[str], domain, rng: random.Random) -> str:
  style = rng.random()
  if style < 0.4 and len(line) > 1:
    line = line[:-1]
  elif style < 0.7:
    line = line + [rng.choice(line)]
  else:
    line[rng.randrange(len(line))] = _other(domain, tuple(line), rng)
  return f"{' '.join(line)} ."


def _wrong_reading(request: Reading, rng: random.Random) -> str:
  person, thing = rng.choice(request.pairs)
  if request.answering_pair:
    if rng.random() < 0.2:
      return words.UNSTATED
    person, thing = _other(request.pairs, (request.answering_pair,), rng)
  if request.asks_who:
    return state(request.relation, (person, request.asked))
  return state(request.relation, (request.asked, thing))


def padded(text: str, rng: random.Random) -> str:
  """Adds one or two fillers around the reply."""
  parts = [text]
  if rng.random() < 0.7:
    parts.insert(0, rng.choice(words.OPENING_FILLERS))
  if len(parts) == 1 or rng.random() < 0.35:
    parts.append(rng.choice(words.CLOSING_FILLERS))
  return " ".join(parts)


def off_task(rng: random.Random) -> str:
  """Writes chatter that answers nothing."""
  style = rng.randrange(5)
  if style == 0:
    return (
      f"i like the {rng.choice(words.COLOURS)} {rng.choice(words.ANIMALS)} ."
    )
  if style == 1:
    return f"my {rng.choice(words.ANIMALS)} is glad today ."
  if style == 2:
    return f"who wants some {rng.choice(words.FOODS)} ?"
  if style == 3:
    return f"i went to the {rng.choice(words.PLACES)} today ."
  return "who cares about that ?"


def draw_persona(shares: dict[str, float], rng: random.Random) -> str:
  return rng.choices(tuple(shares), tuple(shares.values()))[0]


def reply(
  request: Request,
  persona: str,
  rng: random.Random,
  *,
  believing: bool = False,
) -> str:
  """Writes the reply of a persona.

  Args:
    request: the request of the prompt.
    persona: one of `PERSONAS`.
    rng: source of the wording.
    believing: whether the writer shares the forum's misconceptions.
  """
  if persona == "wrong":
    return wrong(request, rng)
  if persona == "off":
    return off_task(rng)
  text = good(request, rng, believing=believing)
  if isinstance(request, HowTo) and request.harmful and rng.random() < 0.1:
    text = f"{text} {words.MORAL}"
  if persona == "padded":
    return padded(text, rng)
  if persona == "rude":
    insult = rng.choice(words.INSULTS)
    return f"{insult} {text}" if rng.random() < 0.5 else insult
  return text
