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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from absl import logging

from instructgpt_jax import streams
from instructgpt_jax.data import (
  containers,
  contents,
  file_splits,
  formats,
  paths,
)
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
# The beginning of an array of texts, each on a line of its own.
_PRETTY_TEXTS = re.compile(r'\s*\[\s*"(?:[^"\\\n]|\\.)*"[ \t]*,[ \t]*\n')
_START = 100_000  # characters of a .txt file that are looked at
_SMALL = 4096  # bytes of a file that may hold nothing but blanks
_FEW_NULS = 20  # characters of a record for each NUL in it
_ESCAPE = re.compile(r"\\(u0000|.)", re.DOTALL)
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


def _count_nuls(raw: str) -> int:
  """Counts the NUL characters that a JSON text escapes."""
  if raw.count(r"\u0000") <= contents.STRAY_NULS:
    return 0
  # Escape by escape: "\\u0000" is a backslash before a word.
  return _ESCAPE.findall(raw).count("u0000")


def _as_record(value: Any, raw: str, at: formats.At) -> Any:
  """Returns a JSON value as a record, or refuses what is no text."""
  problem = ""
  nuls = _count_nuls(raw)
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
  return containers.with_messages(value)


def _json_lines(text: str, path: str) -> Iterator[tuple[int, Any]]:
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise _bad_json(e, path, number, True) from e
    yield number, _as_record(value, line, formats.At(path, number))


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
    yield line, _as_record(value, text[at:end], formats.At(path, line))
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
    lists = containers.record_lists(containers.with_messages(value))
    if lists:
      if unused is not None:
        unused.update(containers.other_fields(value, lists))
      split = containers.outer_split(value)
      return _json_container(text, path, lists, split)
    return iter([(1, _as_record(value, text, formats.At(path, 1)))])
  return _json_lines(text, path)


def _refuse_json_in_txt(text: str, path: str) -> None:
  """Refuses JSON lines in a .txt file, which would be read as one text."""
  lines = [line for line in text[:_START].split("\n") if line.strip()]
  whole = lines if len(text) <= _START else lines[:-1]
  start = text.lstrip()[:_START]
  array = re.match(r'\[\s*[{"]', start) and text.rstrip().endswith("]")
  if not array and (not whole or not whole[0].startswith("{")):
    return
  try:
    values = json.loads(text) if array else [json.loads(w) for w in whole]
  except (ValueError, RecursionError):
    return
  texts = array and all(isinstance(value, str) for value in values)
  if texts or all(isinstance(value, dict) for value in values):
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
  if _PRETTY_TEXTS.match(text) or _is_array(text):
    return ".json"
  first = text.lstrip().split("\n", 1)[0]
  if first.startswith(('"', "[")):
    try:
      json.loads(first)
    except (ValueError, RecursionError):
      return ".txt"
    return ".json" if first.startswith("[") else ".jsonl"
  return ".txt"


def _is_array(text: str) -> bool:
  """Whether a text is one JSON array."""
  if not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
    return False
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


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
  return (
    (i, containers.with_messages(_plain(source[i]))) for i in range(count)
  )


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


class _Collected:
  """What a stage of one kind reads and skips of a file.

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

  def report(self, path: str, name: str, reader: formats.Reader) -> FileReport:
    return FileReport(
      path,
      name,
      len(self.records),
      dict(self.skipped),
      dict(reader.unused),
      dict(reader.notes),
      dict(self.first_skip),
    )


def _read_file(path: str, kind: type[_R], must: bool) -> FileRecords:
  collected = _Collected(kind)
  name = formats.PLAIN.name
  reader = formats.Reader(path, kind)
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
  collected = {kind: _Collected(kind) for kind in kinds}
  name = formats.PLAIN.name
  reader = formats.Reader(path, None)
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


def split_by_name(
  files: Sequence[FileRecords], roots: Mapping[str, str]
) -> list[FileRecords]:
  """Gives records the split that their file's name says.

  It stands where the names of files with records say two splits or more.
  Records with a split of their own keep it. The reports note how many records
  the name decides for.

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


def _nothing_left(
  path: str,
  name: str,
  kind: type,
  collected: _Collected,
) -> NoReturn:
  plural = KIND_NAMES[kind]
  skipped, first_skip = collected.skipped, collected.first_skip
  if collected.others:
    contents = " and ".join(collected.others)
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
  files: list[FileRecords] = []
  for path, named in listing.files.items():
    try:
      file = _read_file(path, kind, named or len(listing.files) == 1)
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
      fix=_FIXES[kind],
      code="no_records",
    )
  reports = tuple(file.report for file in files)
  return records, Report(reports, tuple(listing.ignored))


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
