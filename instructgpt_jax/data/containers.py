"""A JSON file whose records stand in one list inside an object."""

from __future__ import annotations

import json
import re
from typing import Any

_BLANK = re.compile(r"[ \t\r\n]*")


def record_list(value: Any) -> str:
  """Returns the field that holds an object's records, or "".

  That is its only list of objects (or of texts, where the object has no other
  field but scalars), such as `data` of {"version": 1, "data": [{…}, …]}.
  """
  if not isinstance(value, dict):
    return ""
  lists = [
    name
    for name, items in value.items()
    if isinstance(items, list)
    and items
    and all(isinstance(item, dict) for item in items)
  ]
  others = [v for k, v in value.items() if k not in lists]
  nested = any(isinstance(v, list) and len(v) > 0 for v in others)
  return lists[0] if len(lists) == 1 and not nested else ""


def list_start(text: str, field: str) -> int:
  """Returns the position of the list of a top-level field in an object."""
  decoder = json.JSONDecoder()

  def skip(position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position

  position = skip(0) + 1
  while True:
    name, position = decoder.raw_decode(text, skip(position))
    position = skip(skip(position) + 1)
    if name == field and text[position] == "[":
      return position
    _, position = decoder.raw_decode(text, position)
    position = skip(position) + 1
