"""Config fields: help text, unit, paper section and allowed range of each."""

from __future__ import annotations

import calendar
import dataclasses
import difflib
import re
from typing import Any

from instructgpt_jax.errors import UserError


def option(
  default: Any,
  help: str,
  *,
  unit: str = "",
  paper: str = "",
  minimum: float | None = None,
  maximum: float | None = None,
  above: float | None = None,
  choices: tuple[str, ...] = (),
) -> Any:
  """A dataclass field with what `--help` and validation need to know.

  Args:
    default: the default value; its type is the flag's type.
    help: one sentence.
    unit: for example "tokens", "episodes".
    paper: section of arXiv:2203.02155, with a tag when it is not printed there.
    minimum: smallest allowed value, inclusive.
    maximum: largest allowed value, inclusive.
    above: exclusive lower bound.
    choices: allowed strings.
  """
  return dataclasses.field(
    default=default,
    metadata=dict(
      help=help,
      unit=unit,
      paper=paper,
      minimum=minimum,
      maximum=maximum,
      above=above,
      choices=choices,
    ),
  )


def allowed_range(metadata: Any) -> str:
  """The allowed values of a field in words, "" when there is no bound."""
  if metadata.get("choices"):
    return "one of " + ", ".join(repr(c) for c in metadata["choices"])
  low, high = metadata.get("minimum"), metadata.get("maximum")
  above = metadata.get("above")
  left = (
    f"> {above}"
    if above is not None
    else (f">= {low}" if low is not None else "")
  )
  right = f"<= {high}" if high is not None else ""
  return " and ".join(part for part in (left, right) if part)


def _in_range(value: Any, metadata: Any) -> bool:
  if metadata.get("choices"):
    return value in metadata["choices"]
  low, high = metadata.get("minimum"), metadata.get("maximum")
  above = metadata.get("above")
  if isinstance(value, float) and value != value:
    return False
  return (
    (low is None or value >= low)
    and (high is None or value <= high)
    and (above is None or value > above)
  )


def is_date(text: str) -> bool:
  """Whether a text is a date of the calendar, as YYYY-MM-DD."""
  if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
    return False
  year, month, day = map(int, text.split("-"))
  if year < 1 or not 1 <= month <= 12:
    return False
  return 1 <= day <= calendar.monthrange(year, month)[1]


class Checked:
  """Refuses values outside a field's range where the config is made."""

  def __post_init__(self):
    for field in dataclasses.fields(self):  # type: ignore[arg-type]
      value = getattr(self, field.name)
      if not _in_range(value, field.metadata):
        raise UserError(
          f"{value!r} is not allowed",
          field=f"{type(self).__name__.lower()}.{field.name}",
          fix=f"give a value {allowed_range(field.metadata)}",
        )


def nearest(name: str, names: Any) -> str:
  """' did you mean X?' for the nearest of `names`, or ''."""
  found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
  return f"did you mean {found[0]!r}?" if found else ""
