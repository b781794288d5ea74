"""Lists the files of a source, without empty files and metadata."""

from __future__ import annotations

import collections
import itertools
import os

from instructgpt_jax.data import formats
from instructgpt_jax.data.prepared import layout
from instructgpt_jax.data.reading import (
  json_files,
  paths,
  text_files,
  values,
)
from instructgpt_jax.errors import UserError

_SMALL = 4096  # bytes of a file that may hold nothing but blanks


def _reason_to_ignore(path: str) -> str:
  """Returns why a file of a directory is not read, or ""."""
  try:
    if values.is_empty(path, small=os.path.getsize(path) < _SMALL):
      return paths.EMPTY
    if text_files.suffix(path) == ".json" and _is_metadata(path):
      return paths.NO_RECORDS
  except (UserError, OSError):
    pass  # It is an error when the file is read.
  return ""


def _is_metadata(path: str) -> bool:
  """Returns whether a .json file is one object of no known format."""
  objects = json_files.read_values(path, collections.Counter())
  if isinstance(objects, str):
    return False
  first = list(itertools.islice(objects, 2))
  if len(first) != 1 or not isinstance(first[0][1], dict):
    return False
  line, value = first[0]
  try:
    formats.recognise(value, formats.RecordReader(path, line))
  except UserError:
    return True
  return False


def list_files(*specs: str) -> paths.Listing:
  """Lists the files that a source names, and the files that are ignored.

  Several arguments are one source, as in a comma list. Empty files and metadata
  in directories and globs are ignored. Where there are no other files, they are
  read and cause an error.
  """
  listing = paths.list_files(*specs)
  others = {
    path: reason
    for path, named in listing.files.items()
    if not named and (reason := _reason_to_ignore(path))
  }
  if len(others) < len(listing.files):
    for path, reason in others.items():
      del listing.files[path]
      listing.ignore(path, reason)
  return listing


def weighted_sources(spec: str) -> list[paths.WeightedSource]:
  """Lists the parts of a source that have weights; [] without weights."""
  if layout.is_prepared(spec):
    return []
  return list_files(spec).sources


def expand(spec: str) -> list[str]:
  """Lists the files that a source names, in the order of reading.

  Args:
    spec: a comma list of files, directories (read with all their
      subdirectories), globs (`**` stands for any subdirectories) and TFDS
      names. Matches of one glob are sorted by name; a file is read once,
      whatever names and links lead to it. In directories and globs only files
      with a suffix of `paths.SUFFIXES`, plain or .gz, count. A directory of
      prepared documents is its manifest.
  """
  if layout.is_prepared(spec):
    return [os.path.join(os.path.expanduser(spec), layout.MANIFEST)]
  return list(list_files(spec).files)
