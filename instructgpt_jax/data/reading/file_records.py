"""Reads the records of one file, of one kind or of all."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

from instructgpt_jax.data import formats
from instructgpt_jax.data.reading import values as values_lib
from instructgpt_jax.data.reading.report import FileReport
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Record,
)
from instructgpt_jax.errors import UserError

KIND_NAMES = {
  Demonstration: "demonstrations",
  Ranking: "rankings",
  Prompt: "prompts",
  Document: "documents",
}
FIXES = {
  Demonstration: 'give each record a "completion", or another file',
  Ranking: 'give each record "completions" and "ranks", or another file',
  Prompt: 'give each record a "prompt", or another file',
  Document: 'give each record a "text", a .txt file, or another file',
}
_FIRST_FIELD = {
  Demonstration: "completion",
  Ranking: "completions",
  Prompt: "prompt",
  Document: "text",
}
_R = TypeVar("_R", Demonstration, Ranking, Prompt, Document)


def _convert(records: list[Record], kind: type[_R]) -> list[_R]:
  """Converts the records of one JSON value to the requested kind.

  Prompts can be drawn from demonstrations and rankings; nothing else changes
  its kind.
  """
  usable = [r for r in records if isinstance(r, kind)]
  if usable or kind is not Prompt:
    return usable
  drawn: dict[Any, Prompt] = {}
  for r in records:
    if isinstance(r, Demonstration | Ranking):
      drawn.setdefault(
        r.turns,
        Prompt(
          turns=r.turns, user_id=r.user_id, origin=r.origin, split=r.split
        ),
      )
  return list(drawn.values())  # type: ignore[return-value]


def _scan(
  path: str, kind: type | None, reader: formats.FileReader
) -> Iterator[tuple[int, formats.Format, list[Record], str]]:
  """Yields (line, format, records, reason to skip) of each value."""
  values = values_lib.read_values(path, reader.unused)
  if isinstance(values, str):
    if kind not in (None, Document):
      raise UserError(
        f"is plain text, which holds no {KIND_NAMES[kind]}",
        file=path,
        line=1,
        field=_FIRST_FIELD[kind],
        fix="give a .jsonl file; docs/data.md has one example each",
        code="plain_text",
      )
    yield 1, formats.PLAIN, [Document(text=values, origin=f"{path}:1")], ""
    return
  for line, value in _recognised(values, reader):
    yield reader.read(line, value)
  yield from reader.finish()
  if reader.format is None:
    raise UserError(
      "holds no records",
      file=path,
      line=1,
      fix="give a file with records, or leave this one out",
      code="no_records",
    )


def _recognised(
  values: Iterator[tuple[int, Any]], reader: formats.FileReader
) -> Iterator[tuple[int, Any]]:
  """Recognises a file's format by its first value; returns all its values.

  Where that value has blank fields, the values after it are read as well.
  """
  head = list(itertools.islice(values, 1))
  if head and formats.is_ambiguous(head[0][1]):
    head += itertools.islice(values, formats.LOOKAHEAD)
  if head:
    (line, value), *others = head
    reader.recognise(line, value, [other for _, other in others])
  return itertools.chain(head, values)


class FileRecords(NamedTuple):
  """The records of one file that are of one kind, and the report on them."""

  records: list[Any]
  report: FileReport


class Collected:
  """Records and skips of a file, for a stage of one kind.

  Attributes:
    records: the records of the kind, or all of them.
    skipped: number of skipped values for each reason.
    first_skip: line of the first value that is skipped for each reason.
    others: number of records of each other kind in skipped values.
  """

  def __init__(self, kind: type | None):
    self._kind = kind
    self.records: list[Any] = []
    self.skipped: collections.Counter[str] = collections.Counter()
    self.first_skip: dict[str, int] = {}
    self.others: collections.Counter[str] = collections.Counter()

  def add(self, line: int, items: list[Record], reason: str) -> None:
    """Adds the records of one value; `reason` says why some are left out."""
    usable: list[Any] = items
    if self._kind is not None:
      usable = _convert(items, self._kind)  # type: ignore[type-var]
      if items and not usable and not reason:
        reason = f"records without {KIND_NAMES[self._kind]}"
        self.others.update(KIND_NAMES[type(r)] for r in items)
    if reason and (self._kind is None or not usable):
      self.skipped[reason] += 1
      self.first_skip.setdefault(reason, line)
    self.records += usable

  def report(
    self, path: str, name: str, reader: formats.FileReader
  ) -> FileReport:
    return FileReport(
      path,
      name,
      len(self.records),
      dict(self.skipped),
      dict(reader.unused),
      dict(reader.notes),
      dict(self.first_skip),
    )


def read_file(path: str, kind: type[_R], must: bool) -> FileRecords:
  collected = Collected(kind)
  name = formats.PLAIN.name
  reader = formats.FileReader(path, kind)
  for line, known, items, reason in _scan(path, kind, reader):
    name = known.name
    collected.add(line, items, reason)
  if not collected.records and must:
    _nothing_left(path, name, kind, collected)
  return FileRecords(collected.records, collected.report(path, name, reader))


def read_kinds(path: str) -> dict[type | None, FileRecords]:
  """Reads a file once, as a stage of each kind would.

  Returns:
    Kind -> its records, and the report with what a stage of the kind skips;
    None -> the records of all kinds.
  """
  kinds = (None, *KIND_NAMES)
  collected = {kind: Collected(kind) for kind in kinds}
  name = formats.PLAIN.name
  reader = formats.FileReader(path, None)
  for line, known, items, reason in _scan(path, None, reader):
    name = known.name
    for part in collected.values():
      part.add(line, items, reason)
  return {
    kind: FileRecords(part.records, part.report(path, name, reader))
    for kind, part in collected.items()
  }


def read_any(path: str) -> FileRecords:
  """Reads all records of a file, of any kind, and returns its report too."""
  return read_kinds(path)[None]


def iterate(path: str, kind: type | None) -> Iterator[Any]:
  """Yields the records of a file lazily, without those that a stage skips.

  Args:
    path: the file.
    kind: the kind of record; None for all kinds.
  """
  reader = formats.FileReader(path, kind)
  for _, _, items, _ in _scan(path, kind, reader):
    yield from items if kind is None else _convert(items, kind)


def _nothing_left(
  path: str,
  name: str,
  kind: type,
  collected: Collected,
) -> NoReturn:
  plural = KIND_NAMES[kind]
  skipped, first_skip = collected.skipped, collected.first_skip
  if collected.others:
    kinds = " and ".join(collected.others)
    raise UserError(
      f"is recognised as {name}, which holds {kinds} but no {plural}",
      file=path,
      line=min(first_skip.values()),
      field=_FIRST_FIELD[kind],
      fix=FIXES[kind],
      code="other_kind",
    )
  reasons = ", ".join(f"{n} {why}" for why, n in skipped.items())
  raise UserError(
    f"holds no usable record: {reasons}",
    file=path,
    line=min(first_skip.values()),
    fix="give at least one ranking with two different ranks"
    if max(skipped, key=lambda reason: skipped[reason]) == formats.TIES
    else f"give a file with usable {plural}; docs/data.md says what is skipped",
    code="nothing_left",
  )
