"""Reads data files as stages would, for the data command."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.data import (
  formats,
  reading,
  records,
  tokenizers,
)
from instructgpt_jax.data.reading import paths
from instructgpt_jax.errors import UserError


class WordTokenizer(tokenizers.Tokenizer):
  """Counts words between blanks, for use without a tokenizer."""

  def __init__(self):
    super().__init__(base_size=1, pad_id=-1, eos_id=-1)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [
      [zlib.crc32(w.encode()) >> 1 for w in re.findall(r"\S+", t)]
      for t in texts
    ]


@dataclasses.dataclass(frozen=True)
class File:
  """The records and the report of one file.

  Attributes:
    named: whether the source names the file itself, and not a directory.
    kinds: kind -> what a stage of the kind reads; None -> all records.
  """

  named: bool
  kinds: dict[type | None, reading.FileRecords]

  @property
  def records(self) -> list[Any]:
    return self.kinds[None].records

  @property
  def report(self) -> reading.FileReport:
    return self.kinds[None].report

  def holds(self, kind: type) -> bool:
    """Returns whether a record of the file is of a kind."""
    return any(isinstance(r, kind) for r in self.records)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Limits and tokenizer that files are judged by.

  Attributes:
    data: limits, tags and shares.
    tokenizer: counts tokens or words.
    unit: plural of what the tokenizer counts.
  """

  data: configs.Data
  tokenizer: tokenizers.Tokenizer
  unit: str


def _read_file(path: str, named: bool, must: bool) -> File:
  file = File(named, reading.read_kinds(path))
  if not file.records and must:
    skipped = file.report.skipped.items()
    raise UserError(
      "no record is left of it: "
      + ", ".join(f"{n} {why}" for why, n in skipped),
      file=path,
      line=1,
      fix="see docs/data.md for what is skipped, and why",
      code="nothing_left",
    )
  return file


def read_files(listing: paths.Listing) -> list[File]:
  """Reads the files of one source, and splits records by file names."""
  only = len(listing.files) == 1
  files = [
    _read_file(path, named, named or only)
    for path, named in listing.files.items()
  ]
  for kind in reading.KIND_NAMES:
    group = members(files, kind)
    parts = [file.kinds[kind] for file in group]
    parts = reading.split_by_name(parts, listing.roots)
    for file, part in zip(group, parts, strict=True):
      file.kinds[kind] = part
  return files


def members(files: Sequence[File], kind: type) -> list[File]:
  """Returns the files that a stage of a kind would read together.

  These are files with records of the kind, and where there are any, the other
  files of directories and globs that a stage does not ignore.
  """
  if not any(file.holds(kind) for file in files):
    return []
  return [
    file
    for file in files
    if file.holds(kind) or (not file.named and not _is_ignored(file, kind))
  ]


def _is_ignored(file: File, kind: type) -> bool:
  return file.report.format == formats.PLAIN.name and kind != records.Document


def train_on_files(
  files: Sequence[File], data: configs.Data, section: configs.Tokenizer
) -> tokenizers.Tokenizer:
  """Trains a tokenizer on the files' documents, or else on all their texts."""
  items = [r for f in files for r in f.records]
  texts = [r.text for r in items if isinstance(r, records.Document)]
  if not texts:
    for record in items:
      prompt = records.prompt_text(record.turns, data)
      texts += [
        prompt + records.completion_text(c) for c in records.replies(record)
      ] or [prompt]
  return tokenizers.train_tokenizer(texts, section)
