"""Reads the values of a file of any kind, each with its line or row."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.reading import (
  csv_files,
  hub,
  json_files,
  specs,
  tables,
  text_files,
  tfds,
)
from instructgpt_jax.errors import UserError


def read_values(
  path: str, unused: collections.Counter[str]
) -> Iterator[tuple[int, Any]] | str:
  """Returns (line or row, JSON value) pairs of a file, or a text.

  Fields of an object around a list of records are added to `unused`.
  """
  if path.startswith(specs.TFDS):
    return tfds.read_values(path)
  if path.startswith(specs.HUB):
    return hub.read_values(path)
  if is_table(path):
    return read_table(path)
  return json_files.read_values(path, unused)


def is_table(path: str) -> bool:
  """Returns whether the name of a file is that of a table."""
  suffix = text_files.suffix(path)
  return suffix in csv_files.DELIMITERS or suffix in tables.SUFFIXES


def read_table(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line or row, record) of a table.

  Raises:
    UserError: the file cannot be read.
  """
  if text_files.suffix(path) in csv_files.DELIMITERS:
    return csv_files.read_values(path)
  return tables.read_values(path)


def is_empty(path: str, *, small: bool) -> bool:
  """Returns whether a file holds nothing: no text, or a table without rows.

  Args:
    path: the file.
    small: whether it is so small that its text may be blank.

  Raises:
    UserError: the file cannot be read.
  """
  suffix = text_files.suffix(path)
  try:
    if suffix in tables.SUFFIXES:
      return not tables.num_rows(path)
    if small and suffix in csv_files.DELIMITERS:
      return next(csv_files.read_values(path), None) is None
    if small:
      text_files.read_text(path)
  except UserError as error:
    if error.code != "empty_file":
      raise
    return True
  return False
