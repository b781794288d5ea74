"""Reads tables of delimited text (CSV, TSV): a record a row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.reading import containers, text_files
from instructgpt_jax.errors import UserError, json_problem

DELIMITERS = {".csv": ",", ".tsv": "\t", ".psv": "|", ".ssv": ";"}
_NAMES = {",": "commas", "\t": "tabs", "|": "bars", ";": "semicolons"}
_LONGEST_NAME = 100  # characters of a column's name
_LONGEST_CELL = 2**31 - 1
# Columns that hold a list, which a table of text can only write as JSON.
_LISTS = frozenset(
  ("messages", "conversations", "conversation", "conversation_a")
  + ("conversation_b", "rejected_messages", "history", "completions")
  + ("responses", "answers", "ranks", "scores", "ratings", "grades", "turns")
  + ("instances", "choices", "summaries")
)
_MESSAGES = re.compile(
  r'\s*\[\s*\{\s*"(?:role|from|content|value)"\s*:\s*"', re.DOTALL
)


def read_values(path: str) -> Iterator[tuple[int, Any]]:
  """Yields (line, record) for each row of a table with a header.

  A record has a field for each column. A blank cell is null. A cell with a list
  of messages, and every list in a column such as `completions`, is JSON.

  Raises:
    UserError: the header has no usable names, a row has more or fewer cells
      than the header, or a quoted cell does not end.
  """
  delimiter = DELIMITERS[text_files.suffix(path)]
  rows = _rows(text_files.read_text(path), path, delimiter)
  line, cells = next(rows)  # A text that is not blank has a row.
  names = _column_names(cells, path, line, delimiter)
  for line, cells in rows:
    if len(cells) != len(names):
      raise UserError(
        f"has {len(cells)} cells, but the header has {len(names)}",
        file=path,
        line=line,
        fix=f"separate the cells by {_NAMES[delimiter]}, and write a cell that"
        " holds one, a quotation mark or a new line in quotation marks",
        code="ragged_row",
      )
    yield (
      line,
      containers.with_messages(
        {
          name: _value(name, cell, path, line)
          for name, cell in zip(names, cells, strict=True)
        }
      ),
    )


def _rows(
  text: str, path: str, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
  """Yields the first line and the cells of each row that is not blank."""
  csv.field_size_limit(_LONGEST_CELL)
  reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
  line = 1
  while True:
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      is_json = line == 1 and text.lstrip().startswith("{")
      raise UserError(
        f"cannot be split into cells ({error})",
        file=path,
        line=line,
        fix="name it .jsonl"
        if is_json
        else "end each quoted cell with a quotation mark, and write a quotation"
        ' mark inside it twice ("")',
        code="bad_csv",
      ) from error
    if cells:
      yield line, cells
    line = reader.line_num + 1


def _lines(text: str) -> Iterator[str]:
  """Yields the lines of a text, without a copy of the whole."""
  start = 0
  while start < len(text):
    end = text.find("\n", start) + 1 or len(text)
    yield text[start:end]
    start = end


def _column_names(
  cells: list[str], path: str, line: int, delimiter: str
) -> list[str]:
  """Returns the names in a header, or refuses it."""
  names = [cell.strip() for cell in cells]
  problem = fix = code = ""
  others = [d for d in _NAMES if d != delimiter and d in names[0]]
  repeated = [n for i, n in enumerate(names) if n and n in names[:i]]
  if len(names) == 1 and others:
    right = next(s for s, d in DELIMITERS.items() if d == others[0])
    problem = f"its header is separated by {_NAMES[others[0]]}"
    fix = f"name the file {right}, or separate it by {_NAMES[delimiter]}"
    code = "csv_delimiter"
  elif any(len(n) > _LONGEST_NAME or "\n" in n for n in names):
    problem = "its first row has texts, not names of columns"
    fix = "begin the file with a row of names, such as prompt,completion"
    code = "csv_header"
  elif repeated:
    problem = f"has two columns {repeated[0]!r}"
    fix, code = "rename or delete one of them", "duplicate_columns"
  if problem:
    raise UserError(problem, file=path, line=line, fix=fix, code=code)
  # As pandas names the index that it writes without a name.
  return [n or f"Unnamed: {i}" for i, n in enumerate(names)]


def _value(name: str, cell: str, path: str, line: int) -> Any:
  """Returns a cell's value: null, a text, or a list that is JSON."""
  if not cell:
    return None
  is_list = (
    name in _LISTS and cell.lstrip()[:1] == "[" and cell.rstrip()[-1:] == "]"
  )
  if not is_list and not _MESSAGES.match(cell):
    return cell
  try:
    return json.loads(cell)
  except (ValueError, RecursionError) as error:
    if not is_list:
      return cell
    raise UserError(
      f"is a list that is not JSON ({json_problem(error)})",
      file=path,
      line=line,
      field=name,
      fix="write the list with json.dumps: texts in double quotation marks",
      code="bad_json",
    ) from error
