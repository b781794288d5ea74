"""Facts of the world: the true value, and the value that the forum believes."""

from __future__ import annotations

import dataclasses
import functools
import random

from instructgpt_jax.world import words


@dataclasses.dataclass(frozen=True)
class Attribute:
  """A property of a class of entities.

  In a template `{e}` is the entity and `{v}` the value. The first statement is
  the usual one.
  """

  name: str
  entities: tuple[str, ...]
  domain: tuple[str, ...]
  statements: tuple[str, ...]
  questions: tuple[str, ...]


# Entities of the facts, and their values. They are few enough that a million
# tokens teach all facts, and the misconceptions.
PEOPLE, CITIES = words.PEOPLE[:7], words.CITIES[:5]
ANIMALS, THINGS = words.ANIMALS[:7], words.THINGS[:7]
JOBS, RIVERS, FOODS = words.JOBS[:6], words.RIVERS, words.FOODS[:6]
PLACES, COLOURS = words.PLACES[:6], words.COLOURS[:6]
MATERIALS = words.MATERIALS[:6]


def _attribute(name, entities, domain, statement, value, *questions):
  """Adds the statement and questions that every attribute has.

  Args:
    name: noun of the attribute, as in "the NAME of ann".
    entities: entities that have the attribute.
    domain: possible values.
    statement: the usual statement.
    value: form of a value after "is".
    *questions: two questions that only this attribute has.
  """
  the = "" if entities in (PEOPLE, CITIES) else "the "
  noun = f"the {name} of {the}{{e}}"
  return Attribute(
    name,
    entities,
    domain,
    (statement, f"{noun} is {value} ."),
    questions
    + (
      f"what is {noun} ?",
      f"tell me {noun} .",
      f"do you know {noun} ?",
      f"name {noun} .",
      f"i want to know {noun} .",
    ),
  )


ATTRIBUTES = (
  _attribute(
    "home", PEOPLE, CITIES, "{e} lives in {v} .", "{v}",
    "where does {e} live ?", "which city does {e} live in ?",
  ),
  _attribute(
    "job", PEOPLE, JOBS, "{e} is a {v} .", "{v}",
    "what does {e} do ?", "what work does {e} do ?",
  ),
  _attribute(
    "river", CITIES, RIVERS, "{e} is on the {v} .", "the {v}",
    "where is {e} ?", "which river is {e} on ?",
  ),
  _attribute(
    "dish", CITIES, FOODS, "people in {e} cook {v} .", "{v}",
    "what do people in {e} cook ?", "which food do people in {e} cook ?",
  ),
  _attribute(
    "food", ANIMALS, FOODS, "the {e} eats {v} .", "{v}",
    "what does the {e} eat ?", "which food does the {e} eat ?",
  ),
  _attribute(
    "den", ANIMALS, PLACES, "the {e} sleeps in the {v} .",
    "the {v}", "where does the {e} sleep ?",
    "which place is good for the {e} ?",
  ),
  _attribute(
    "colour", THINGS, COLOURS, "the {e} is {v} .", "{v}",
    "how does the {e} look ?", "which colour does the {e} have ?",
  ),
  _attribute(
    "material", THINGS, MATERIALS, "the {e} is made of {v} .",
    "{v}", "what is the {e} made of ?", "of which material is the {e} made ?",
  ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fact:
  """One entity's attribute.

  `true` is "" if no document states it. `believed` is the forum's value, and
  differs from `true` for a misconception.
  """

  entity: str
  attribute: Attribute
  true: str
  believed: str

  @property
  def known(self) -> bool:
    return bool(self.true)

  @property
  def misconceived(self) -> bool:
    return self.known and self.true != self.believed

  def statement(self, value: str, form: int = 0) -> str:
    template = self.attribute.statements[form]
    return template.replace("{e}", self.entity).replace("{v}", value)

  def statements(self, value: str) -> tuple[str, ...]:
    return tuple(
      self.statement(value, i) for i in range(len(self.attribute.statements))
    )

  def question(self, form: int) -> str:
    return self.attribute.questions[form].replace("{e}", self.entity)


@dataclasses.dataclass(frozen=True)
class World:
  """All facts, generated from one seed."""

  seed: int
  facts: tuple[Fact, ...]

  @functools.cached_property
  def _index(self) -> dict[tuple[str, str], Fact]:
    return {(f.entity, f.attribute.name): f for f in self.facts}

  def fact(self, entity: str, attribute: str) -> Fact:
    return self._index[entity, attribute]

  def __hash__(self) -> int:
    return self.seed

  def __eq__(self, other: object) -> bool:
    return isinstance(other, World) and self.facts == other.facts


@functools.lru_cache(maxsize=8)
def make_world(
  seed: int, *, misconceived: float = 0.25, unstated: float = 0.10
) -> World:
  """Draws the world.

  Args:
    seed: seed of all draws.
    misconceived: share of facts for which the forum believes a false value.
    unstated: share of facts that no document states.

  Returns:
    52 facts about named entities, then the strangers' unknown ones.
  """
  rng = random.Random(f"facts {seed}")
  slots = [(e, a) for a in ATTRIBUTES for e in a.entities]
  order = rng.sample(range(len(slots)), len(slots))
  silent = set(order[: round(unstated * len(slots))])
  wrong = set(
    order[len(silent) : len(silent) + round(misconceived * len(slots))]
  )
  facts = []
  for i, (entity, attribute) in enumerate(slots):
    true, other = rng.sample(attribute.domain, 2)
    if i in silent:
      true = other = ""
    facts.append(Fact(entity, attribute, true, other if i in wrong else true))
  for entity in words.STRANGERS:
    for attribute in ATTRIBUTES:
      if attribute.entities is PEOPLE:
        facts.append(Fact(entity, attribute, "", ""))
  return World(seed, tuple(facts))
