"""Recognises the format of a file from its first record."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from instructgpt_jax.data.formats.format import Format
from instructgpt_jax.data.formats.json_values import (
  is_blank,
  is_null,
  type_name,
)
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.registry import FORMATS, by_name
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
)
from instructgpt_jax.errors import UserError

# What a record of each kind needs at least, for hints.
_NEEDED = {
  Demonstration: "own demonstrations",
  Ranking: "own rankings",
  Prompt: "own prompts",
  Document: "own text",
}

# Fields that hold a list in one record.
_LISTS = ("completions", "ranks", "scores", "turns")


# Records in which a blank field of the first one is looked for.
LOOKAHEAD = 1000


def is_ambiguous(obj: Any) -> bool:
  """Returns whether a record has blank fields, so that its format is open."""
  return isinstance(obj, dict) and any(map(is_blank, obj.values()))


def _filled(obj: Any, others: Iterable[Any]) -> Any:
  """Returns a record whose blank fields have the values of later records."""
  if not is_ambiguous(obj):
    return obj
  obj = dict(obj)
  missing = {name for name, value in obj.items() if is_blank(value)}
  for other in others:
    if not missing:
      break
    if isinstance(other, dict):
      for name in [n for n in missing if not is_blank(other.get(n))]:
        obj[name] = other[name]
        missing.discard(name)
  return obj


def recognise(
  obj: Any,
  reader: RecordReader,
  kind: type | None = None,
  others: Iterable[Any] = (),
) -> Format:
  """Returns the format of a record.

  Args:
    obj: the first record of a file.
    reader: its position.
    kind: the kind of record that is read, or None for any.
    others: records after it, where a blank field may have a value.

  Raises:
    UserError: where no format fits. It names the fields, a field of the same
      format that is written otherwise where there is just one, and the fields
      that the kind needs.
  """
  _refuse_columns(obj, reader)
  known = _first_fit(_filled(obj, others))
  if known:
    return known
  if not isinstance(obj, dict):
    reader.fail(
      f"an object or a text is expected, not {type_name(obj)}",
      "",
      "write one JSON object a line",
      "unknown_format",
    )
  shown = _list(sorted(obj)) or "none"
  misspelt = _misspelt(obj, kind)
  if misspelt:
    name, field, known = misspelt
    reader.fail(
      f"no known format has these fields ({shown}); {known.name} need"
      f" {field!r}",
      field,
      f"rename {name!r} to {field!r}",
      "unknown_format",
    )
  if len(obj) > 1 and all(isinstance(value, dict) for value in obj.values()):
    reader.fail(
      f"is an object of objects ({shown}), not a record",
      "",
      "write its values as a list, or one a line",
      "unknown_format",
    )
  reader.fail(
    f"no known format has these fields ({shown})",
    "",
    _needs(kind) + f"known are: {_formats(kind)} (see docs/data.md)",
    "unknown_format",
  )


def _first_fit(obj: Any) -> Format | None:
  """Returns the first format that fits, without null and empty lists if any.

  Files with the columns of several formats write them for those of the others.
  A prompt is no reason to forget a field: its reply may be null by mistake.
  """
  first = next((known for known in FORMATS if known.fits(obj)), None)
  if first is None or not isinstance(obj, dict):
    return first
  present = {n: v for n, v in obj.items() if not is_null(v) and v != []}
  if len(present) == len(obj):
    return first
  known = next((known for known in FORMATS if known.fits(present)), None)
  if known is None or known.name == by_name("own prompts").name:
    return first
  # A field that tells the two apart and has a value speaks for the first.
  telling = present.keys() & set(first.example) - set(known.fields)
  return first if telling else known


def _refuse_columns(obj: Any, reader: RecordReader) -> None:
  """Refuses an object that is a table: one list, or object, for each column."""
  if not isinstance(obj, dict) or len(obj) < 2:
    return
  if not obj.keys().isdisjoint(_LISTS):
    return  # A single record may lack its other fields.
  columns = list(obj.values())
  if all(isinstance(c, dict) and "0" in c for c in columns):
    lengths = {len(c) for c in columns}
  elif all(isinstance(c, list) and c for c in columns) and not any(
    isinstance(c[0], dict) for c in columns
  ):
    lengths = {len(c) for c in columns}
  else:
    return
  if len(lengths) == 1:
    reader.fail(
      f"is a table of columns ({_list(sorted(obj))}), not a record",
      "",
      "write one record a line (pandas: to_json(orient='records', lines=True))",
      "columns",
    )


def _list(names: Sequence[str]) -> str:
  rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(repr(n) for n in names[:8]) + rest


def _formats(kind: type | None) -> str:
  """Names the formats that hold a kind of record."""
  words = {Demonstration: "demonstration", Ranking: "ranking", Document: "doc"}
  word = words.get(kind, "")  # type: ignore[arg-type]
  return ", ".join(known.name for known in FORMATS if word in known.result)


def _needs(kind: type | None) -> str:
  if kind not in _NEEDED:
    return ""
  fields = by_name(_NEEDED[kind]).example
  return f"give each record {' and '.join(map(repr, fields))}; "


def _is_renamed(
  obj: dict[str, Any], name: str, field: str, known: Format
) -> bool:
  """Returns whether a record is one of a format once a field is renamed.

  `answerKey` or `answer_idx` is no misspelt `answer`, and an `answers` that
  holds an object is none either.
  """
  if len(name) > len(field) + 1 and name.startswith(field):
    return False
  others = {k: v for k, v in obj.items() if k != name}
  renamed = {**others, field: obj[name]}
  if not known.fits(renamed):
    return False
  try:
    list(known.parse(renamed, RecordReader("", 1, known.strict)))
  except UserError:
    return False
  except Skip:
    return True
  return True


def _misspelt(
  obj: dict[str, Any], kind: type | None
) -> tuple[str, str, Format] | None:
  """Returns the one field whose renaming makes a format fit, or None."""
  matches = []
  for known in FORMATS:
    missing = [f for f in known.example if f not in obj]
    if len(missing) != 1:
      continue
    others = [n for n in obj if n not in known.example]
    near = difflib.get_close_matches(missing[0], others, n=1, cutoff=0.8)
    if near and _is_renamed(obj, near[0], missing[0], known):
      matches.append((near[0], missing[0], known))
  if len({match[:2] for match in matches}) > 1:
    matches = [m for m in matches if m[2].name == _NEEDED.get(kind)]  # type: ignore[arg-type]
  return matches[0] if matches else None
