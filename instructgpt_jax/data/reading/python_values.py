"""Converts values of Arrow, NumPy and TFDS to those that JSON has."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from typing import Any

# Sequences of objects that some writers store as an object of sequences.
_SEQUENCES = ("messages", "conversations", "conversation", "prompt",
              "completion", "completions", "chosen", "rejected",
              "history")  # fmt: skip


def rows(batch: Any) -> Iterator[dict[str, Any]]:
  """Yields the rows of an Arrow record batch or table as JSON values.

  Times and dates become texts (ISO 8601), decimals numbers, and bytes that are
  UTF-8 texts.
  """
  import pyarrow
  import pyarrow.types as types

  columns = []
  is_json = True
  for field, column in zip(batch.schema, batch.columns, strict=True):
    if types.is_temporal(field.type) and not types.is_interval(field.type):
      # Python's times have no nanoseconds.
      column = column.cast(pyarrow.string())
    elif not _is_json(field.type) or field.name in _SEQUENCES:
      is_json = False
    columns.append(column.to_pylist(maps_as_pydicts="strict"))
  names = batch.schema.names
  for values in zip(*columns, strict=True):
    value = dict(zip(names, values, strict=True))
    yield value if is_json else as_json(value)


def _is_json(kind: Any) -> bool:
  """Returns whether the Python values of an Arrow type are JSON values."""
  import pyarrow.types as types

  if types.is_struct(kind):
    return all(_is_json(kind.field(i).type) for i in range(kind.num_fields))
  if types.is_dictionary(kind) or types.is_list(kind):
    return _is_json(kind.value_type)
  return (
    types.is_string(kind)
    or types.is_large_string(kind)
    or types.is_boolean(kind)
    or types.is_integer(kind)
    or types.is_float32(kind)
    or types.is_float64(kind)
    or types.is_null(kind)
  )


def as_json(value: Any) -> Any:
  """Converts bytes, times, decimals, NumPy scalars and arrays to JSON values.

  A field such as `messages` that holds an object of sequences becomes a list of
  objects.
  """
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value  # An image, or an error where a text is expected.
  if isinstance(value, dict):
    result = {k: as_json(v) for k, v in value.items()}
    for field in _SEQUENCES:
      columns = result.get(field)
      if isinstance(columns, dict) and _is_table(columns):
        result[field] = [
          dict(zip(columns, row, strict=True))
          for row in zip(*columns.values(), strict=True)
        ]
    return result
  if isinstance(value, list | tuple):
    return [as_json(v) for v in value]
  if isinstance(value, datetime.datetime | datetime.date | datetime.time):
    return value.isoformat()
  if isinstance(value, datetime.timedelta):
    return str(value)
  if isinstance(value, decimal.Decimal):
    return float(value)
  if hasattr(value, "tolist"):
    return as_json(value.tolist())
  return value


def _is_table(columns: dict[str, Any]) -> bool:
  """Returns whether an object holds lists of one length."""
  if not columns or not all(isinstance(c, list) for c in columns.values()):
    return False
  return len({len(c) for c in columns.values()}) == 1
