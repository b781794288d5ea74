"""Cleans replies and instructions of public files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.json_values import is_blank
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.turns import Turns, read_prompt
from instructgpt_jax.data.records import Turn

END_OF_TEXT = "<|endoftext|>"
# End tokens of other models, which stay in a reply as text.
_FOREIGN_ENDS = (
  "</s>",
  "<|im_end|>",
  "<|eot_id|>",
  "<|end|>",
  "<|end_of_text|>",
  "<end_of_turn>",
  "<eos>",
)
_NOTHING = {
  "nan",
  "n/a",
  "n.a",
  "na",
  "none",
  "null",
  "nil",
  "noinput",
  "no input",
  "no_input",
  "not applicable",
}


def is_placeholder(text: str) -> bool:
  """Returns whether a text means no input, such as "<noinput>" or "N/A"."""
  if len(text) > 24 or not text.strip():
    return not text.strip()
  return text.strip().strip("<>[](). ").lower() in _NOTHING


def optional_input(
  obj: Mapping[str, Any], name: str, reader: RecordReader
) -> str:
  """Returns an optional text, or "" where a placeholder stands for none."""
  text = reader.optional(obj, name)
  return "" if is_placeholder(text) else text


def read_named_prompt(
  obj: Mapping[str, Any], name: str, reader: RecordReader
) -> Turns:
  """Returns the prompt of a required field: a text or messages."""
  if not isinstance(obj.get(name), list):
    reader.get(obj, name)
  return read_prompt(obj[name], name, reader)


def agreeing_prompt(
  obj: Mapping[str, Any], names: tuple[str, ...], reader: RecordReader
) -> Turns:
  """Returns the prompt of the first of several fields with a value, or ().

  Raises:
    Skip: where the prompt of another field is no part of it, nor it of that.
  """
  turns: Turns = ()
  for name in names:
    value = obj.get(name)
    if is_blank(value):
      continue
    if turns and not isinstance(value, str) and not _are_objects(value):
      reader.unused.add(name)
      continue
    other = read_named_prompt(obj, name, reader)
    if not turns:
      turns = other
      continue
    first, second = turns[-1].text.strip(), other[-1].text.strip()
    if first not in second and second not in first:
      raise Skip(skips.CONTRADICTION)
  return turns


def _are_objects(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def instructed(
  obj: Mapping[str, Any], name: str, more: str, reader: RecordReader
) -> Turns:
  """Returns the prompt of an instruction and its input.

  One of the two may be blank; a transcript is read as its turns.
  """
  added = optional_input(obj, more, reader) if more else ""
  if added and not reader.get(obj, name).strip():
    return read_prompt(added, more, reader)
  return add_input(read_prompt(reader.text(obj, name), name, reader), added)


def add_input(turns: Turns, more: str) -> Turns:
  """Adds an input, if there is one, to the last turn."""
  last = turns[-1]
  if not more:
    return turns
  return (*turns[:-1], Turn(last.role, f"{last.text}\n\n{more}"))


def clean(completion: str) -> str:
  """Removes blanks around a reply, and end-of-text tokens at its end."""
  text = completion.strip()
  while text.endswith(END_OF_TEXT):
    text = text[: -len(END_OF_TEXT)].rstrip()
  return text


def reply(completion: str, reader: RecordReader) -> str:
  """Returns a cleaned reply; one without a text is skipped."""
  text = clean(completion)
  if not text:
    raise Skip(skips.EMPTY)
  if text.endswith(_FOREIGN_ENDS):
    end = next(e for e in _FOREIGN_ENDS if text.endswith(e))
    reader.notes.add(f"replies that end with {end!r}, which stays in the text")
  return text


def check_repeated(
  texts: Sequence[str], ranks: Sequence[int], reader: RecordReader
) -> None:
  """Notes a reply that has several ranks; skips a ranking of nothing else."""
  if len(set(texts)) == 1:
    raise Skip(skips.IDENTICAL)
  if len(set(zip(texts, ranks, strict=True))) > len(set(texts)):
    reader.notes.add("rankings with one reply at several ranks")


def ranks_of(scores: Sequence[float]) -> tuple[int, ...]:
  """Returns ranks from scores: 1 for the highest, equal scores tie."""
  order = sorted(set(scores), reverse=True)
  rank = {score: i + 1 for i, score in enumerate(order)}
  return tuple(rank[score] for score in scores)
