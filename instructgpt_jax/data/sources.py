"""From a path, glob, folder, comma list or TFDS name to records.

A malformed file is an error that names file, line and fix. A record that is
well formed but of no use (a ranking with only ties, an empty reply in a public
file) is skipped and counted in the Report; a named file of which nothing is
left is an error. See docs/data.md for the whole list.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import glob
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from absl import logging

from instructgpt_jax.data import containers, formats
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Record,
)
from instructgpt_jax.errors import UserError

TFDS = "tfds:"
SUFFIXES = (".jsonl", ".json", ".txt")
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
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_R = TypeVar("_R", Demonstration, Ranking, Prompt, Document)


@dataclasses.dataclass(frozen=True)
class FileReport:
  """What one file gave.

  Attributes:
    path: the file.
    format: the format it was recognised as.
    records: number of records that are used.
    skipped: number of skipped records for each reason.
    unused: number of records that have each field that nothing reads.
    notes: number of records that each other remark applies to.
  """

  path: str
  format: str
  records: int
  skipped: dict[str, int]
  unused: dict[str, int] = dataclasses.field(default_factory=dict)
  notes: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
  """What the files of one source gave."""

  files: tuple[FileReport, ...]
  ignored: tuple[str, ...] = ()

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

  def __str__(self) -> str:
    lines = []
    for f in self.files:
      notes = "".join(f"; skipped {n} {why}" for why, n in f.skipped.items())
      notes += "".join(f"; {line}" for line in remarks(f.unused, f.notes))
      lines.append(f"{f.path}: {f.format}, {f.records} records{notes}")
    if self.ignored:
      lines.append(
        f"ignored {len(self.ignored)} files that are not {', '.join(SUFFIXES)}"
      )
    return "\n".join(lines)


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


def _suffix(path: pathlib.Path) -> str:
  name = path.name.lower().removesuffix(".gz")
  return pathlib.PurePath(name).suffix


def _nearest(path: pathlib.Path) -> str:
  """A fix that names the existing file nearest to a missing one."""
  parent, missing = path.parent, path.name
  while not parent.is_dir() and parent != parent.parent:
    parent, missing = parent.parent, parent.name
  try:
    names = sorted(p.name for p in parent.iterdir())
  except OSError:
    names = []
  found = difflib.get_close_matches(missing, names, n=1, cutoff=0.4)
  if found:
    return f"did you mean {str(parent / found[0])!r}?"
  return "give an existing file, folder, glob or tfds:name:split"


def _split_commas(spec: str) -> list[str]:
  if os.path.exists(os.path.expanduser(spec)):
    return [spec]
  return [part.strip() for part in spec.split(",") if part.strip()]


def _known(paths: Sequence[str]) -> tuple[list[str], list[str]]:
  known, ignored = [], []
  for path in paths:
    ok = _suffix(pathlib.Path(path)) in SUFFIXES
    (known if ok else ignored).append(path)
  return known, ignored


def _expand(spec: str) -> tuple[dict[str, bool], list[str]]:
  """Files to read, and files of unknown kinds in folders and globs.

  The first says of each file whether it was named itself.
  """
  found: dict[str, bool] = {}
  ignored: list[str] = []
  parts = _split_commas(spec)
  if not parts:
    raise UserError(
      "no data is given",
      fix="give a file, folder, quoted glob, comma list or tfds:name:split",
    )
  for part in parts:
    if part.startswith(TFDS):
      found[part] = True
      continue
    path = os.path.expanduser(part)
    if os.path.isfile(path):
      found[path] = True
      continue
    if os.path.isdir(path):
      pattern = os.path.join(glob.escape(path), "**")
    elif glob.has_magic(path):
      pattern = path
    else:
      raise UserError(
        "no such file", file=part, fix=_nearest(pathlib.Path(path))
      )
    matches = sorted(glob.glob(pattern, recursive=True))
    known, other = _known([m for m in matches if os.path.isfile(m)])
    if not known:
      raise UserError(
        f"no {'/'.join(SUFFIXES)} file (plain or .gz) is found there",
        file=part,
        fix="give a file, folder or glob that holds some"
        if other or os.path.isdir(path)
        else _nearest(pathlib.Path(path.split("*")[0].rstrip("/") or ".")),
      )
    for match in known:
      found.setdefault(match, False)
    ignored += other
  return found, ignored


def expand(spec: str) -> list[str]:
  """The files that a source names, in the order in which they are read.

  Args:
    spec: a comma list of files, folders (read with all their subfolders),
      globs (`**` stands for any subfolders) and TFDS names. Matches of one
      glob are sorted by name; a file named twice is read once. In folders and
      globs only .jsonl, .json and .txt files, plain or .gz, count.
  """
  return list(_expand(spec)[0])


# What is in a file.


def _bytes(path: str) -> bytes:
  try:
    with open(path, "rb") as f:
      content = f.read()
  except OSError as e:
    raise UserError(
      f"cannot be read: {e.strerror}",
      file=path,
      line=1,
      fix="check the path and its permissions",
    ) from e
  if content and (path.lower().endswith(".gz") or content[:2] == b"\x1f\x8b"):
    content = _gunzip(content, path)
  return content


def _gunzip(packed: bytes, path: str) -> bytes:
  """All members of a gzip file; a broken one is an error with its line."""
  parts: list[bytes] = []
  while packed:
    unpack = zlib.decompressobj(wbits=31)
    problem = ""
    try:
      parts.append(unpack.decompress(packed))
      parts.append(unpack.flush())
    except zlib.error:
      problem = "is no valid gzip data"
    else:
      if not unpack.eof:
        problem = "the gzip data is cut short"
    if problem:
      raise UserError(
        problem,
        file=path,
        line=b"".join(parts).count(b"\n") + 1,
        fix="copy or compress the file again (gzip -t checks it)",
      )
    packed = unpack.unused_data.lstrip(b"\0")
  return b"".join(parts)


def _text(path: str) -> str:
  """A file's text, as UTF-8 with Unix newlines and without a BOM."""
  content = _bytes(path)
  if not content.strip():
    raise UserError(
      "is empty",
      file=path,
      line=1,
      fix="give a file with records, or leave this one out",
    )
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise UserError(
      f"byte 0x{content[e.start]:02x} is not valid UTF-8",
      file=path,
      line=content.count(b"\n", 0, e.start) + 1,
      fix="convert the file to UTF-8 (iconv -f latin1 -t utf-8)",
    ) from e
  return text.replace("\r\n", "\n")


def _bad_json(e: Exception, path: str, line: int, own_line: bool) -> UserError:
  what = getattr(e, "msg", "") or "nested too deeply"
  return UserError(
    f"is not JSON ({what})",
    file=path,
    line=line,
    fix="write one JSON value a line"
    if own_line
    else "write the file as one JSON array of records",
  )


def _checked(value: Any, raw: str, at: formats.At) -> Any:
  if _SURROGATE.search(raw):
    try:
      json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
      at.fail(
        "half of a surrogate pair is no character",
        "",
        "escape both halves, or write the character itself",
      )
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
  """Elements of one array, each with the line on which it starts.

  Args:
    text: the file's text.
    path: the file.
    inside: whether more may follow the array.
  """
  decoder = json.JSONDecoder()
  blank = re.compile(r"[ \t\r\n]*")

  def skip(at: int) -> int:
    found = blank.match(text, at)
    return found.end() if found else at

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
      e = ValueError()
      e.msg = "a comma or ] is missing"  # type: ignore[attr-defined]
      raise _bad_json(e, path, line, False)
  rest = len(text) if inside else skip(at + 1)
  if rest != len(text):
    e = ValueError()
    e.msg = "there is more after the array"  # type: ignore[attr-defined]
    raise _bad_json(e, path, line + text.count("\n", counted, rest), False)


def _json_container(
  text: str, path: str, lists: list[str], split: str
) -> Iterator[tuple[int, Any]]:
  """Elements of the lists of an object, each with its line and its split."""
  for name, start in containers.list_starts(text, lists):
    before = text.count("\n", 0, start)
    for line, value in _json_array(text[start:], path, inside=True):
      yield before + line, containers.with_split(value, split or name)


def _values(
  path: str, unused: collections.Counter[str] | None = None
) -> Iterator[tuple[int, Any]] | str:
  """(line, JSON value) pairs of a file, or its text where it is no JSON.

  Fields of an object around a list of records are added to `unused`.
  """
  text = _text(path)
  suffix = _suffix(pathlib.Path(path))
  if suffix == ".txt":
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
  if suffix in (".jsonl", ".json") or start in ("{", '"'):
    return _json_lines(text, path)
  return text


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
    return value.decode("utf-8", errors="replace")
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


def _convert(found: list[Record], wanted: type[_R]) -> list[_R]:
  """What of one JSON value serves as the wanted kind.

  Prompts can be drawn from demonstrations and rankings; nothing else changes
  its kind.
  """
  kept = [r for r in found if isinstance(r, wanted)]
  if kept or wanted is not Prompt:
    return kept
  drawn: dict[Any, Prompt] = {}
  for r in found:
    if isinstance(r, Demonstration | Ranking):
      drawn.setdefault(
        r.turns,
        Prompt(
          turns=r.turns, user_id=r.user_id, origin=r.origin, split=r.split
        ),
      )
  return list(drawn.values())  # type: ignore[return-value]


def _scan(
  path: str, wanted: type | None, reader: formats.Reader
) -> Iterator[tuple[int, formats.Format, list[Record], str]]:
  """(line, format, records, why they are left out) of each JSON value."""
  values = (
    _tfds_values(path)
    if path.startswith(TFDS)
    else _values(path, reader.unused)
  )
  if isinstance(values, str):
    if wanted not in (None, Document):
      raise UserError(
        f"is plain text, which holds no {KIND_NAMES[wanted]}",
        file=path,
        line=1,
        field=_FIRST_FIELD[wanted],
        fix="give a .jsonl file; docs/data.md has one example each",
      )
    yield 1, formats.PLAIN, [Document(text=values, origin=f"{path}:1")], ""
    return
  for line, value in values:
    yield reader.read(line, value)
  yield from reader.finish()
  if reader.format is None:
    raise UserError(
      "holds no records",
      file=path,
      line=1,
      fix="give a file with records, or leave this one out",
    )


def _read_file(
  path: str, wanted: type[_R], must: bool
) -> tuple[list[_R], FileReport]:
  kept: list[_R] = []
  skipped: collections.Counter[str] = collections.Counter()
  first_skip: dict[str, int] = {}
  others: collections.Counter[str] = collections.Counter()
  name = formats.PLAIN.name
  reader = formats.Reader(path, wanted)
  for line, known, found, reason in _scan(path, wanted, reader):
    name = known.name
    usable = _convert(found, wanted)
    if found and not usable and not reason:
      reason = f"records without {KIND_NAMES[wanted]}"
      others.update(KIND_NAMES[type(r)] for r in found)
    if reason and not usable:
      skipped[reason] += 1
      first_skip.setdefault(reason, line)
    kept += usable
  if not kept and must:
    _nothing_left(path, name, wanted, skipped, first_skip, others)
  return kept, FileReport(
    path,
    name,
    len(kept),
    dict(skipped),
    dict(reader.unused),
    dict(reader.notes),
  )


def _nothing_left(
  path: str,
  name: str,
  wanted: type,
  skipped: Mapping[str, int],
  first_skip: Mapping[str, int],
  others: Mapping[str, int],
) -> NoReturn:
  kind = KIND_NAMES[wanted]
  if others:
    held = " and ".join(others)
    raise UserError(
      f"is recognised as {name}, which holds {held} but no {kind}",
      file=path,
      line=min(first_skip.values()),
      field=_FIRST_FIELD[wanted],
      fix=_FIXES[wanted],
    )
  reasons = ", ".join(f"{n} {why}" for why, n in skipped.items())
  raise UserError(
    f"no record is left of it: {reasons}",
    file=path,
    line=min(first_skip.values()),
    fix="give at least one ranking with two different ranks"
    if max(skipped, key=lambda reason: skipped[reason]) == formats.TIES
    else f"give a file with usable {kind}; docs/data.md says what is skipped",
    code="nothing_left",
  )


def _read(spec: str, wanted: type[_R]) -> tuple[list[_R], Report]:
  paths, ignored = _expand(spec)
  # Among the many files of a folder some may hold records of other kinds only;
  # a file that was named, or the only one, has to give something.
  kept: list[_R] = []
  reports = []
  for path, named in paths.items():
    found, report = _read_file(path, wanted, named or len(paths) == 1)
    kept += found
    reports.append(report)
    if not found:
      logging.warning("Nothing of %s is used: %s", path, report.skipped)
  if not kept:
    raise UserError(
      f"none of its {len(paths)} files holds usable {KIND_NAMES[wanted]}",
      file=spec,
      line=1,
      fix=_FIXES[wanted],
    )
  return kept, Report(tuple(reports), tuple(ignored))


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
  """Every record of any kind of one file, and its report."""
  found: list[Record] = []
  skipped: collections.Counter[str] = collections.Counter()
  name = formats.PLAIN.name
  reader = formats.Reader(path, None)
  for _, known, some, reason in _scan(path, None, reader):
    name = known.name
    found += some
    if reason:
      skipped[reason] += 1
  return found, FileReport(
    path,
    name,
    len(found),
    dict(skipped),
    dict(reader.unused),
    dict(reader.notes),
  )
