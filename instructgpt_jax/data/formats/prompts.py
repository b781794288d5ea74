"""Public prompts without usable replies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.formats.at import At
from instructgpt_jax.data.formats.format import Format, has
from instructgpt_jax.data.formats.texts import instructed
from instructgpt_jax.data.formats.turns import user
from instructgpt_jax.data.records import Prompt, Record


def _predictions(obj: Any, at: At) -> Iterator[Record]:
  yield Prompt(
    turns=instructed(obj, "instruction", "input", at),
    origin=at.origin,
  )


def _questions(obj: Any, at: At) -> Iterator[Record]:
  turns = obj.get("turns")
  if isinstance(turns, list) and turns:
    text = at.text({"turns[0]": turns[0]}, "turns[0]")
    if len(turns) > 1:
      at.notes.add("questions after the first, which are not used")
  else:
    text = at.text(obj, "text" if "text" in obj else "turns")
  yield Prompt(turns=user(text), origin=at.origin)


def _is_question(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and "question_id" in obj
    and ("turns" in obj or ("text" in obj and "category" in obj))
  )


PREDICTIONS = Format(
  "self-instruct predictions",
  has("prompt", "instruction", "response", "target"),
  _predictions,
  {"instruction": "the prompt", "input": "input below the instruction"},
  irrelevant=("prompt", "response", "target"),
  result="prompts",
)
QUESTIONS = Format(
  "benchmark questions",
  _is_question,
  _questions,
  {
    "turns": "the first is the prompt; the others are counted",
    "text": "the prompt",
  },
  irrelevant=("question_id", "category", "reference"),
  result="prompts",
)
