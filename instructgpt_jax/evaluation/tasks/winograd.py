"""WSC: which noun a pronoun refers to.

SuperGLUE asks whether a pronoun refers to a noun. As in the paper, the model is
asked what it refers to, and says yes if one of its answer and the noun contains
the other. The original collection has two nouns, which are compared by
likelihood.
"""

from __future__ import annotations

import xml.etree.ElementTree
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from instructgpt_jax.data.reading import text_files
from instructgpt_jax.evaluation import text_metrics
from instructgpt_jax.evaluation.tasks.choices import one_of, score_choices
from instructgpt_jax.evaluation.tasks.records import Record, read_records
from instructgpt_jax.evaluation.tasks.task import Answer, Item, Scores, Task

_EXPECTED = (
  'WSC\'s val.jsonl (SuperGLUE: {"text", "target", "label"}) or'
  " WSCollection.xml"
)


class _Pronoun(NamedTuple):
  """A record of SuperGLUE."""

  id: str
  text: str
  passage: str  # the text, with stars around the pronoun
  pronoun: str
  noun: str
  refers: bool  # whether the pronoun refers to the noun


def _read(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  if text_files.suffix(path) == ".xml":
    yield from _schemas(path)
    return
  for record in _pronouns(path):
    yield Item(
      record.id,
      _question(record.passage, record.pronoun),
      # What another pronoun refers to is not known, so it is no example.
      answer=f" {record.noun}" if record.refers else "",
      references=(record.noun,),
      group=record.text,
      extra={"refers": record.refers},
    )


def read_harness(path: str, unused: Counter[str]) -> Iterator[Item]:
  """Reads WSC with the prompts of the evaluation harness."""
  if text_files.suffix(path) == ".xml":
    yield from _read(path, unused)
    return
  for record in _pronouns(path):
    yield one_of(
      record.id,
      f"Passage: {record.passage}\nQuestion: In the passage above, does the"
      f' pronoun "*{record.pronoun}*" refer to "*{record.noun}*"?\nAnswer:',
      ("no", "yes"),
      int(record.refers),
      group=record.text,
    )


def _question(passage: str, pronoun: str) -> str:
  return (
    f"Passage: {passage}\nQuestion: In the passage above, what does the pronoun"
    f' "*{pronoun}*" refer to?\nAnswer:'
  )


def _pronouns(path: str) -> Iterator[_Pronoun]:
  """Yields the records of SuperGLUE."""
  labels = {"false": 0, "true": 1, "0": 0, "1": 1}
  for record in read_records(path, _EXPECTED):
    target = record.child("target") if "target" in record.value else record
    text, pronoun = record.text("text"), target.text("span2_text")
    noun, start = target.text("span1_text"), target.get("span2_index")
    if not isinstance(start, int) or not 0 <= start < len(text.split()):
      raise target.error("is not the index of a word", "span2_index")
    yield _Pronoun(
      str(record.line),
      text,
      _mark(text.split(), start, pronoun),
      pronoun,
      noun,
      bool(record.label("label", labels)),
    )


def _mark(words: list[str], start: int, pronoun: str) -> str:
  """Puts stars around the pronoun at a word, without its punctuation."""
  length = len(pronoun.split())
  span = " ".join(words[start : start + length])
  if span.lower().startswith(pronoun.lower()):
    span = f"*{span[: len(pronoun)]}*{span[len(pronoun) :]}"
  else:  # SuperGLUE's first edition has other words in a few records.
    span = f"*{span}*"
  return " ".join([*words[:start], span, *words[start + length :]])


def _schemas(path: str) -> Iterator[Item]:
  """Yields the Winograd schemas of WSCollection.xml."""
  try:
    root = xml.etree.ElementTree.fromstring(text_files.unpacked_bytes(path))
  except xml.etree.ElementTree.ParseError as error:
    line = error.position[0]
    raise Record({}, path, line, _EXPECTED).error(
      f"is not XML: {error.msg}"
    ) from error
  schemas = root.findall("schema")
  if not schemas:
    raise Record({}, path, 1, _EXPECTED).error("has no schema")
  group, before = 0, []
  for index, schema in enumerate(schemas):
    record = Record({}, path, None, _EXPECTED, f"schema[{index}]")

    def words(name: str, schema=schema, record=record) -> str:
      text = " ".join((schema.findtext(name) or "").split())
      if not text:
        raise record.error("is missing", name.replace("/", "."))
      return text

    nouns = [
      " ".join((a.text or "").split()) for a in schema.findall("answers/answer")
    ]
    # Twins differ in a word, follow each other, and ask for the same nouns.
    names = sorted(noun.lower() for noun in nouns)
    group += names != before
    before = names
    letter = words("correctAnswer").strip(" .").upper()
    if letter not in ("A", "B") or len(nouns) != 2 or not all(nouns):
      raise record.error("is not one of two answers", "correctAnswer")
    pronoun = words("text/pron")
    start = " ".join((schema.findtext("text/txt1") or "").split())
    rest = words("text/txt2")
    blank = "" if rest[0] in ".,;:?!'" else " "
    passage = f"{start} *{pronoun}*{blank}{rest}".strip()
    yield one_of(
      str(index),
      _question(passage, pronoun),
      nouns,
      "AB".index(letter),
      group=f"schemas {group}",
    )


def _score(item: Item, answer: Answer) -> Scores:
  if item.choices:
    return score_choices(item, answer)
  texts = [
    f" {text_metrics.normalize(text)} "
    for text in (answer.text, str(item.references[0]))
  ]
  says_so = all(map(str.strip, texts)) and (
    texts[0] in texts[1] or texts[1] in texts[0]
  )
  return {"accuracy": float(says_so == item.extra["refers"])}


WSC = Task(
  "wsc",
  _score,
  _EXPECTED,
  _read,
  instructions={
    "": "Final Exam with Answer Key\nInstructions: Please carefully read the"
    " following passages. For each passage, you must identify which noun the"
    " pronoun marked in *bold* refers to.\n=====\n\n"
  },
  paper_shots=15,
  max_tokens=16,
)
