"""Reads Parquet and Arrow files lazily: a record a row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from instructgpt_jax import file_signatures
from instructgpt_jax.data.reading import (
  containers,
  python_values,
  text_files,
)
from instructgpt_jax.errors import UserError

SUFFIXES = (".parquet", ".arrow")
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_BATCH = 1024  # rows that are decoded at a time


def read_values(path: str) -> Iterator[tuple[int, Any]]:
  """Yields (row, record) for each row, counted from 1.

  Raises:
    UserError: the file is no Parquet or Arrow file, or is damaged or cut short.
  """
  import pyarrow

  row = 0
  try:
    for batch in _batches(path):
      for value in records_of(batch, path):
        row += 1
        yield row, value
  except (pyarrow.ArrowException, ValueError, OSError) as error:
    raise _damaged(path, row + 1, error) from error


def num_rows(path: str) -> int:
  """Counts the rows of a file without reading its columns, where it can."""
  import pyarrow.parquet

  try:
    source = _open(path)
    if _magic(source) == _PARQUET:
      return pyarrow.parquet.ParquetFile(source).metadata.num_rows
    return sum(batch.num_rows for batch in _arrow_batches(source))
  except (pyarrow.ArrowException, ValueError, OSError) as error:
    raise _damaged(path, 1, error) from error


def records_of(batch: Any, path: str) -> Iterator[Any]:
  """Yields the rows of an Arrow record batch or table as JSON values."""
  names = batch.schema.names
  repeated = [n for i, n in enumerate(names) if n in names[:i]]
  if repeated:
    raise UserError(
      f"has two columns {repeated[0]!r}",
      file=path,
      line=1,
      fix="rename or delete one of them",
      code="duplicate_columns",
    )
  try:
    for value in python_values.rows(batch):
      yield containers.with_messages(value)
  except KeyError as error:
    raise UserError(
      f"has a map with a key twice ({' '.join(str(error.args[0]).split())})",
      file=path,
      line=1,
      fix="delete that column, or write it as a list of objects",
      code="duplicate_keys",
    ) from error


def _batches(path: str) -> Iterator[Any]:
  """Yields the record batches of a file."""
  source = _open(path)
  if _magic(source) != _PARQUET:
    yield from _arrow_batches(source)
    return
  import pyarrow.parquet

  yield from pyarrow.parquet.ParquetFile(source).iter_batches(_BATCH)


def _arrow_batches(source: Any) -> Iterator[Any]:
  import pyarrow.ipc

  if _magic(source) == _ARROW_STREAM:
    yield from pyarrow.ipc.open_stream(source)
    return
  reader = pyarrow.ipc.open_file(source)
  for i in range(reader.num_record_batches):
    yield reader.get_batch(i)


def _magic(source: Any) -> bytes:
  """Returns the first bytes that tell Parquet and Arrow files apart."""
  head = source.read_at(len(_ARROW_FILE), 0)
  kinds = (_PARQUET, _ARROW_FILE, _ARROW_STREAM)
  return next((m for m in kinds if head.startswith(m)), b"")


def _open(path: str) -> Any:
  """Opens a file for Arrow: mapped into memory, or unpacked from gzip."""
  import pyarrow

  head = b""
  is_file = os.path.isfile(path) and os.access(path, os.R_OK)
  if is_file and os.path.getsize(path):
    source = pyarrow.memory_map(path)
    head = source.read_at(file_signatures.HEAD, 0)
  if not head or head.startswith(text_files.GZIP):
    # A pipe, a packed file, or one whose error is raised here.
    content = text_files.unpacked_bytes(path)
    source = pyarrow.BufferReader(content)
    head = content[: file_signatures.HEAD]
  if not _magic(source):
    file_signatures.refuse(head, path, line=1)
    raise UserError(
      "is no Parquet or Arrow file" if head else "is empty",
      file=path,
      line=1,
      fix="name it for what it holds (.jsonl, .csv, .txt)"
      if head
      else "give a file with records, or leave this one out",
      code="bad_table" if head else "empty_file",
    )
  return source


def _damaged(path: str, row: int, error: Exception) -> UserError:
  return UserError(
    "is damaged or cut short"
    f" ({' '.join(str(error).split())[:160] or type(error).__name__})",
    file=path,
    line=row,
    fix="copy or write the file again",
    code="bad_table",
  )
