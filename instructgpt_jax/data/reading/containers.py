"""Reads JSON files whose records are in a list inside one object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.formats import FORMATS
from instructgpt_jax.data.formats.common import split_name
from instructgpt_jax.data.formats.json_values import is_blank

_BLANK = re.compile(r"[ \t\r\n]*")
_NAMES = ("data", "dataset", "examples", "instances", "items", "records",
          "rows", "samples")  # fmt: skip
_TEXT_LISTS = ("prompts", "data")
_CONVERSATIONS = ("messages", "conversations", "conversation")
# A record has one of them, a list of records has none.
_IDS = ("id", "_id", "idx", "index", "uuid", "guid", "prompt_id",
        "conversation_id")  # fmt: skip


def with_messages(value: Any) -> Any:
  """Returns UltraChat's record with its texts as messages.

  It is {"id": "7", "data": ["question", "answer", ...]}. Another value is
  returned unchanged.
  """
  if not isinstance(value, dict) or "data" not in value:
    return value
  texts = value["data"]
  if not isinstance(texts, list) or not texts or value.keys().isdisjoint(_IDS):
    return value
  if not all(isinstance(text, str) for text in texts):
    return value
  if any(known.fits(value) for known in FORMATS):
    return value
  messages = [
    {"role": "assistant" if i % 2 else "user", "content": text}
    for i, text in enumerate(texts)
  ]
  others = {name: item for name, item in value.items() if name != "data"}
  return {**others, "messages": messages}


def record_lists(value: Any) -> list[str]:
  """Returns the fields of an object that hold its records; may be none.

  That is its only list of records, such as `data` of {"data": [{…}, …]}, or
  several lists that are named after splits. Records are objects of a known
  format, or any objects in a list of a usual name. An object that is a record
  itself has none.
  """
  if not isinstance(value, dict):
    return []
  names = [
    name
    for name, items in value.items()
    if isinstance(items, list) and items and _holds_records(name, items)
  ]
  if not names or _is_record(value, names):
    return []
  if len(names) > 1 and not all(split_name(name) for name in names):
    return []
  return names


def _holds_records(name: str, items: list[Any]) -> bool:
  if name in _TEXT_LISTS and all(isinstance(item, str) for item in items):
    return True
  return all(isinstance(item, dict) for item in items) and (
    name in _NAMES or any(known.fits(items[0]) for known in FORMATS)
  )


def _is_record(value: dict[str, Any], names: list[str]) -> bool:
  if names[0] in _CONVERSATIONS:
    return not value[names[0]][0].keys().isdisjoint(("role", "from"))
  return any(known.fits(value) for known in FORMATS)


def other_fields(value: dict[str, Any], lists: list[str]) -> list[str]:
  """Returns the non-empty fields beside the lists of records."""
  return [
    f"{name} (beside {', '.join(lists)})"
    for name, item in value.items()
    if name not in lists
    and not is_blank(item)
    and not (name == "split" and outer_split(value))
  ]


def list_starts(text: str, fields: list[str]) -> Iterator[tuple[str, int]]:
  """Yields the name and the position of each of `fields` of an object."""
  decoder = json.JSONDecoder()

  def skip(position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position

  position = skip(0)
  while text[position : position + 1] in ("{", ","):
    name, position = decoder.raw_decode(text, skip(position + 1))
    position = skip(skip(position) + 1)
    if name in fields:
      yield name, position
    _, position = decoder.raw_decode(text, position)
    position = skip(position)


def with_split(value: Any, name: str) -> Any:
  """Returns a record with the split after which its list is named, if any."""
  split = split_name(name)
  if (
    not split or not isinstance(value, dict) or not is_blank(value.get("split"))
  ):
    return value
  return {**value, "split": split}


def outer_split(value: dict[str, Any]) -> str:
  """Returns the split that an object around a list of records names."""
  split = value.get("split")
  return (split_name(split) or "") if isinstance(split, str) else ""
