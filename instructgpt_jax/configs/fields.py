"""Config fields: help text, unit, paper section, type and allowed range."""

from __future__ import annotations

import calendar
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from instructgpt_jax.errors import UserError

_NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
  """What `--help` and validation know about a config field.

  Attributes:
    help: one sentence.
    unit: for example "tokens", "episodes".
    paper: section of arXiv:2203.02155, with a tag when it is not printed there.
    minimum: smallest allowed value, inclusive.
    maximum: largest allowed value, inclusive.
    above: exclusive lower bound.
    advanced: whether only `--helpfull` shows it.
    type: bool, int, float or str.
    choices: allowed strings; empty for any.
    optional: whether None is allowed.
  """

  help: str
  unit: str = ""
  paper: str = ""
  minimum: float | None = None
  maximum: float | None = None
  above: float | None = None
  advanced: bool = False
  type: type = str
  choices: tuple[str, ...] = ()
  optional: bool = False

  @property
  def allowed(self) -> str:
    """Returns the allowed values in words, "" when all are."""
    if self.choices:
      text = "one of " + ", ".join(map(repr, self.choices))
    else:
      bounds = []
      if self.above is not None:
        bounds.append(f"> {self.above}")
      elif self.minimum is not None:
        bounds.append(f">= {self.minimum}")
      if self.maximum is not None:
        bounds.append(f"<= {self.maximum}")
      text = " and ".join(bounds)
    return f"{text or 'a value'} or none" if self.optional else text

  def allows(self, value: Any) -> bool:
    """Returns whether a value of the field's type is in its range."""
    if value is None:
      return self.optional
    if self.choices:
      return value in self.choices
    if isinstance(value, float) and value != value:
      return False
    return (
      (self.minimum is None or value >= self.minimum)
      and (self.maximum is None or value <= self.maximum)
      and (self.above is None or value > self.above)
    )

  def normalize(self, value: Any) -> Any:
    """Returns a value with None for none.

    Where None is allowed, the text "none", the number 0 and the empty text mean
    None too, on a command line and in a config.json.
    """
    if not self.optional or isinstance(value, bool):
      return value
    if isinstance(value, str) and value.strip().lower() == _NONE:
      return None
    return value or None


def option(default: Any, help: str, **rules: Any) -> Any:
  """Returns a dataclass field with the metadata of `--help` and validation.

  Type, choices (`Literal`) and whether None is allowed come from the field's
  annotation.

  Args:
    default: the default value.
    help: one sentence.
    **rules: unit, paper, minimum, maximum, above and advanced of an `Option`.
  """
  rules = {"option": Option(help=help, **rules)}
  return dataclasses.field(default=default, metadata=rules)


@functools.cache
def options(section: type) -> dict[str, Option]:
  """Returns the options of a config class by field, without its sections."""
  hints = typing.get_type_hints(section)
  return {
    field.name: _with_type(field.metadata["option"], hints[field.name])
    for field in dataclasses.fields(section)
    if "option" in field.metadata
  }


def _with_type(declared: Option, hint: Any) -> Option:
  """Returns an option with the type and values of an annotation."""
  union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  parts = typing.get_args(hint) if union else (hint,)
  kinds = [part for part in parts if part is not type(None)]
  choices = typing.get_args(kinds[0])  # of a Literal
  return dataclasses.replace(
    declared,
    type=type(choices[0]) if choices else kinds[0],
    choices=choices,
    optional=len(kinds) < len(parts),
  )


class Checked:
  """A config section that refuses values outside its fields' ranges."""

  def __post_init__(self):
    for name, field in options(type(self)).items():
      value = getattr(self, name)
      if not field.allows(value):
        section = type(self).__name__.lower().removesuffix("stage")
        raise UserError(
          f"{value!r} is not allowed",
          field=f"{section}.{name}",
          fix=f"give a value {field.allowed}",
          code="not_allowed",
        )


def is_date(text: str) -> bool:
  """Returns whether a text is a date of the calendar, as YYYY-MM-DD."""
  if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
    return False
  year, month, day = map(int, text.split("-"))
  if year < 1 or not 1 <= month <= 12:
    return False
  return 1 <= day <= calendar.monthrange(year, month)[1]


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns "did you mean X?" for the nearest of `names`, or ""."""
  matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
  return f"did you mean {matches[0]!r}?" if matches else ""
