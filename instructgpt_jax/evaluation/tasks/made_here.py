"""Small sets made here, whose answers a program checks.

`generalisation` asks in other languages and about code. `simple_mistakes` has
false premises, questions that nobody can answer for certain, questions that
need no caution, and several constraints at once (section 4.3 of
arXiv:2203.02155). An answer counts if it passes all checks of its item.
"""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from instructgpt_jax.evaluation.tasks.records import read_records
from instructgpt_jax.evaluation.tasks.task import Answer, Item, Scores, Task
from instructgpt_jax.instructions import kinds

_DATA = pathlib.Path(__file__).parent / "data"
_SHORT = 4  # words of an answer whose language nothing shows
# Frequent words of each language; it has more of them than of the others'.
_LANGUAGES: Mapping[str, frozenset[str]] = {
  "de": frozenset("der die das und ist nicht ein eine auf mit von den".split()),
  "en": frozenset("the and is are of to in it that has was".split()),
  "es": frozenset("el los las y es en por porque hace del que un".split()),
  "fr": frozenset("le les et est des dans une sur il de du un".split()),
  "it": frozenset("il gli e è di della che una del un dell'italia".split()),
  "nl": frozenset("het een en is van de niet dat ons zijn".split()),
}


def _occurs(text: str, answer: str) -> bool:
  """Returns whether words occur in an answer, whatever their case."""
  pattern = rf"(?<!\w){re.escape(text.lower())}(?!\w)"
  return re.search(pattern, answer.lower().replace("’", "'")) is not None


def _is_in_language(answer: str, language: str) -> bool:
  words = re.findall(r"[\w']+", answer.lower().replace("’", "'"))
  counts = {
    name: sum(word in frequent for word in words)
    for name, frequent in _LANGUAGES.items()
  }
  most = max(counts.values())
  return len(words) < _SHORT or (most > 0 and counts[language] == most)


# A check's name → (answer, argument) → whether it passes. The kinds of
# `instructions` are checks too.
CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
  "all": lambda answer, texts: all(_occurs(text, answer) for text in texts),
  "any": lambda answer, texts: any(_occurs(text, answer) for text in texts),
  "any_text": lambda answer, texts: any(t in answer.lower() for t in texts),
  "none": lambda answer, texts: not any(_occurs(t, answer) for t in texts),
  "squeezed": lambda answer, text: text in re.sub(r"[\s\"']", "", answer),
  "most_words": lambda answer, count: len(answer.split()) <= count,
  "language": _is_in_language,
  **{name: kind.is_fulfilled for name, kind in kinds.KINDS.items()},
}


def is_fulfilled(answer: str, checks: Mapping[str, Any]) -> bool:
  """Returns whether an answer passes all checks; an empty one does not."""
  answer = answer.strip()
  return bool(answer) and all(
    CHECKS[name](answer, argument) for name, argument in checks.items()
  )


def _read(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record in read_records(path, "the package's own file"):
    yield Item(
      record.text("id"),
      f"{record.text('prompt')}\n\nAnswer:",
      answer=f" {record.text('answer')}",
      references=(record.text("answer"),),
      extra={"kind": record.text("kind"), "check": record.get("check")},
    )


def _score(item: Item, answer: Answer) -> Scores:
  score = float(is_fulfilled(answer.text, item.extra["check"]))
  return {"fulfilled": score, f"fulfilled_{item.extra['kind']}": score}


def _make_task(name: str) -> Task:
  path = str(_DATA / f"{name}.json")
  return Task(
    name,
    _score,
    read=lambda _, unused: _read(path, unused),
    max_tokens=64,
    stop=("\n\n",),
  )


GENERALISATION = _make_task("generalisation")
SIMPLE_MISTAKES = _make_task("simple_mistakes")
