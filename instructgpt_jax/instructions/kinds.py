"""Kinds of instructions: how each is worded, and when an answer fulfils it.

A kind has one argument, such as a number of lines. A check reads the answer
alone, and is strict: what a person would have to excuse is not fulfilled.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Argument = int | str

_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_FENCE = re.compile(r"```(?:json)?\n(.*?)\n?```", re.DOTALL)
_PUNCTUATION = " \t\n.,;:!?\"'()*_…“”‘’-–—"


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of instruction.

  Attributes:
    name: name in files and tables.
    texts: wordings, with {topic} and {argument}.
    arguments: how an argument is worded → its value.
    check: (answer without surrounding blanks, argument) → fulfilled.
  """

  name: str
  texts: tuple[str, ...]
  arguments: Mapping[str, Argument]
  check: Callable[[str, Any], bool]

  def is_fulfilled(self, answer: str, argument: Argument) -> bool:
    """Returns whether an answer does what was asked; an empty one does not."""
    answer = answer.strip()
    return bool(answer) and self.check(answer, argument)


def _lines(answer: str) -> list[str]:
  return [line.strip() for line in answer.splitlines() if line.strip()]


def _words(answer: str) -> list[str]:
  words = (word.strip(_PUNCTUATION) for word in answer.split())
  return [word for word in words if word]


def _has_lines(answer: str, count: int) -> bool:
  return len(_lines(answer)) == count


def _has_items(answer: str, count: int) -> bool:
  lines = _lines(answer)
  return len(lines) == count and all(
    line.startswith("- ") and _words(line[2:]) for line in lines
  )


def _is_capital(answer: str, _: Argument) -> bool:
  return answer.upper() == answer and answer.lower() != answer


def _has_keys(answer: str, keys: str) -> bool:
  fenced = _FENCE.fullmatch(answer)
  try:
    value = json.loads(fenced[1] if fenced else answer)
  except (ValueError, RecursionError):
    return False
  return isinstance(value, dict) and set(value) == set(keys.split(","))


def _ends_with(answer: str, word: str) -> bool:
  words = _words(answer)
  return len(words) > 1 and words[-1].lower() == word


def _begins_with(answer: str, word: str) -> bool:
  words = _words(answer)
  return len(words) > 1 and words[0].lower() == word


def _lacks_letter(answer: str, letter: str) -> bool:
  return letter not in answer.lower() and len(_words(answer)) >= 3


def _has_words(answer: str, count: int) -> bool:
  return len(_words(answer)) == count


def _same(*words: str) -> dict[str, Argument]:
  return {word: word for word in words}


KINDS: dict[str, Kind] = {
  kind.name: kind
  for kind in (
    Kind(
      "lines",
      (
        "Write a poem about {topic} in exactly {argument} lines.",
        "Write about {topic}. Your answer must have exactly {argument} lines.",
      ),
      {word: _NUMBERS[word] for word in ("two", "three", "four")},
      _has_lines,
    ),
    Kind(
      "items",
      (
        "List exactly {argument} facts about {topic}, starting each with '- '.",
        "Give {argument} facts about {topic}, one a line, and begin each line"
        " with '- '. Write nothing else.",
      ),
      {word: _NUMBERS[word] for word in ("two", "three", "four")},
      _has_items,
    ),
    Kind(
      "capitals",
      (
        "Describe {topic} in {argument} only.",
        "Tell me something about {topic}. Write in {argument}.",
      ),
      _same("capital letters"),
      _is_capital,
    ),
    Kind(
      "json",
      (
        "Describe {topic} as a JSON object with {argument}.",
        "Answer with nothing but a JSON object with {argument}. It describes"
        " {topic}.",
      ),
      {
        'the keys "name" and "kind"': "name,kind",
        'the keys "title" and "text"': "title,text",
        'the key "summary"': "summary",
      },
      _has_keys,
    ),
    Kind(
      "ending",
      (
        "Tell me about {topic} and end your answer with the word '{argument}'.",
        "Describe {topic} in a few words. The last word of your answer must be"
        " '{argument}'.",
      ),
      _same("goodbye", "indeed", "done"),
      _ends_with,
    ),
    Kind(
      "letter",
      (
        "Describe {topic} without the letter '{argument}'.",
        "Write a sentence about {topic}. Do not use the letter '{argument}'.",
      ),
      _same("e", "a", "o"),
      _lacks_letter,
    ),
    Kind(
      "words",
      (
        "Describe {topic} in exactly {argument} words.",
        "What is {topic}? Answer in exactly {argument} words.",
      ),
      {word: _NUMBERS[word] for word in ("three", "four", "five", "six")},
      _has_words,
    ),
    Kind(
      "beginning",
      (
        "Tell me about {topic}. Start your answer with the word '{argument}'.",
        "Describe {topic}, and let '{argument}' be the first word of your"
        " answer.",
      ),
      _same("well", "surely", "today"),
      _begins_with,
    ),
  )
}

# Topics of one set never occur in the other.
TRAIN_TOPICS = tuple(
  """apples
autumn
bees
bicycles
books
bread
bridges
butterflies
cats
chess
chocolate
clouds
coffee
deserts
dolphins
elephants
football
forests
gardens
glass
gold
guitars
honey
horses
islands
kites
lakes
lions
maps
milk
mirrors
mountains
mushrooms
newspapers
onions
paper
penguins
pianos
potatoes
rabbits
rain
rice
roses
sharks
ships
snow
soap
spiders
stars
tea
tigers
tomatoes
trains
umbrellas
violins
volcanoes
whales
wine
winter
wool""".split("\n")
)
TEST_TOPICS = tuple(
  """airports
bananas
bears
candles
castles
cheese
clocks
crows
dogs
eagles
farms
fire
frogs
hats
ice
lemons
lighthouses
markets
owls
oranges
pencils
rivers
salt
schools
shoes
the moon
the ocean
the sun
trees
windows""".split("\n")
)
