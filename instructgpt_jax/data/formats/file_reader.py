"""Reads the records of one file and counts what is skipped or not used."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from instructgpt_jax.data.formats import common as common_lib
from instructgpt_jax.data.formats import registry, skips
from instructgpt_jax.data.formats.format import Format
from instructgpt_jax.data.formats.json_values import is_blank
from instructgpt_jax.data.formats.recognise import recognise
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.records import Demonstration, Prompt, Record

# (line, format, records, why the record is skipped or "")
Row = tuple[int, Format, list[Record], str]


@dataclasses.dataclass
class _Group:
  """The replies to one prompt that have been read."""

  reader: RecordReader
  head: Prompt
  labeler_id: str
  values: list[Any]


class FileReader:
  """Converts the JSON values of one file to records.

  The first value decides the format, with those after it where a field of the
  first is blank.

  Attributes:
    unused: how many records have each field that nothing reads.
    notes: how many records each other remark applies to.
  """

  def __init__(self, path: str, kind: type | None):
    self._path, self._kind = path, kind
    self._format: Format | None = None
    self._groups: dict[Any, _Group] = {}
    self.unused: collections.Counter[str] = collections.Counter()
    self.notes: collections.Counter[str] = collections.Counter()

  @property
  def format(self) -> Format | None:
    """Returns the format of the file, once a value has been read."""
    return self._format

  def recognise(self, line: int, value: Any, others: Iterable[Any]) -> None:
    """Sets the format by the first value and by values after it."""
    reader = RecordReader(self._path, line)
    self._set_format(recognise(value, reader, self._kind, others))

  def read(self, line: int, value: Any) -> Row:
    """Reads one value; a value of a grouped format gives no record yet."""
    reader = RecordReader(self._path, line)
    if self._format is None:
      self.recognise(line, value, ())
    known = self._format
    assert known is not None
    reader.strict = known.strict
    if not isinstance(value, dict) and not known.fits(value):
      reader.fail(
        f"is not of the format of the lines before ({known.name})",
        "",
        "write every record of a file in the same format",
        "mixed_formats",
      )
    if isinstance(value, dict):
      for name in value.keys() - self._known:
        if not is_blank(value[name]):
          reader.unused.add(name)
    records: list[Record] = []
    reason = ""
    try:
      common = self._read_common(value, reader)
      if known.group:
        self._add_to_groups(value, common, reader)
        return line, known, [], ""
      records, reason = self._parse(value, common, reader)
    except Skip as skip:
      reason = str(skip)
    finally:
      if reader.unused or reader.notes:
        self.unused.update(reader.unused)
        self.notes.update(reader.notes)
    return line, known, records, reason

  def finish(self) -> Iterator[Row]:
    """Yields the records of grouped formats, once all values are read."""
    for group in self._groups.values():
      known = self._format
      assert known is not None and known.group is not None
      reason = ""
      records: list[Record] = []
      try:
        records = [
          dataclasses.replace(
            record,
            user_id=group.head.user_id,
            split=group.head.split,
            labeler_id=group.labeler_id,
          )
          for record in known.group(
            group.values, group.head.turns, group.reader
          )
        ]
      except Skip as skip:
        reason = str(skip)
        records = [group.head]
      self.notes.update(group.reader.notes)
      yield group.reader.line, known, records, reason

  def _set_format(self, known: Format) -> None:
    self._format = known
    if known.name == registry.PLAIN.name:
      return
    self._known = registry.known_fields(known.name)
    self._common = registry.common_fields(known.name)

  def _read_common(
    self, value: Any, reader: RecordReader
  ) -> common_lib.Common | None:
    if not isinstance(value, dict):
      return None
    names = value.keys() & self._common
    if not names:
      return None
    # A record of ours with a wrong split is an error; web texts carry any.
    strict = reader.strict and self._format.common is None  # type: ignore[union-attr]
    return common_lib.read(value, sorted(names), reader, strict)

  def _parse(
    self, value: Any, common: common_lib.Common | None, reader: RecordReader
  ) -> tuple[list[Record], str]:
    assert self._format is not None
    records = list(self._format.parse(value, reader))
    if not records:
      return [], skips.EMPTY
    if common is None:
      return records, ""
    applied: list[Record] = []
    reason = ""
    for record in records:
      try:
        applied.append(common_lib.apply(record, common, reader.context_turns))
      except Skip as skip:
        if str(skip) != skips.LATER_CONTEXT:
          raise
        reason = str(skip)
        continue
      if type(applied[-1]) is not type(record):
        reason = common.excluded
    if common.label and not any(isinstance(r, Demonstration) for r in records):
      reader.unused.add(common.label)
    return applied, reason

  def _add_to_groups(
    self, value: Any, common: common_lib.Common | None, reader: RecordReader
  ) -> None:
    assert self._format is not None
    for turns, reply, labeler_id in self._format.parse(value, reader):
      head: Any = Prompt(turns=turns, origin=reader.origin)
      if common is not None:
        head = common_lib.apply(head, common)
        labeler_id = common.labeler_id or labeler_id
        if common.label:
          reader.unused.add(common.label)
      key = (head.turns, head.user_id, head.split, labeler_id)
      group = self._groups.setdefault(
        key,
        _Group(RecordReader(reader.file, reader.line), head, labeler_id, []),
      )
      group.values.append(reply)
