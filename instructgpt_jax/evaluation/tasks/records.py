"""Reads the records of a task's file, and their fields or an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data import reading
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.reading import json_files, text_files
from instructgpt_jax.errors import UserError

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Record:
  """An object of a file, with what is needed to name it in errors.

  Attributes:
    value: its fields.
    file: the file.
    line: line or row of the file; None within a JSON document.
    expected: what the task's file holds, for errors.
    place: path within a JSON document, such as `data[0].paragraphs[2]`.
  """

  value: Mapping[str, Any]
  file: str
  line: int | None
  expected: str
  place: str = ""

  def error(self, problem: str, field: str = "") -> UserError:
    """Returns the error that this is no item of the task."""
    path = ".".join(part for part in (self.place, field) if part)
    return UserError(
      problem,
      file=self.file,
      line=self.line,
      field=path or None,
      fix=f"give {self.expected}",
      code="bad_task_item",
    )

  def get(self, *names: str, default: Any = _MISSING) -> Any:
    """Returns the first of these fields that is not null.

    Raises:
      UserError: there is none, and no default.
    """
    for name in names:
      if self.value.get(name) is not None:
        return self.value[name]
    if default is not _MISSING:
      return default
    raise self.error("is missing", names[0])

  def text(self, *names: str) -> str:
    """Returns the first of these fields, a text that is not blank."""
    value = self.get(*names)
    if not isinstance(value, str) or not value.strip():
      raise self.error("is not a text", names[0])
    return value

  def text_or_blank(self, name: str) -> str:
    """Returns a text that may be blank or absent."""
    value = self.get(name, default="")
    if not isinstance(value, str):
      raise self.error("is not a text", name)
    return value

  def texts(self, *names: str) -> list[str]:
    """Returns the first of these fields, a list of texts."""
    value = self.get(*names)
    if not isinstance(value, list) or not all(
      isinstance(text, str) for text in value
    ):
      raise self.error("is not a list of texts", names[0])
    return value

  def label(self, name: str, labels: Mapping[str, int]) -> int:
    """Returns the number of a label.

    Args:
      name: its field.
      labels: each label in lower case → its number. The field may be a number
        or a truth value, which is compared as text.
    """
    value = self.get(name)
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    text = str(value).lower()
    if text not in labels:
      raise self.error(
        f"{value!r} is not a label; labels are {', '.join(labels)}", name
      )
    return labels[text]

  def child(self, name: str) -> Record:
    """Returns the object in a field."""
    return self._child(self.get(name), name)

  def children(self, name: str) -> Iterator[Record]:
    """Yields the objects of a field, a list."""
    value = self.get(name)
    if not isinstance(value, list):
      raise self.error("is not a list", name)
    for index, item in enumerate(value):
      yield self._child(item, f"{name}[{index}]")

  def _child(self, value: Any, name: str) -> Record:
    if not isinstance(value, Mapping):
      raise self.error("is not an object", name)
    place = f"{self.place}.{name}" if self.place else name
    return dataclasses.replace(self, value=value, place=place)


def read_records(path: str, expected: str) -> Iterator[Record]:
  """Yields the objects of JSON lines, a JSON document or a table.

  A document that is one object is one record, which holds the others.

  Args:
    path: the file, which may be packed by gzip.
    expected: what the task's file holds, for errors.

  Raises:
    UserError: the file cannot be read, or holds something else.
  """
  if text_files.suffix(path) == ".tsv":
    yield from _tab_rows(path, expected)
  elif reading.is_table(path):
    for row, value in reading.read_table(path):
      yield Record(value, path, row, expected)
  else:
    yield from _json_records(path, expected)


def _json_records(path: str, expected: str) -> Iterator[Record]:
  text = text_files.read_text(path)
  try:
    document = json.loads(text)
  except (ValueError, RecursionError):
    document = None
  if document is not None:
    document = json_files.as_record(document, text, RecordReader(path, 1))
  if isinstance(document, dict):
    yield Record(document, path, 1, expected)
  elif isinstance(document, list):
    # One line may hold all of them, so an index tells more than a line.
    yield from Record({"": document}, path, None, expected).children("")
  else:
    for number, value in json_files.json_lines(text, path):
      record = Record({"": value}, path, number, expected)
      if not isinstance(value, dict):
        raise record.error("is not a JSON object")
      yield dataclasses.replace(record, value=value)


def _tab_rows(path: str, expected: str) -> Iterator[Record]:
  """Yields the rows below a header."""
  rows = tab_cells(path)
  _, names = next(rows, (1, [""]))
  for number, cells in rows:
    record = Record({}, path, number, expected)
    if len(cells) != len(names):
      raise record.error(f"has {len(cells)} cells, but the header {len(names)}")
    value = dict(zip(names, cells, strict=True))
    yield dataclasses.replace(record, value=value)


def tab_cells(path: str) -> Iterator[tuple[int, list[str]]]:
  """Yields (line, cells) of each line that is not blank, split at tabs.

  GLUE's files do not quote cells, so quotation marks are part of a text. A
  program that quotes cells doubles the marks inside, and is undone.
  """
  for number, line in enumerate(text_files.read_text(path).split("\n"), 1):
    if line.strip():
      yield number, [_unquote(cell) for cell in line.split("\t")]


def _unquote(cell: str) -> str:
  inner = cell[1:-1]
  is_quoted = (
    cell[:1] == cell[-1:] == '"'
    and '""' in inner
    and '"' not in inner.replace('""', "")
  )
  return inner.replace('""', '"') if is_quoted else cell
