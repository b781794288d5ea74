"""The manifest of a directory of prepared data.

A prepared directory holds

  prepared.json   the manifest: format, tokenizer, counts, shards, checksums
  tokenizer/      the tokenizer's files
  rows/           documents: ArrayRecord shards of packed rows; see
                  `row_records`
  records/        rankings, prompts and demonstrations: ArrayRecord shards and
                  tables; see `record_bytes`

`prepared_plan.json` says what it is prepared from. Until it is complete it has
`units/` instead of the manifest, and training refuses it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from instructgpt_jax.data.prepared import layout
from instructgpt_jax.errors import UserError, json_problem

DOCUMENTS = "instructgpt_jax prepared documents"
RECORDS = "instructgpt_jax prepared records"
VERSION = 1
COMMAND = "python -m instructgpt_jax.data prepare"
_CHUNK = 1 << 22  # bytes per read


class Shard(NamedTuple):
  """A file of rows, or of records.

  Attributes:
    file: its path in the directory.
    rows: number of its rows or records.
    loss_tokens: number of tokens in rows that carry loss; 0 for records.
    size: bytes.
    crc32: checksum of its bytes.
  """

  file: str
  rows: int
  loss_tokens: int
  size: int
  crc32: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a directory of prepared documents holds.

  Attributes:
    kind: kind of the records; "documents".
    tokenizer_hash: hash of the tokenizer's files.
    vocab_size: ids of the tokenizer.
    token_bytes: bytes of a stored token id, 2 or 4.
    documents: split → number of documents; a long one counts as its parts.
    tokens: split → number of tokens, with end-of-text.
    shards: row length → split → shards, in the order of their rows.
    sources: [name, size in bytes] of each file that was read.
    settings: the settings of curation.
    dropped: what was skipped, not used or ignored, and other remarks.
  """

  kind: str
  tokenizer_hash: str
  vocab_size: int
  token_bytes: int
  documents: Mapping[str, int]
  tokens: Mapping[str, int]
  shards: Mapping[int, Mapping[str, tuple[Shard, ...]]]
  sources: tuple[tuple[str, int], ...]
  settings: Mapping[str, float]
  dropped: Mapping[str, Any]

  def all_shards(self) -> Iterator[Shard]:
    """Yields all shards."""
    for splits in self.shards.values():
      for shards in splits.values():
        yield from shards

  def rows(self, length: int, split: str) -> int:
    """Returns the number of rows of a length and a split."""
    return sum(shard.rows for shard in self.shards[length][split])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordsManifest:
  """What a directory of prepared rankings, prompts and demonstrations holds.

  Attributes:
    kind: kind of the records; "records".
    tokenizer_hash: hash of the tokenizer's files.
    vocab_size: ids of the tokenizer.
    token_bytes: bytes of a stored token id, 2 or 4.
    shards: source, such as "prompts" → split → shards, in the order of their
      records.
    tables: source → split → the table of the records' lengths.
    labelers: source → labeler ids; tables have indices of these.
    lines: source → what curation said: counts, notes and warnings.
    sources: [name, size in bytes] of each file that was read.
    settings: limits, prompt format and the settings of curation.
  """

  kind: str
  tokenizer_hash: str
  vocab_size: int
  token_bytes: int
  shards: Mapping[str, Mapping[str, tuple[Shard, ...]]]
  tables: Mapping[str, Mapping[str, Shard]]
  labelers: Mapping[str, tuple[str, ...]]
  lines: Mapping[str, tuple[str, ...]]
  sources: tuple[tuple[str, int], ...]
  settings: Mapping[str, Any]

  def all_shards(self) -> Iterator[Shard]:
    """Yields all shards, and the tables."""
    for splits in self.shards.values():
      for shards in splits.values():
        yield from shards
    for tables in self.tables.values():
      yield from tables.values()

  def counts(self, source: str) -> dict[str, int]:
    """Returns the number of records of each split."""
    return {
      split: sum(shard.rows for shard in shards)
      for split, shards in self.shards[source].items()
    }


AnyManifest = Manifest | RecordsManifest
_FORMATS: Mapping[str, type[AnyManifest]] = {
  DOCUMENTS: Manifest,
  RECORDS: RecordsManifest,
}


def write(directory: pathlib.Path, manifest: AnyManifest) -> None:
  """Writes the manifest, which completes the directory."""
  (name,) = (k for k, v in _FORMATS.items() if type(manifest) is v)
  body = _to_json(dataclasses.asdict(manifest))
  content = {
    "format": name,
    "version": VERSION,
    "crc32": _body_crc(body),
    **body,
  }
  write_json(directory / layout.MANIFEST, content)


def _to_json(value: Any) -> Any:
  """Converts shards to mappings, and keys to texts."""
  if isinstance(value, Shard):
    return value._asdict()
  if isinstance(value, Mapping):
    return {str(k): _to_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_to_json(v) for v in value]
  return value


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file atomically."""
  scratch = path.with_name(path.name + ".next")
  with open(scratch, "w", encoding="utf-8") as file:
    json.dump(value, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  os.replace(scratch, path)


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: `damaged_manifest`, it is not JSON.
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"is not JSON ({json_problem(error)})",
      file=str(path),
      fix=_PREPARE_AGAIN,
      code="damaged_manifest",
    ) from error


_PREPARE_AGAIN = f"copy the directory again, or prepare it again ({COMMAND})"


def read(path: str | os.PathLike[str]) -> Manifest:
  """Reads the manifest of prepared documents, and checks its shards' sizes.

  Raises:
    UserError: `unfinished_preparation`, `other_version`, `damaged_manifest`,
      `other_kind` for prepared records, or `damaged_shard` for a shard that is
      missing or has another size.
  """
  manifest = read_any(path)
  if not isinstance(manifest, Manifest):
    raise _other_kind(path, manifest, "documents", "PATH... --length=T")
  return manifest


def read_records(path: str | os.PathLike[str], source: str) -> RecordsManifest:
  """Reads the manifest of prepared rankings, prompts and demonstrations.

  Args:
    path: the directory.
    source: the source that is read from it, such as "prompts", for errors.

  Raises:
    UserError: as `read`; `other_kind` for prepared documents.
  """
  manifest = read_any(path)
  if not isinstance(manifest, RecordsManifest):
    raise _other_kind(path, manifest, source, f"--data.{source}=PATH")
  return manifest


def _other_kind(
  path: str | os.PathLike[str], manifest: AnyManifest, what: str, flags: str
) -> UserError:
  holds = ", ".join(getattr(manifest, "tables", ["documents"]))
  return UserError(
    f"was prepared from {holds}, and {what} are needed",
    file=str(path),
    fix=f"give a directory that was prepared from {what} ({COMMAND} {flags}"
    " --to=DIR)",
    code="other_kind",
  )


def read_any(path: str | os.PathLike[str]) -> AnyManifest:
  """Reads the manifest of a prepared directory, and checks its shards' sizes.

  Raises:
    UserError: `unfinished_preparation`, `other_version`, `damaged_manifest`, or
      `damaged_shard`.
  """
  directory = pathlib.Path(path).expanduser()
  file = directory / layout.MANIFEST
  if not file.is_file():
    raise UserError(
      "its preparation has not finished",
      file=str(directory),
      fix=f"run the {COMMAND} command that began it again; finished work is"
      " kept",
      code="unfinished_preparation",
    )
  manifest = _parse(read_json(file), file)
  for shard in manifest.all_shards():
    _check_size(directory, shard)
  return manifest


def _parse(content: Any, file: pathlib.Path) -> AnyManifest:
  """Converts the JSON of a manifest; refuses other formats and damage."""
  form = content.get("format") if isinstance(content, dict) else None
  if form not in _FORMATS:
    raise UserError(
      "is not a manifest of prepared data",
      file=str(file),
      fix=_PREPARE_AGAIN,
      code="damaged_manifest",
    )
  if content.get("version") != VERSION:
    raise UserError(
      f"has version {content.get('version')}, and this program reads version"
      f" {VERSION}",
      file=str(file),
      fix=f"prepare the data with this version ({COMMAND})",
      code="other_version",
    )
  kind = _FORMATS[form]
  names = [field.name for field in dataclasses.fields(kind)]
  body = {name: content[name] for name in names if name in content}
  if len(body) < len(names) or content.get("crc32") != _body_crc(body):
    raise UserError(
      "has changed after it was written",
      file=str(file),
      fix=_PREPARE_AGAIN,
      code="damaged_manifest",
    )
  body["shards"] = {
    int(group) if kind is Manifest else group: {
      split: tuple(Shard(**shard) for shard in shards)
      for split, shards in splits.items()
    }
    for group, splits in body["shards"].items()
  }
  if kind is RecordsManifest:
    body["tables"] = {
      source: {split: Shard(**table) for split, table in tables.items()}
      for source, tables in body["tables"].items()
    }
  body["sources"] = tuple((name, size) for name, size in body["sources"])
  return kind(**body)


def _body_crc(body: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _check_size(directory: pathlib.Path, shard: Shard) -> None:
  """Refuses a shard that is missing or has another size."""
  path = directory / shard.file
  try:
    size = path.stat().st_size
  except OSError as error:
    raise damaged_shard(path, f"cannot be read: {error.strerror}") from error
  if size != shard.size:
    raise damaged_shard(path, f"has {size:,} bytes instead of {shard.size:,}")


def verify(path: str | os.PathLike[str]) -> AnyManifest:
  """Compares every shard with its checksum.

  Raises:
    UserError: those of `read_any`; `damaged_shard`, the bytes of a shard have
      changed.
  """
  directory = pathlib.Path(path).expanduser()
  manifest = read_any(directory)
  for shard in manifest.all_shards():
    if file_crc32(directory / shard.file) != shard.crc32:
      raise damaged_shard(directory / shard.file, "does not have its checksum")
  return manifest


def damaged_shard(path: pathlib.Path, problem: str) -> UserError:
  """Returns the error for a shard that cannot be used."""
  return UserError(
    problem, file=str(path), fix=_PREPARE_AGAIN, code="damaged_shard"
  )


def bytes_crc32(content: bytes) -> int:
  """Returns the CRC-32 of bytes."""
  return zlib.crc32(content)


def file_crc32(path: pathlib.Path) -> int:
  """Returns the CRC-32 of a file's bytes."""
  crc = 0
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      crc = zlib.crc32(chunk, crc)
  return crc
