"""Reads the documents of a large file part by part.

A .jsonl file is cut at ends of lines, a .txt file at a paragraph if there is
one near. Other files are read whole.
"""

from __future__ import annotations

import itertools
import os
import re

from instructgpt_jax import file_signatures
from instructgpt_jax.data import formats
from instructgpt_jax.data.reading import json_files, text_files
from instructgpt_jax.data.reading.file_records import Collected, FileRecords
from instructgpt_jax.data.reading.report import FileReport
from instructgpt_jax.data.records import Document
from instructgpt_jax.errors import UserError

_WINDOW = 1 << 20  # bytes in which a paragraph's end is looked for
_CHUNK = 1 << 22  # bytes per read
_PARAGRAPH = re.compile(rb"\n\s*\n")


def can_be_cut(path: str) -> bool:
  """Returns whether a file can be read in parts: UTF-8 lines or text."""
  if text_files.suffix(path) not in (".jsonl", ".txt"):
    return False
  try:
    with open(path, "rb") as file:
      head = file.read(file_signatures.HEAD)
  except OSError:
    return False  # It is an error when the file is read.
  return (
    not head.startswith(text_files.GZIP)
    and file_signatures.byte_order_mark(head) is None
    and file_signatures.encoding(head) is None
  )


def cuts(path: str, size: int) -> list[tuple[int, int]]:
  """Cuts a file into parts of about `size` bytes, or a little more.

  Args:
    path: a file that `can_be_cut`.
    size: bytes of a part.

  Returns:
    (first byte, byte after the last) of each part.
  """
  end = os.path.getsize(path)
  is_text = text_files.suffix(path) == ".txt"
  parts = []
  with open(path, "rb") as file:
    start = 0
    while start < end:
      stop = start + size
      if stop >= end:
        stop = end
      else:
        file.seek(stop)
        window = file.read(_WINDOW)
        cut = _cut(window, is_text)
        if cut == len(window):  # One line is longer than the window.
          cut += len(file.readline())
        stop = min(stop + cut, end)
      parts.append((start, stop))
      start = stop
  return parts


def _cut(window: bytes, is_text: bool) -> int:
  """Returns the bytes of a window that still belong to the part before it."""
  paragraph = _PARAGRAPH.search(window) if is_text else None
  if paragraph:
    return paragraph.end()
  line = window.find(b"\n")
  return len(window) if line < 0 else line + 1


def read_documents(path: str, start: int, stop: int) -> FileRecords:
  """Reads the documents of a part of a file.

  The first lines of the whole file decide the format of every part.

  Args:
    path: a file that `can_be_cut`.
    start: first byte of the part.
    stop: byte after its last one.

  Returns:
    The documents, and a report whose lines are counted from the part's first.

  Raises:
    UserError: as for the whole file, with the line in the file.
  """
  with open(path, "rb") as file:
    head = file.read(file_signatures.HEAD)
    file.seek(start)
    content = file.read(stop - start)
  if not start:
    file_signatures.refuse(head, path, line=1)
  try:
    text = text_files.decode(content, path)
    if text_files.suffix(path) == ".txt":
      return _read_text(path, text, is_first=not start)
    return _read_lines(path, text)
  except UserError as error:
    raise _moved(error, lines_before(path, start)) from error


def _read_text(path: str, text: str, *, is_first: bool) -> FileRecords:
  if is_first:
    json_files.refuse_json_in_txt(text, path)
  documents = [Document(text=text, origin=path)] if text.strip() else []
  report = FileReport(path, formats.PLAIN.name, len(documents), {})
  return FileRecords(documents, report)


def _read_lines(path: str, text: str) -> FileRecords:
  """Reads the documents of some lines of a JSON lines file."""
  reader = formats.FileReader(path, Document)
  (line, value), *others = _first_values(path)
  reader.recognise(line, value, [other for _, other in others])
  assert reader.format is not None
  collected = Collected(Document)
  for number, value in json_files.json_lines(text, path):
    number, _, records, reason = reader.read(number, value)
    collected.add(number, records, reason)
  for number, _, records, reason in reader.finish():
    collected.add(number, records, reason)
  report = collected.report(path, reader.format.name, reader)
  return FileRecords(collected.records, report)


def _first_values(path: str) -> list[tuple[int, object]]:
  """Reads the values of the first lines, as many as recognition needs."""

  def read(count: int) -> list[tuple[int, object]]:
    with open(path, "rb") as file:
      lines = (line for line in file if line.strip())
      head = b"".join(itertools.islice(lines, count))
    return list(json_files.json_lines(text_files.decode(head, path), path))

  values = read(1)
  if values and formats.is_ambiguous(values[0][1]):
    values = read(1 + formats.LOOKAHEAD)
  return values


def lines_before(path: str, stop: int) -> int:
  """Returns the number of lines that end before a byte of a file."""
  count = 0
  with open(path, "rb") as file:
    while stop > 0 and (chunk := file.read(min(_CHUNK, stop))):
      count += chunk.count(b"\n")
      stop -= len(chunk)
  return count


def _moved(error: UserError, lines: int) -> UserError:
  """Returns an error of a part as one of the file that it belongs to."""
  return UserError(
    error.problem,
    file=error.file,
    line=None if error.line is None else error.line + lines,
    field=error.field,
    fix=error.fix,
    code=error.code,
  )
