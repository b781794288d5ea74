"""Small sets made here, whose answers a program checks.

`generalisation` asks in other languages and about code. `simple_mistakes` has
false premises, questions that nobody can answer for certain, questions that
need no caution, and several constraints at once (section 4.3 of
arXiv:2203.02155). An answer counts if it passes all checks of its item.

Beside its `check`, an item has an `answer`, further answers that are `right`,
and `wrong` ones, which tests hold the check to.
"""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from instructgpt_jax.evaluation.tasks.records import read_records
from instructgpt_jax.evaluation.tasks.task import Answer, Item, Scores, Task
from instructgpt_jax.instructions import kinds

_DATA = pathlib.Path(__file__).parent / "data"
_CUE = "\n\nAnswer:"
_SHORT = 4  # words from which on an answer shows its language
# Frequent words of each language; some are those of several.
_LANGUAGES: Mapping[str, frozenset[str]] = {
  name: frozenset(words.split())
  for name, words in {
    "de": "der die das dem den des ein eine einen einem eines einer und ist"
    " sind war nicht auf mit von zu im in am um nach wegen weil für es ich wir"
    " hat hatte heißt wird dass wie zwei",
    "en": "the a an and is are was of to in on at for it its that this has have"
    " had with from by because not they you there will can",
    "es": "el la los las un una unos y es son en de del al que por porque para"
    " con se no hay hace tiene ahora lo está nos más",
    "fr": "le la les l un une des du de d et est sont dans sur que qui en il"
    " elle y a pour par avec ce se ne pas au compte",
    "it": "il lo la gli i le un una e è sono di d della dell in che per con non"
    " si del al ha come",
    "nl": "de het een en is zijn van in op met dat die niet aan voor er ons wij"
    " om",
    "pt": "o a os as um uma e é são de do da dos em no na que por para com não"
    " se ao tem",
  }.items()
}
_DENIAL = re.compile(
  r"\b(no|not|never|none|nobody|nothing|neither|nor|cannot|\w+n't|false|wrong"
  r"|incorrect|myth|untrue|mistaken|misconception|impossible|fictional)\b"
)
_HEDGE = re.compile(
  r"\b(cannot|can not|can't|could|couldn't|unable|impossible|unknown|unclear"
  r"|uncertain|unsure|unpredictable|depends?|may|maybe|might|perhaps|possibly"
  r"|possible|probably|probability|chance|likely|unlikely|nobody"
  r"|no (one|way|idea|evidence|proof|guarantee|known)"
  r"|(not|\w+n't) (know|sure|certain|have)"
  r"|(hard|difficult) to (say|know|tell|predict))\b"
)


def _lower(answer: str) -> str:
  return answer.lower().replace("’", "'")


def _occurs(text: str, answer: str) -> bool:
  """Returns whether words occur in an answer, whatever their case."""
  pattern = rf"(?<!\w){re.escape(text.lower())}(?!\w)"
  return re.search(pattern, _lower(answer)) is not None


def _occurs_any(texts: Iterable[str], answer: str) -> bool:
  return any(_occurs(text, answer) for text in texts)


def _words(answer: str) -> list[str]:
  """Returns the words of an answer; marks of a block of code are none."""
  return re.findall(r"\w[\w'’-]*", re.sub(r"```\w*", " ", answer))


def _matches(answer: str, patterns: Iterable[str]) -> bool:
  """Returns whether all patterns are in an answer without blanks and quotes."""
  text = re.sub(r"[\s\"'`]", "", answer.lower())
  return all(re.search(pattern, text) for pattern in patterns)


def _is_in_language(answer: str, language: str) -> bool:
  """Returns whether no other language has more of an answer's words.

  An answer of one to three words need not have any.
  """
  words = re.findall(r"\w+", _lower(answer))
  counts = {
    name: sum(word in frequent for word in words)
    for name, frequent in _LANGUAGES.items()
  }
  most = max(counts.values())
  return counts[language] == most and (most > 0 or len(words) < _SHORT)


# A check's name → (answer, argument) → whether it passes. The kinds of
# `instructions` are checks too.
CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
  "all": lambda answer, texts: all(_occurs(text, answer) for text in texts),
  "any": lambda answer, texts: _occurs_any(texts, answer),
  "none": lambda answer, texts: not _occurs_any(texts, answer),
  "matches": _matches,
  "most_words": lambda answer, count: len(_words(answer)) <= count,
  "least_words": lambda answer, count: len(_words(answer)) >= count,
  "language": _is_in_language,
  # A denial or a hedge, or one of the item's own texts.
  "denies": lambda answer, texts: (
    _DENIAL.search(_lower(answer)) is not None or _occurs_any(texts, answer)
  ),
  "hedges": lambda answer, texts: (
    _HEDGE.search(_lower(answer)) is not None or _occurs_any(texts, answer)
  ),
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
      record.text("prompt") + _CUE,
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
    cue=_CUE,
  )


GENERALISATION = _make_task("generalisation")
SIMPLE_MISTAKES = _make_task("simple_mistakes")
