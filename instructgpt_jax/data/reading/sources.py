"""Reads the records of a source: all files that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from absl import logging

from instructgpt_jax.data.reading import file_splits
from instructgpt_jax.data.reading import listing as listing_lib
from instructgpt_jax.data.reading.file_records import (
  FIXES,
  KIND_NAMES,
  FileRecords,
  read_file,
)
from instructgpt_jax.data.reading.report import Report
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
)
from instructgpt_jax.errors import UserError

_R = TypeVar("_R", Demonstration, Ranking, Prompt, Document)


def split_by_name(
  files: Sequence[FileRecords], roots: Mapping[str, str]
) -> list[FileRecords]:
  """Sets the split of records by the name of their file.

  Names count where those of the files with records name at least two splits.
  Records that have a split keep it. The reports note how many splits are set.

  Args:
    files: all files of one source, with the records of one kind.
    roots: those of the source's listing.
  """
  names = [f.report.path for f in files if f.records]
  by_name = file_splits.by_name(names, roots)
  result = []
  for file in files:
    split = by_name.get(file.report.path, "")
    if split and (count := sum(not r.split for r in file.records)):
      records = [
        r if r.split else dataclasses.replace(r, split=split)
        for r in file.records
      ]
      notes = {**file.report.notes, f"records in {split} by file name": count}
      report = dataclasses.replace(file.report, notes=notes)
      file = FileRecords(records, report)
    result.append(file)
  return result


def _read(spec: str, kind: type[_R]) -> tuple[list[_R], Report]:
  listing = listing_lib.list_files(spec)
  # A file of a directory may hold only records of other kinds. A file that was
  # named, or the only one, must hold a usable record.
  files: list[FileRecords] = []
  for path, named in listing.files.items():
    try:
      file = read_file(path, kind, named or len(listing.files) == 1)
    except UserError as error:
      if named or error.code != "plain_text":
        raise
      listing.ignore(path, f"plain text, without {KIND_NAMES[kind]}")
      continue
    files.append(file)
    if not file.records:
      logging.warning("Nothing of %s is used: %s", path, file.report.skipped)
  files = split_by_name(files, listing.roots)
  records: list[_R] = [r for file in files for r in file.records]
  if not records:
    raise UserError(
      f"none of its {len(listing.files)} files holds usable {KIND_NAMES[kind]}",
      file=spec,
      line=1,
      fix=FIXES[kind],
      code="no_records",
    )
  reports = tuple(file.report for file in files)
  return records, Report(reports, tuple(listing.ignored))


def read_demonstrations(spec: str) -> tuple[list[Demonstration], Report]:
  """Reads prompts with labelers' replies; see `specs` for `spec`."""
  return _read(spec, Demonstration)


def read_rankings(spec: str) -> tuple[list[Ranking], Report]:
  """Reads prompts with ranked replies; see `specs` for `spec`."""
  return _read(spec, Ranking)


def read_prompts(spec: str) -> tuple[list[Prompt], Report]:
  """Reads prompts, also those of demonstrations and rankings."""
  return _read(spec, Prompt)


def read_documents(spec: str) -> tuple[list[Document], Report]:
  """Reads texts for pretraining; a .txt file is one document."""
  return _read(spec, Document)
