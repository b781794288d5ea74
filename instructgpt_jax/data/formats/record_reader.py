"""Reads the fields of one record, with errors, skips and notes."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.json_values import (
  TYPE_NAMES,
  as_number,
  is_blank,
  is_null,
  type_name,
)
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.errors import UserError


@dataclasses.dataclass(slots=True)
class RecordReader:
  """Reads the fields of one record, and notes what the report needs.

  Attributes:
    file: file of the record.
    line: line of the record.
    strict: whether an unusable value is an error, as in our own formats, and
      not a reason to skip the record.
    unused: fields of the record that nothing reads.
    notes: other facts about the record that the report counts.
    context_turns: length of the conversation up to the question of `context`,
      where the record has several questions; 0 where it has one.
  """

  file: str
  line: int
  strict: bool = False
  unused: set[str] = dataclasses.field(default_factory=set)
  notes: set[str] = dataclasses.field(default_factory=set)
  context_turns: int = 0

  @property
  def origin(self) -> str:
    return f"{self.file}:{self.line}"

  def fail(
    self, problem: str, field: str = "", fix: str = "", code: str = "bad_record"
  ) -> NoReturn:
    raise UserError(
      problem,
      file=self.file,
      line=self.line,
      field=field or None,
      fix=fix or "see docs/data.md for the fields of each format",
      code=code,
    )

  def refuse(
    self, reason: str, problem: str, field: str, fix: str, code: str
  ) -> NoReturn:
    """Raises an error in our own formats, and a Skip in public ones."""
    if self.strict:
      self.fail(problem, field, fix, code)
    raise Skip(reason)

  def get(self, obj: Mapping[str, Any], name: str, kind: type = str,
          where: str = "") -> Any:  # fmt: skip
    """Returns a required field of a given type; `where` prefixes its name.

    Null skips the record in public formats.
    """
    if name not in obj:
      near = difflib.get_close_matches(name, list(obj), n=1, cutoff=0.6)
      self.fail(
        f"the field {name!r} is missing",
        where + name,
        f"rename {near[0]!r} to {name!r}" if near else "",
        "missing_field",
      )
    value = obj[name]
    if not isinstance(value, kind) or isinstance(value, bool):
      if is_null(value) and not self.strict:
        raise Skip(f"records whose {_shown(where, name)!r} is null")
      self.fail(
        f"{TYPE_NAMES[kind]} is expected, not {type_name(value)}",
        where + name,
        f"write {name!r} as {TYPE_NAMES[kind]}",
        "wrong_type",
      )
    return value

  def text(self, obj: Mapping[str, Any], name: str, where: str = "") -> str:
    """Returns a required text that is not blank."""
    value = self.get(obj, name, where=where)
    if not value.strip():
      self.refuse(
        skips.EMPTY_TURNS,
        "is empty",
        where + name,
        "give it a text or delete the record",
        "empty_text",
      )
    return value

  def optional(self, obj: Mapping[str, Any], name: str) -> str:
    """Returns a text, or "" where it is absent, null, NaN, [] or {}."""
    return "" if is_blank(obj.get(name)) else self.get(obj, name)

  def identity(self, obj: Mapping[str, Any], name: str, where: str = "") -> str:
    """Returns an optional id as text; ids are texts or whole numbers."""
    value = obj.get(name)
    if is_null(value):
      return ""
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
      self.fail(
        f"text is expected, not {type_name(value)}",
        where + name,
        f"write {where + name!r} as text or as a whole number",
        "wrong_type",
      )
    return str(value)

  def number(self, obj: Mapping[str, Any], name: str, where: str = "") -> float:
    """Returns a required number, also one that is written as text.

    Null and NaN skip the record in public formats, and so does infinity.
    """
    value = obj.get(name)
    if is_null(value):
      value = self.get({name: None} if name in obj else obj, name, float, where)
    number = as_number(value)
    if number is None:
      self.fail(
        f"a number is expected, not {type_name(value)}",
        where + name,
        f"write {where + name!r} as a number",
        "wrong_type",
      )
    if math.isinf(number):
      self.refuse(
        skips.NOT_FINITE,
        "is not finite",
        where + name,
        f"write {where + name!r} as a finite number",
        "not_finite",
      )
    return number

  def whole(self, obj: Mapping[str, Any], name: str, where: str = "") -> int:
    """Returns a required whole number; 1.0 and "1" are whole numbers too."""
    number = self.number(obj, name, where)
    if not number.is_integer():
      self.fail(
        "a whole number is expected",
        where + name,
        f"write {where + name!r} as a whole number",
        "wrong_type",
      )
    return int(number)

  def note_others(
    self, obj: Mapping[str, Any], known: Iterable[str], path: str
  ) -> None:
    """Notes the fields of a nested object that are not among `known`."""
    for name in obj.keys() - set(known):
      if not is_blank(obj[name]):
        self.unused.add(f"{path}.{name}")


def _shown(where: str, name: str) -> str:
  """Names a field in counts, without positions in lists."""
  return re.sub(r"\[\d+\]", "[]", where + name)
