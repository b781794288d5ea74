"""Reads the records of evaluation files, each with its file and line."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from instructgpt_jax.data.formats.json_values import is_blank, type_name
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.reading import values as values_lib
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError

T = TypeVar("T")


class Records(NamedTuple, Generic[T]):
  """The records of a file, and what was left out of it.

  Attributes:
    items: the usable records.
    skipped: reason → records without use.
    unused: field → records with a value that nothing reads.
  """

  items: list[T]
  skipped: dict[str, int]
  unused: dict[str, int]


def read_records(
  path: str,
  parse: Callable[[Mapping[str, Any], RecordReader], T],
  fields: Collection[str],
) -> Records[T]:
  """Reads a file of one format: JSON lines, a JSON array, CSV or Parquet.

  Args:
    path: the file.
    parse: reads one record; raises Skip to leave it out.
    fields: fields that `parse` reads, or that say nothing about the record.

  Raises:
    UserError: the file cannot be read, a record is malformed, or
      `nothing_left`, none is of use.
  """
  skipped, unused, items = collections.Counter(), collections.Counter(), []
  values = values_lib.read_values(path, unused)
  if isinstance(values, str):
    raise UserError(
      "is plain text, not records",
      file=path,
      fix="give JSON lines, a JSON array, CSV or Parquet",
      code="plain_text",
    )
  for line, value in values:
    reader = RecordReader(path, line)
    if not isinstance(value, dict):
      reader.fail(f"an object is expected, not {type_name(value)}")
    unused.update(
      name for name in value.keys() - set(fields) if not is_blank(value[name])
    )
    try:
      items.append(parse(value, reader))
    except Skip as skip:
      skipped[str(skip)] += 1
  if not items:
    reasons = ", ".join(f"{count} {why}" for why, count in skipped.items())
    raise UserError(
      f"has no usable record: {reasons or 'it is empty'}",
      file=path,
      fix="docs/judges.md shows the fields of each format",
      code="nothing_left",
    )
  return Records(items, dict(skipped), dict(unused))


def show_left_out(path: str, records: Records[Any]) -> list[str]:
  """Returns the lines that say what of a file is not used."""
  lines = [
    f"{path}: left out {count} {why}" for why, count in records.skipped.items()
  ]
  if records.unused:
    names = ", ".join(sorted(records.unused))
    lines.append(f"{path}: fields without use: {names}")
  return lines


def find_warnings(path: str, records: Records[Any]) -> list[str]:
  """Returns the reasons that leave out more than a tenth of a file."""
  total = len(records.items) + sum(records.skipped.values())
  return [
    f"{path}: {count} of {total} records are left out: {why}"
    for why, count in records.skipped.items()
    if 10 * count > total
  ]


def conversation_text(turns: tuple[Turn, ...]) -> str:
  """Returns a prompt as the text that a judge reads; turns have their roles."""
  if len(turns) == 1 and turns[0].role == "user":
    return turns[0].text
  return "\n\n".join(f"{t.role.capitalize()}: {t.text}" for t in turns)
