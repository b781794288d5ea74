"""Public prompts without usable replies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.format import Format, has
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import instructed, read_named_prompt
from instructgpt_jax.data.formats.turns import user
from instructgpt_jax.data.records import Document, Prompt, Record


def _predictions(obj: Any, reader: RecordReader) -> Iterator[Record]:
  yield Prompt(
    turns=instructed(obj, "instruction", "input", reader),
    origin=reader.origin,
  )


def _questions(obj: Any, reader: RecordReader) -> Iterator[Record]:
  turns = obj.get("turns")
  if isinstance(turns, list) and turns:
    first = turns[0]
    if isinstance(first, dict):
      # Arena-Hard's questions are objects.
      text = reader.text(first, "content", "turns[0].")
      reader.note_others(first, ("content", "role"), "turns[]")
      if first.get("role", "user") not in ("user", "human", None):
        raise Skip(skips.NO_USER)
    else:
      text = reader.text({"turns[0]": first}, "turns[0]")
    if len(turns) > 1:
      reader.notes.add("questions after the first, which are not used")
  else:
    text = reader.text(obj, "text" if "text" in obj else "turns")
  yield Prompt(turns=user(text), origin=reader.origin)


def _prompt_and_text(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields Cosmopedia's prompt, and the document that a model wrote for it."""
  turns = read_named_prompt(obj, "prompt", reader)
  yield Prompt(turns=turns, origin=reader.origin)
  text = reader.optional(obj, "text")
  if text.strip():
    yield Document(text=text, origin=reader.origin)


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
    "turns": "the first is the prompt, a text or its `content`; the others"
    " are counted",
    "text": "the prompt",
  },
  irrelevant=("question_id", "category", "reference"),
  result="prompts",
)
TEXTS = Format(
  "prompt/text",
  has("prompt", "text"),
  _prompt_and_text,
  {"prompt": "the prompt", "text": "the document"},
  ("prompt", "text"),
  ("text_token_length", "token_length", "seed_data", "format", "audience"),
  result="prompts; documents (Cosmopedia)",
)
