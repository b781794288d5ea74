"""Tells a file's format from its first record, or says what it looks for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from instructgpt_jax.data.formats.at import At, type_name
from instructgpt_jax.data.formats.format import Format
from instructgpt_jax.data.formats.registry import FORMATS, by_name
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
)

# What a record of each kind needs at least, for hints.
_NEEDED = {
  Demonstration: "own demonstrations",
  Ranking: "own rankings",
  Prompt: "own prompts",
  Document: "own text",
}


def recognise(obj: Any, at: At, wanted: type | None = None) -> Format:
  """Returns the format of a record.

  Args:
    obj: the first record of a file.
    at: its position.
    wanted: the kind of record that is read, or None for any.

  Raises:
    UserError: where no format fits. It names the fields, a field of the same
      format that is written otherwise where there is just one, and the fields
      that the kind needs.
  """
  for known in FORMATS:
    if known.fits(obj):
      return known
  if not isinstance(obj, dict):
    at.fail(
      f"an object or a text is expected, not {type_name(obj)}",
      "",
      "write one JSON object a line",
      "unknown_format",
    )
  shown = _list(sorted(obj)) or "none"
  misspelt = _misspelt(obj, wanted)
  if misspelt:
    name, field, known = misspelt
    at.fail(
      f"no known format has these fields ({shown}); {known.name} need"
      f" {field!r}",
      field,
      f"rename {name!r} to {field!r}",
      "unknown_format",
    )
  if len(obj) > 1 and all(isinstance(value, dict) for value in obj.values()):
    at.fail(
      f"is an object of objects ({shown}), not a record",
      "",
      "write its values as a list, or one a line",
      "unknown_format",
    )
  at.fail(
    f"no known format has these fields ({shown})",
    "",
    _needs(wanted) + f"known are: {_formats(wanted)} (see docs/data.md)",
    "unknown_format",
  )


def _list(names: Sequence[str]) -> str:
  rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(repr(n) for n in names[:8]) + rest


def _formats(wanted: type | None) -> str:
  """Names the formats that hold a kind of record."""
  words = {Demonstration: "demonstration", Ranking: "ranking", Document: "doc"}
  word = words.get(wanted, "")  # type: ignore[arg-type]
  return ", ".join(known.name for known in FORMATS if word in known.result)


def _needs(wanted: type | None) -> str:
  if wanted not in _NEEDED:
    return ""
  fields = by_name(_NEEDED[wanted]).example
  return f"give each record {' and '.join(map(repr, fields))}; "


def _misspelt(
  obj: dict[str, Any], wanted: type | None
) -> tuple[str, str, Format] | None:
  """Returns the one field whose renaming makes a format fit, or None."""
  matches = []
  for known in FORMATS:
    missing = [f for f in known.example if f not in obj]
    if len(missing) != 1:
      continue
    others = [n for n in obj if n not in known.example]
    near = difflib.get_close_matches(missing[0], others, n=1, cutoff=0.8)
    if near and known.fits({**obj, missing[0]: obj[near[0]]}):
      matches.append((near[0], missing[0], known))
  if len({match[:2] for match in matches}) > 1:
    matches = [m for m in matches if m[2].name == _NEEDED.get(wanted)]  # type: ignore[arg-type]
  return matches[0] if matches else None
