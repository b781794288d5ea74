"""Reads the records of a path, glob, directory, comma list or TFDS name.

A malformed file is an error that names file, line and fix. A record that is
well formed but of no use (a ranking with only ties, an empty reply in a public
file) is skipped and counted in the Report. A named file without a usable record
is an error. See docs/data.md for the whole list.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from absl import logging

from instructgpt_jax import streams
from instructgpt_jax.data import containers, contents, formats, paths
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Record,
)
from instructgpt_jax.errors import UserError, json_problem

TFDS = paths.TFDS
KIND_NAMES = {
  Demonstration: "demonstrations",
  Ranking: "rankings",
  Prompt: "prompts",
  Document: "documents",
}
_FIXES = {
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
# name, name/config, name:1.0.0 or a folder; then train, train[:10%], a+b.
_TFDS_NAME = re.compile(r"(.+?):([A-Za-z_]\w*(?:\[[^\]]*\])?(?:\+.+)?)")
_START = 100_000  # characters of a .txt file that are looked at
_SMALL = 4096  # bytes of a file that may hold nothing but blanks
_FEW_NULS = 20  # characters of a record for each NUL in it
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_R = TypeVar("_R", Demonstration, Ranking, Prompt, Document)


@dataclasses.dataclass(frozen=True)
class FileReport:
  """Counts of one file.

  Attributes:
    path: the file.
    format: the format it was recognised as.
    records: number of records that are used.
    skipped: number of skipped records for each reason.
    unused: number of records that have each field that nothing reads.
    notes: number of records that each other remark applies to.
    first_skips: line of the first value that is skipped for each reason.
  """

  path: str
  format: str
  records: int
  skipped: dict[str, int]
  unused: dict[str, int] = dataclasses.field(default_factory=dict)
  notes: dict[str, int] = dataclasses.field(default_factory=dict)
  first_skips: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
  """What the files of one source gave."""

  files: tuple[FileReport, ...]
  ignored: tuple[paths.Ignored, ...] = ()

  @property
  def records(self) -> int:
    return sum(f.records for f in self.files)

  @property
  def skipped(self) -> dict[str, int]:
    return self._total("skipped")

  @property
  def unused(self) -> dict[str, int]:
    return self._total("unused")

  @property
  def notes(self) -> dict[str, int]:
    return self._total("notes")

  def _total(self, counts: str) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for f in self.files:
      total.update(getattr(f, counts))
    return dict(total)

  @property
  def first_skips(self) -> dict[str, str]:
    """Returns reason -> file and line of the first value skipped for it."""
    first: dict[str, str] = {}
    for f in self.files:
      for reason, line in f.first_skips.items():
        first.setdefault(reason, f"{f.path}:{line}")
    return first

  def __str__(self) -> str:
    lines = []
    for f in self.files:
      notes = "".join(f"; skipped {n} {why}" for why, n in f.skipped.items())
      notes += "".join(f"; {line}" for line in remarks(f.unused, f.notes))
      lines.append(f"{f.path}: {f.format}, {f.records} records{notes}")
    return "\n".join([*lines, *paths.show_ignored(self.ignored)])


def remarks(unused: Mapping[str, int], notes: Mapping[str, int]) -> list[str]:
  """Returns the counts of unused fields and of other remarks as phrases."""
  lines = [f"{n} {what}" for what, n in sorted(notes.items())]
  if unused:
    most = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({n} records)" for name, n in most[:12])
    more = f" and {len(most) - 12} more" if len(most) > 12 else ""
    lines.append(f"unused fields: {shown}{more}")
  return lines


# Which files.


def _reason_to_ignore(path: str) -> str:
  """Returns why a file of a directory is not read, or ""."""
  try:
    if os.path.getsize(path) < _SMALL:
      contents.read_text(path)
    if contents.suffix(path) == ".json" and _is_metadata(path):
      return paths.NO_RECORDS
  except UserError as error:
    return paths.EMPTY if error.code == "empty_file" else ""
  except OSError:
    pass  # It is an error when the file is read.
  return ""


def _is_metadata(path: str) -> bool:
  """Whether a .json file is one object of no known format."""
  values = _values(path, collections.Counter())
  if isinstance(values, str):
    return False
  first = list(itertools.islice(values, 2))
  if len(first) != 1 or not isinstance(first[0][1], dict):
    return False
  line, value = first[0]
  try:
    formats.recognise(value, formats.At(path, line))
  except UserError:
    return True
  return False


def list_files(spec: str) -> paths.Listing:
  """Lists the files that a source names, and the files that are ignored.

  Empty files and metadata in directories and globs are ignored. Where there are
  no other files, they are read and cause an error.
  """
  listing = paths.list_files(spec)
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


def expand(spec: str) -> list[str]:
  """Lists the files that a source names, in the order of reading.

  Args:
    spec: a comma list of files, directories (read with all their
      subdirectories), globs (`**` stands for any subdirectories) and TFDS
      names. Matches of one glob are sorted by name; a file is read once,
      whatever names and links lead to it. In directories and globs only .jsonl,
      .json and .txt files, plain or .gz, count.
  """
  return list(list_files(spec).files)


# What is in a file.


def _bad_json(e: Exception, path: str, line: int, own_line: bool) -> UserError:
  if isinstance(e, RecursionError):
    fix = "write it with fewer levels"
  elif isinstance(e, json.JSONDecodeError):
    fix = (
      "write one JSON value a line"
      if own_line
      else "write the file as one JSON array of records"
    )
  else:
    fix = "write the number as a text, or shorten it"
  return UserError(
    f"is not JSON ({json_problem(e)})",
    file=path,
    line=line,
    fix=fix,
    code="bad_json",
  )


def _has_lone_surrogates(value: Any) -> bool:
  return not streams.is_utf8(json.dumps(value, ensure_ascii=False))


def _checked(value: Any, raw: str, at: formats.At) -> Any:
  problem = ""
  nuls = raw.count(r"\u0000")
  if nuls > contents.STRAY_NULS and nuls * _FEW_NULS > len(raw):
    problem = "holds many NUL characters (\\u0000), so it is not text"
    fix = "convert the original text from its encoding (UTF-16?) to UTF-8"
    code = "nul_characters"
  elif _SURROGATE.search(raw) and _has_lone_surrogates(value):
    problem = "half of a surrogate pair is no character"
    fix = "escape both halves, or write the character itself"
    code = "lone_surrogate"
  if problem:
    raise UserError(problem, file=at.file, line=at.line, fix=fix, code=code)
  return value


def _json_lines(text: str, path: str) -> Iterator[tuple[int, Any]]:
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise _bad_json(e, path, number, True) from e
    yield number, _checked(value, line, formats.At(path, number))


def _json_array(
  text: str, path: str, inside: bool = False
) -> Iterator[tuple[int, Any]]:
  """Yields the elements of an array, each with the line it starts on.

  Args:
    text: the file's text.
    path: the file.
    inside: whether more may follow the array.
  """
  decoder = json.JSONDecoder()
  blank = re.compile(r"[ \t\r\n]*")

  def skip(at: int) -> int:
    space = blank.match(text, at)
    return space.end() if space else at

  at = skip(0) + 1
  line, counted = 1, 0
  while True:
    at = skip(at)
    line += text.count("\n", counted, at)
    counted = at
    if text[at : at + 1] == "]":
      break
    try:
      value, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as e:
      wrong = line + text.count("\n", counted, getattr(e, "pos", at))
      raise _bad_json(e, path, wrong, False) from e
    yield line, _checked(value, text[at:end], formats.At(path, line))
    at = skip(end)
    if text[at : at + 1] == ",":
      at += 1
    elif text[at : at + 1] != "]":
      line += text.count("\n", counted, at)
      e = json.JSONDecodeError("a comma or ] is missing", text, at)
      raise _bad_json(e, path, line, False)
  rest = len(text) if inside else skip(at + 1)
  if rest != len(text):
    e = json.JSONDecodeError("there is more after the array", text, rest)
    raise _bad_json(e, path, line + text.count("\n", counted, rest), False)


def _json_container(
  text: str, path: str, lists: list[str], split: str
) -> Iterator[tuple[int, Any]]:
  """Yields the elements of an object's lists, with line and split."""
  for name, start in containers.list_starts(text, lists):
    before = text.count("\n", 0, start)
    for line, value in _json_array(text[start:], path, inside=True):
      yield before + line, containers.with_split(value, split or name)


def _values(
  path: str, unused: collections.Counter[str] | None = None
) -> Iterator[tuple[int, Any]] | str:
  """Returns (line, JSON value) pairs of a file, or the text if not JSON.

  Fields of an object around a list of records are added to `unused`.
  """
  text = contents.read_text(path)
  suffix = contents.suffix(path)
  if suffix not in paths.SUFFIXES:
    suffix = _sniffed(text)
  if suffix == ".txt":
    _refuse_json_in_txt(text, path)
    return text
  start = text.lstrip()[:1]
  if suffix == ".json" and start == "[":
    return _json_array(text, path)
  if suffix == ".json" and start == "{":
    try:
      value = json.loads(text)
    except (ValueError, RecursionError):
      return _json_lines(text, path)
    lists = containers.record_lists(value)
    if lists:
      if unused is not None:
        unused.update(containers.other_fields(value, lists))
      split = containers.outer_split(value)
      return _json_container(text, path, lists, split)
    return iter([(1, _checked(value, text, formats.At(path, 1)))])
  return _json_lines(text, path)


def _refuse_json_in_txt(text: str, path: str) -> None:
  """Refuses JSON lines in a .txt file, which would be read as one text."""
  lines = [line for line in text[:_START].split("\n") if line.strip()]
  whole = lines if len(text) <= _START else lines[:-1]
  start = text.lstrip()[:_START]
  array = re.match(r"\[\s*\{", start) and text.rstrip().endswith("]")
  if not array and (not whole or not whole[0].startswith("{")):
    return
  try:
    values = json.loads(text) if array else [json.loads(w) for w in whole]
  except (ValueError, RecursionError):
    return
  if all(isinstance(value, dict) for value in values):
    raise UserError(
      "is a .txt file, which is read as one text, but holds JSON"
      + ("" if array else " lines"),
      file=path,
      line=1,
      fix=f"name it {'.json' if array else '.jsonl'}",
      code="json_in_txt",
    )


def _sniffed(text: str) -> str:
  """Returns the suffix that fits a text; pipes have none.

  A text that begins like JSON has to be JSON: an error in it is reported, and
  the text is not read as plain text.
  """
  if re.match(r'\s*(\{\s*["}]|\[\s*[{\]])', text):
    return ".json"
  first = text.lstrip().split("\n", 1)[0]
  if first.startswith(('"', "[")):
    try:
      json.loads(first)
    except (ValueError, RecursionError):
      return ".txt"
    return ".json" if first.startswith("[") else ".jsonl"
  return ".txt"


def _tfds_values(spec: str) -> Iterator[tuple[int, Any]]:
  """(index, record) pairs of a prepared TFDS data set, without TensorFlow."""
  named = _TFDS_NAME.fullmatch(spec[len(TFDS) :])
  if named is None:
    raise UserError(
      "the split is missing",
      file=spec,
      fix="write tfds:name/config:split, for example tfds:mine:train",
    )
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise UserError(
      "TFDS is not installed",
      file=spec,
      fix="pip install tensorflow-datasets array-record",
    ) from e
  name, split = named.groups()
  source: Any
  try:
    if os.path.isdir(os.path.expanduser(name)):
      builder: Any = tfds.builder_from_directory(os.path.expanduser(name))
      source = builder.as_data_source(split=split)
    else:
      source = tfds.data_source(
        name,
        split=split,
        data_dir=os.environ.get("TFDS_DATA_DIR"),
        download=False,
      )
    count = len(source)
  except Exception as e:
    what = " ".join(str(e).split())[:160] or type(e).__name__
    raise UserError(
      f"TFDS cannot open it ({what})",
      file=spec,
      fix="prepare it with file_format='array_record', and set"
      " TFDS_DATA_DIR or give its folder as the name",
    ) from e
  if not count:
    raise UserError(
      "is empty", file=spec, line=1, fix="choose a split with records"
    )
  return ((i, _plain(source[i])) for i in range(count))


def _plain(value: Any) -> Any:
  """TFDS's bytes, numpy scalars and arrays as what JSON would hold."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value  # An image, or an error where a text is expected.
  if isinstance(value, dict):
    result = {k: _plain(v) for k, v in value.items()}
    for field in ("messages", "conversations", "prompt", "completion",
                  "completions", "chosen", "rejected", "history"):  # fmt: skip
      columns = result.get(field)
      if isinstance(columns, dict):
        # A sequence of objects comes as an object of sequences.
        result[field] = [
          dict(zip(columns, row, strict=True))
          for row in zip(*columns.values(), strict=True)
        ]
    return result
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  return value


# Records of a wanted kind.


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
  path: str, kind: type | None, reader: formats.Reader
) -> Iterator[tuple[int, formats.Format, list[Record], str]]:
  """Yields (line, format, records, why they are left out) of each value."""
  values = (
    _tfds_values(path)
    if path.startswith(TFDS)
    else _values(path, reader.unused)
  )
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
    )


def _recognised(
  values: Iterator[tuple[int, Any]], reader: formats.Reader
) -> Iterator[tuple[int, Any]]:
  """Returns the values of a file, of which the first gave its format.

  Where that has blank fields, the values after it are looked at as well.
  """
  head = list(itertools.islice(values, 1))
  if head and formats.is_ambiguous(head[0][1]):
    head += itertools.islice(values, formats.LOOKAHEAD)
  if head:
    (line, value), *others = head
    reader.recognise(line, value, [other for _, other in others])
  return itertools.chain(head, values)


def _read_file(
  path: str, kind: type[_R], must: bool
) -> tuple[list[_R], FileReport]:
  records: list[_R] = []
  skipped: collections.Counter[str] = collections.Counter()
  first_skip: dict[str, int] = {}
  others: collections.Counter[str] = collections.Counter()
  name = formats.PLAIN.name
  reader = formats.Reader(path, kind)
  for line, known, items, reason in _scan(path, kind, reader):
    name = known.name
    usable = _convert(items, kind)
    if items and not usable and not reason:
      reason = f"records without {KIND_NAMES[kind]}"
      others.update(KIND_NAMES[type(r)] for r in items)
    if reason and not usable:
      skipped[reason] += 1
      first_skip.setdefault(reason, line)
    records += usable
  if not records and must:
    _nothing_left(path, name, kind, skipped, first_skip, others)
  return records, FileReport(
    path,
    name,
    len(records),
    dict(skipped),
    dict(reader.unused),
    dict(reader.notes),
    dict(first_skip),
  )


def _nothing_left(
  path: str,
  name: str,
  kind: type,
  skipped: Mapping[str, int],
  first_skip: Mapping[str, int],
  others: Mapping[str, int],
) -> NoReturn:
  plural = KIND_NAMES[kind]
  if others:
    contents = " and ".join(others)
    raise UserError(
      f"is recognised as {name}, which holds {contents} but no {plural}",
      file=path,
      line=min(first_skip.values()),
      field=_FIRST_FIELD[kind],
      fix=_FIXES[kind],
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


def _read(spec: str, kind: type[_R]) -> tuple[list[_R], Report]:
  listing = list_files(spec)
  # A file of a directory may hold only records of other kinds. A file that was
  # named, or the only one, must hold a usable record.
  records: list[_R] = []
  reports = []
  for path, named in listing.files.items():
    try:
      usable, report = _read_file(path, kind, named or len(listing.files) == 1)
    except UserError as error:
      if named or error.code != "plain_text":
        raise
      listing.ignore(path, f"plain text, without {KIND_NAMES[kind]}")
      continue
    records += usable
    reports.append(report)
    if not usable:
      logging.warning("Nothing of %s is used: %s", path, report.skipped)
  if not records:
    raise UserError(
      f"none of its {len(listing.files)} files holds usable {KIND_NAMES[kind]}",
      file=spec,
      line=1,
      fix=_FIXES[kind],
      code="no_records",
    )
  return records, Report(tuple(reports), tuple(listing.ignored))


def read_demonstrations(spec: str) -> tuple[list[Demonstration], Report]:
  """Prompts with the replies that labelers wrote; see `expand` for `spec`."""
  return _read(spec, Demonstration)


def read_rankings(spec: str) -> tuple[list[Ranking], Report]:
  """Prompts with ranked replies; see `expand` for `spec`."""
  return _read(spec, Ranking)


def read_prompts(spec: str) -> tuple[list[Prompt], Report]:
  """Prompts, also those of demonstrations and rankings."""
  return _read(spec, Prompt)


def read_documents(spec: str) -> tuple[list[Document], Report]:
  """Texts for pretraining; a .txt file is one document."""
  return _read(spec, Document)


def read_any(path: str) -> tuple[list[Record], FileReport]:
  """Reads all records of a file, of any kind, and returns its report too."""
  records: list[Record] = []
  skipped: collections.Counter[str] = collections.Counter()
  name = formats.PLAIN.name
  reader = formats.Reader(path, None)
  for _, known, items, reason in _scan(path, None, reader):
    name = known.name
    records += items
    if reason:
      skipped[reason] += 1
  return records, FileReport(
    path,
    name,
    len(records),
    dict(skipped),
    dict(reader.unused),
    dict(reader.notes),
  )
