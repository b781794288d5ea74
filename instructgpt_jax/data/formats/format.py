"""The description of a file format: its fields and its parser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats.json_values import is_blank, is_null
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.records import Turn

# Yields the records of the replies to one prompt.
Group = Callable[[list[Any], tuple[Turn, ...], RecordReader], Iterator[Any]]


@dataclasses.dataclass(frozen=True)
class Format:
  """One file format.

  Attributes:
    name: name in reports.
    fits: whether a record has this format, by its fields alone.
    parse: yields the records of one JSON value; may raise Skip.
    fields: the fields that the parser reads, with what each is used as.
    example: fields that show the format in hints.
    irrelevant: fields that have no bearing on the records.
    common: the fields of `common.FIELDS` that are read as well, or None for
      all of them but those that the format reads itself.
    strict: whether unusable values are errors, as in our own formats, and not
      skips.
    result: what the records become, for the documentation.
    group: yields the records of all replies to one prompt, for formats that
      spread a ranking over several records; `parse` then yields (prompt, reply,
      labeler id).
  """

  name: str
  fits: Callable[[Any], bool]
  parse: Callable[[Any, RecordReader], Iterator[Any]]
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  example: tuple[str, ...] = ()
  irrelevant: tuple[str, ...] = ()
  common: tuple[str, ...] | None = None
  strict: bool = False
  result: str = ""
  group: Group | None = None


def has(*fields: str, without: tuple[str, ...] = ()) -> Callable[[Any], bool]:
  """Returns a test for objects that have some fields and lack others."""

  def fits(obj: Any) -> bool:
    return (
      isinstance(obj, dict)
      and all(f in obj for f in fields)
      and all(is_null(obj.get(f)) for f in without)
    )

  return fits


def first_of(obj: Mapping[str, Any], names: tuple[str, ...]) -> str:
  """Returns the first name that the object has with a value, or ""."""
  for name in names:
    if not is_null(obj.get(name)):
      return name
  return next((name for name in names if name in obj), "")


def choose(
  obj: Mapping[str, Any], names: tuple[str, ...], reader: RecordReader
) -> str:
  """Returns the first name with a value; other names' values are unused."""
  name = first_of(obj, names)
  reader.unused.update(
    other
    for other in names
    if other != name
    and not is_blank(obj.get(other))
    and obj[other] != obj.get(name)
  )
  return name
