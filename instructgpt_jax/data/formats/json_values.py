"""Tests and names of JSON values."""

from __future__ import annotations

import math
from typing import Any

TYPE_NAMES = {
  str: "text",
  list: "a list",
  dict: "an object",
  int: "a whole number",
  float: "a number",
}


def as_number(value: Any) -> float | None:
  """Returns a number, also one that is written as text; None for others.

  Whole numbers beyond the range of floats are infinite. NaN is no number.
  """
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  if isinstance(value, str) and "_" in value:
    return None  # Python reads "1_000" as a number.
  try:
    number = float(value)
  except ValueError:
    return None
  except OverflowError:
    return math.inf if value > 0 else -math.inf  # type: ignore[operator]
  return None if math.isnan(number) else number


def is_null(value: Any) -> bool:
  """Returns whether a value is null or NaN, pandas' mark for nothing."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def is_set(value: Any) -> bool:
  """Returns whether a flag or list is not false, 0, null or blank."""
  return bool(value) and not is_null(value)


def is_blank(value: Any) -> bool:
  """Returns whether a value is null, NaN, "", [] or {}."""
  return is_null(value) or value == "" or value == [] or value == {}


def type_name(value: Any) -> str:
  """Names the type of a JSON value."""
  if value is None:
    return "null"
  if isinstance(value, bool):
    return "true or false"
  if isinstance(value, bytes):
    return "binary data"
  return next(
    (n for k, n in TYPE_NAMES.items() if isinstance(value, k)), "a number"
  )
