"""Divides the files of a corpus into units of work.

A unit has about `UNIT_BYTES` of text: consecutive files, or a part of a large
file. Documents are split and packed unit by unit, by one process each. Small
units cost padding, large ones memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import file_parts, file_splits, specs
from instructgpt_jax.data.records import Document
from instructgpt_jax.errors import UserError

UNIT_BYTES = 1 << 25


class Piece(NamedTuple):
  """A file of a unit, or a part of it.

  Attributes:
    path: the file, or a name of TFDS or the hub.
    split: split of records that do not give theirs; "" for none.
    start: first byte.
    stop: byte after the last one; -1 for a whole file.
    named: whether the file must hold a document.
  """

  path: str
  split: str
  start: int = 0
  stop: int = -1
  named: bool = False


Unit = list[Piece]


class Plan(NamedTuple):
  """What is to be read.

  Attributes:
    units: units of work, in the order of their documents.
    files: [path, size in bytes, time of the last change] of each file.
    ignored: [path, reason] of the files that are not read.
  """

  units: list[Unit]
  files: list[list[Any]]
  ignored: list[list[str]]


def plan(paths: Sequence[str], unit_bytes: int = UNIT_BYTES) -> Plan:
  """Lists the files of a source, and divides them into units.

  Args:
    paths: paths, globs, directories and names; together one source.
    unit_bytes: size of a unit.

  Raises:
    UserError: `no_such_file` and others of `reading.list_files`;
      `weighted_documents`, a path has a weight; `pipe`, a file can be read once
      only.
  """
  listing = reading.list_files(*paths)
  if listing.sources:
    raise UserError(
      "has a weight, but prepared documents have none",
      file=listing.sources[0].name,
      fix="prepare the documents without weights",
      code="weighted_documents",
    )
  files = [describe_file(path) for path in listing.files]
  names = _split_names(listing.files, listing.roots)
  only = len(listing.files) == 1
  units: list[Unit] = []
  size = unit_bytes
  for (path, named), (_, file_size, _) in zip(
    listing.files.items(), files, strict=True
  ):
    split = names.get(path, "")
    if file_size > unit_bytes and file_parts.can_be_cut(path):
      pieces = [
        Piece(path, split, start, stop)
        for start, stop in file_parts.cuts(path, unit_bytes)
      ]
      units += [[piece] for piece in pieces]
      size = unit_bytes
      continue
    if size >= unit_bytes:
      units.append([])
      size = 0
    units[-1].append(Piece(path, split, named=named or only))
    # The size of a name is unknown: it has a unit of its own.
    size += file_size if file_size >= 0 else unit_bytes
  ignored = [[path, reason] for path, reason in listing.ignored]
  return Plan(units, files, ignored)


def describe_file(path: str) -> list[Any]:
  """Returns path, size and time of the last change of a file."""
  if path.startswith((specs.TFDS, specs.HUB)):
    return [path, -1, 0]
  if not os.path.isfile(path):
    raise UserError(
      "is a pipe or a device, which can be read once only",
      file=path,
      fix="write it to a file, and prepare that",
      code="pipe",
    )
  status = os.stat(path)
  return [path, status.st_size, status.st_mtime_ns]


def _split_names(
  files: dict[str, bool], roots: dict[str, str]
) -> dict[str, str]:
  """Returns the split of each file whose name says one.

  As in `reading.split_by_name`, only files with documents count.
  """
  names = file_splits.by_name(files, roots)
  if not names:
    return {}
  return file_splits.by_name(filter(_has_documents, files), roots)


def _has_documents(path: str) -> bool:
  """Returns whether a file holds a document; reads no more than it must."""
  if not path.startswith((specs.TFDS, specs.HUB)):
    size = os.path.getsize(path)
    if size > UNIT_BYTES and file_parts.can_be_cut(path):
      return any(
        file_parts.read_documents(path, start, stop).records
        for start, stop in file_parts.cuts(path, UNIT_BYTES)
      )
  records = reading.iterate(path, Document)
  return next(records, None) is not None
