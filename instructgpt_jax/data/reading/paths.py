"""Lists the files that a path, glob, directory, comma list or hub name means.

Each file is read once, however many links and names lead to it. Files of
directories and globs that are not read are listed with the reason.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import glob
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from instructgpt_jax.data.prepared import layout
from instructgpt_jax.data.reading import (
  csv_files,
  hub,
  json_files,
  saved_datasets,
  tables,
  text_files,
)
from instructgpt_jax.data.reading import specs as specs_lib
from instructgpt_jax.errors import UserError

SUFFIXES = (*json_files.SUFFIXES, *csv_files.DELIMITERS, *tables.SUFFIXES)
OTHER_KIND = f"not {', '.join(SUFFIXES)}"
SAME_FILE = "another name of a file that is read"
SAME_DIRECTORY = "another name of a directory that is read"
DIRECTORY = "a directory, whose files a glob does not take"
NO_FILE = "a pipe, socket or device"
EMPTY = "empty"
NO_RECORDS = "JSON that describes data and holds no records"
RUN = "written by a run of this program"
WEIGHT_0 = "weight 0"
# What a run writes into its workdir, which may lie among the data.
_RUN_NAMES = {
  "bad_batch.json", "checkpoints", "complete.json", "config.json",
  "metrics.jsonl", "model", "report.json", "seconds.json", "snapshots",
  "sources.json", "tensorboard", "tokenizer",
}  # fmt: skip
_SIMILAR = 0.7  # how much of two names agrees, for one to suggest the other
_SHOWN = 5  # names of ignored files


class Ignored(NamedTuple):
  """A file or directory that is not read, and why."""

  path: str
  reason: str


class WeightedSource(NamedTuple):
  """A part of a source that has a weight."""

  name: str
  weight: float
  files: tuple[str, ...]


@dataclasses.dataclass
class Listing:
  """The files that a source names.

  Attributes:
    files: the files to read, in order; True where a file was named itself.
    ignored: files of a directory or a glob that are not read.
    roots: the directory that holds the directory of each file that is named, or
      the directory or glob that gave the file.
    sources: the parts of the source, where they have weights.
  """

  files: dict[str, bool] = dataclasses.field(default_factory=dict)
  ignored: list[Ignored] = dataclasses.field(default_factory=list)
  roots: dict[str, str] = dataclasses.field(default_factory=dict)
  sources: list[WeightedSource] = dataclasses.field(default_factory=list)

  def ignore(self, path: str, reason: str) -> None:
    self.ignored.append(Ignored(path, reason))


def show_ignored(ignored: Iterable[Ignored]) -> list[str]:
  """Returns a line for each reason: how many files, and the first names."""
  by_reason: dict[str, list[str]] = {}
  for path, reason in ignored:
    by_reason.setdefault(reason, []).append(path)
  lines = []
  for reason, paths in by_reason.items():
    names = ", ".join(os.path.basename(p) or p for p in paths[:_SHOWN])
    if len(paths) > _SHOWN:
      names += ", ..."
    count = f"{len(paths)} file{'s' if len(paths) > 1 else ''}"
    lines.append(f"ignored {count} ({reason}): {names}")
  return lines


def list_files(*specs: str) -> Listing:
  """Lists the files that a source names.

  Args:
    *specs: comma lists of files, directories, globs, TFDS and hub names, each
      with or without a weight (see `specs`); "-" is the standard input.

  Raises:
    UserError: one of them does not exist, or holds no file of a known kind.
  """
  listing = Listing()
  known: set[tuple[int, int]] = set()
  for name, weight in specs_lib.parse(*specs):
    if weight == 0:
      listing.ignore(name, WEIGHT_0)
      continue
    before = len(listing.files)
    _add_part(name, known, listing)
    if weight is not None:
      files = tuple(listing.files)[before:]
      listing.sources.append(WeightedSource(name, weight, files))
  _require_files(listing)
  return listing


def _add_part(part: str, known: set[tuple[int, int]], listing: Listing) -> None:
  """Adds the files that one part of a source names."""
  if part.startswith((specs_lib.TFDS, specs_lib.HUB)):
    is_hub = part.startswith(specs_lib.HUB)
    for name in hub.split_names(part) if is_hub else [part]:
      _add_named(name, part, name not in listing.files, listing)
    return
  path = os.path.expanduser(part)
  if part == "-" and not os.path.lexists(part):
    path = text_files.STDIN
  status = _status(path, part)
  if status is None or stat.S_ISDIR(status.st_mode):
    _add_many(path, part, status is not None, known, listing)
  else:
    _add_named(path, part, _is_new(status, known), listing)


def _require_files(listing: Listing) -> None:
  """Refuses a weight of a source whose files earlier sources name."""
  for source in listing.sources:
    if not source.files:
      raise UserError(
        "names no file that an earlier source does not name",
        file=source.name,
        fix="name each file in one weighted source",
        code="same_source",
      )


def _add_named(path: str, part: str, is_new: bool, listing: Listing) -> None:
  """Adds a file that is named itself, unless it is listed already."""
  if is_new or listing.files.get(path) is False:
    listing.files[path] = True
    listing.roots.setdefault(path, _above(os.path.dirname(path)))
  else:
    listing.ignore(part, SAME_FILE)


def _status(path: str, part: str) -> os.stat_result | None:
  """Returns the status of a named path, or None where it may be a glob."""
  try:
    return os.stat(path)
  except (FileNotFoundError, NotADirectoryError, ValueError) as error:
    if os.path.islink(path):
      raise _broken_link(path) from error
    if glob.has_magic(path):
      return None
    raise _missing(path, part) from error
  except OSError as error:
    raise UserError(
      f"cannot be read: {error.strerror}",
      file=part,
      fix="check the path, its links and its permissions",
      code="unreadable",
    ) from error


def _is_new(status: os.stat_result, known: set[tuple[int, int]]) -> bool:
  identity = status.st_dev, status.st_ino
  new = identity not in known
  known.add(identity)
  return new


def _broken_link(path: str) -> UserError:
  return UserError(
    f"is a symbolic link to a file that does not exist ({os.readlink(path)})",
    file=path,
    fix="copy the file there (git-annex: `git annex get`), or remove the link",
    code="broken_link",
  )


# Directories and globs.


def _add_many(
  path: str,
  part: str,
  is_directory: bool,
  known: set[tuple[int, int]],
  listing: Listing,
) -> None:
  """Adds the files of a directory or a glob that are not listed yet."""
  pattern = os.path.join(glob.escape(path), "**") if is_directory else path
  matches = sorted(set(_glob(pattern, listing)))
  files = []
  for match in matches:
    if text_files.suffix(match) not in SUFFIXES and not os.path.isdir(match):
      listing.ignore(match, OTHER_KIND)
    elif os.path.islink(match) and not os.path.exists(match):
      raise _broken_link(match)
    else:
      files.append(match)
  regular = _regular(files, listing)
  if not regular:
    raise _no_files(path, part, is_directory, matches)
  # Of several names of one file, the one that is no link is read.
  names = {}
  for match in sorted(regular, key=lambda m: (_is_by_link(m), m)):
    if match in listing.files:
      continue
    try:
      new = _is_new(os.stat(match), known)
    except OSError:
      new = True  # It has just vanished: an error when it is read.
    if new:
      names[match] = False
    else:
      listing.ignore(match, SAME_FILE)
  listing.files.update({match: False for match in regular if match in names})
  top = path if is_directory else _directory_of(path)
  listing.roots.update(dict.fromkeys(names, _above(top)))


def _above(directory: str) -> str:
  return os.path.dirname(os.path.abspath(directory))


def _directory_of(pattern: str) -> str:
  """Returns the directory that a glob starts from."""
  directory = os.path.dirname(pattern)
  while glob.has_magic(directory):
    directory = os.path.dirname(directory)
  return directory


def _regular(matches: Sequence[str], listing: Listing) -> list[str]:
  regular = []
  for match in matches:
    if os.path.isfile(match):
      regular.append(match)
    else:
      listing.ignore(match, DIRECTORY if os.path.isdir(match) else NO_FILE)
  return regular


def _is_by_link(path: str) -> bool:
  return os.path.realpath(path) != os.path.abspath(path)


def _glob(pattern: str, listing: Listing) -> Iterator[str]:
  """Expands a glob; each directory below `**` is visited once."""
  before, star, after = _cut_at_stars(pattern)
  if not star:
    yield from glob.glob(pattern)
    return
  tops = glob.glob(before) if glob.has_magic(before) else [before or "."]
  for top in sorted(tops):
    for directory, names in _walk(top, listing):
      directory = "" if not before and directory == "." else directory
      directory = directory.removeprefix("./") if not before else directory
      if after:
        deeper = os.path.join(glob.escape(directory), after)
        yield from _glob(deeper, listing)
      else:
        yield from (os.path.join(directory, name) for name in names)


def _cut_at_stars(pattern: str) -> tuple[str, bool, str]:
  """Splits a glob at the first `**` that is a whole component."""
  parts = pattern.split(os.sep)
  if "**" not in parts:
    return pattern, False, ""
  at = parts.index("**")
  rest = parts[at + 1 :]
  while rest[:1] == ["**"]:
    rest = rest[1:]
  return (
    os.sep.join(parts[:at]) or pattern[:1].strip("*"),
    True,
    os.sep.join(rest),
  )


def _walk(top: str, listing: Listing) -> Iterator[tuple[str, list[str]]]:
  """Yields each directory at and below one, once, with its file names.

  Links to directories come last: a directory is known by its own name, if it
  has one below `top`. Hidden names are left out, as in globs.
  """
  known: set[tuple[int, int]] = set()
  directories = collections.deque([top])
  links: collections.deque[str] = collections.deque()
  while directories or links:
    directory = directories.popleft() if directories else links.popleft()
    if not os.path.isdir(directory):
      continue
    try:
      if not _is_new(os.stat(directory), known):
        listing.ignore(directory, SAME_DIRECTORY)
        continue
      entries = sorted(os.listdir(directory))
    except OSError as error:
      raise UserError(
        f"cannot be read: {error.strerror}",
        file=directory,
        fix="check its permissions, or name the files to read",
        code="unreadable",
      ) from error
    if layout.is_prepared(directory):
      raise UserError(
        "holds prepared data, which are a source of their own",
        file=directory,
        fix="give this directory alone: --data.pretraining=DIR for documents,"
        " --data.comparisons, --data.prompts or --data.demonstrations for"
        " records",
        code="prepared_documents",
      )
    names = []
    run_names = _RUN_NAMES if _is_workdir(entries) else ()
    saved_datasets.require_splits(directory, entries)
    unlisted = saved_datasets.unlisted(directory, entries)
    for name in entries:
      path = os.path.join(directory, name)
      if name.startswith("."):
        continue
      if name in run_names:
        listing.ignore(path, RUN)
      elif name in unlisted:
        listing.ignore(path, saved_datasets.NOT_LISTED)
      elif not os.path.isdir(path):
        names.append(name)
      elif os.path.islink(path):
        links.append(path)
      else:
        directories.append(path)
    yield directory, names


def _is_workdir(names: Sequence[str]) -> bool:
  """Returns whether a directory with these files is the workdir of a run."""
  written = {"checkpoints", "complete.json", "metrics.jsonl"}
  return "config.json" in names and not written.isdisjoint(names)


# Errors.


def _no_files(
  path: str, part: str, is_directory: bool, matches: Sequence[str]
) -> UserError:
  kinds = sorted({text_files.suffix(m) or "no suffix" for m in matches})
  if not matches and not is_directory:
    base = path.split("*")[0].rstrip("/") or "."
    problem = "matches no file"
    fix = "check the pattern, and quote it"
    fix = fix if os.path.exists(base) else _suggest(pathlib.Path(base))
  else:
    problem = f"holds no {'/'.join(SUFFIXES)} file (plain or .gz)"
    problem += f", only {', '.join(kinds[:5])}" if kinds else ""
    fix = "give a file, directory or glob that holds records"
  return UserError(problem, file=part, fix=fix, code="no_files")


def _missing(path: str, part: str) -> UserError:
  return UserError(
    "no such file",
    file=part,
    fix=_suggest(pathlib.Path(path)),
    code="no_such_file",
  )


def _suggest(path: pathlib.Path) -> str:
  """Returns a fix that names the one file of nearly the same name, if any."""
  parent, name = path.parent, path.name
  is_last = True
  while not parent.is_dir() and parent != parent.parent:
    parent, name, is_last = parent.parent, parent.name, False
  stems: dict[str, str] = {}
  with contextlib.suppress(OSError):
    for other in sorted(parent.iterdir()):
      if _may_be_meant(other, name, is_last):
        stems.setdefault(_stem(other.name), str(other))
  near = difflib.get_close_matches(_stem(name), stems, n=1, cutoff=_SIMILAR)
  if near:
    return f"did you mean {stems[near[0]]!r}?"
  return "give an existing file, directory, glob, tfds:name:split or hf:name"


def _may_be_meant(other: pathlib.Path, name: str, is_last: bool) -> bool:
  """Returns whether a path may be what a missing path was meant to name."""
  if other.is_dir():
    return not is_last or not pathlib.PurePath(name).suffix
  return is_last and text_files.suffix(other) in SUFFIXES


def _stem(name: str) -> str:
  name = name.removesuffix(".gz")
  return os.path.splitext(name)[0] if name.endswith(SUFFIXES) else name
