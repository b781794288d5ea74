"""The manifest of a directory of prepared documents.

A prepared directory holds

  prepared.json   the manifest: format, tokenizer, counts, shards, checksums
  tokenizer/      the tokenizer's files
  rows/           ArrayRecord shards of packed rows; see `row_records`

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

FORMAT = "instructgpt_jax prepared documents"
VERSION = 1
COMMAND = "python -m instructgpt_jax.data prepare"
_CHUNK = 1 << 22  # bytes per read


class Shard(NamedTuple):
  """A file of rows.

  Attributes:
    file: its path in the directory.
    rows: number of its rows.
    loss_tokens: number of tokens in them that carry loss.
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


def write(directory: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest, which completes the directory."""
  body = dataclasses.asdict(manifest)
  body["shards"] = {
    str(length): {
      split: [shard._asdict() for shard in shards]
      for split, shards in splits.items()
    }
    for length, splits in manifest.shards.items()
  }
  content = {
    "format": FORMAT,
    "version": VERSION,
    "crc32": _body_crc(body),
    **body,
  }
  write_json(directory / layout.MANIFEST, content)


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
  """Reads the manifest of a prepared directory, and checks its shards' sizes.

  Raises:
    UserError: `unfinished_preparation`, `other_version`, `damaged_manifest`, or
      `damaged_shard` for a shard that is missing or has another size.
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


def _parse(content: Any, file: pathlib.Path) -> Manifest:
  """Converts the JSON of a manifest; refuses other formats and damage."""
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    raise UserError(
      f"is not a manifest of {FORMAT}",
      file=str(file),
      fix=_PREPARE_AGAIN,
      code="damaged_manifest",
    )
  if content.get("version") != VERSION:
    raise UserError(
      f"has version {content.get('version')}, and this program reads version"
      f" {VERSION}",
      file=str(file),
      fix=f"prepare the documents with this version ({COMMAND})",
      code="other_version",
    )
  names = [field.name for field in dataclasses.fields(Manifest)]
  body = {name: content[name] for name in names if name in content}
  if len(body) < len(names) or content.get("crc32") != _body_crc(body):
    raise UserError(
      "has changed after it was written",
      file=str(file),
      fix=_PREPARE_AGAIN,
      code="damaged_manifest",
    )
  body["shards"] = {
    int(length): {
      split: tuple(Shard(**shard) for shard in shards)
      for split, shards in splits.items()
    }
    for length, splits in body["shards"].items()
  }
  body["sources"] = tuple((name, size) for name, size in body["sources"])
  return Manifest(**body)


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


def verify(path: str | os.PathLike[str]) -> Manifest:
  """Compares every shard with its checksum.

  Raises:
    UserError: those of `read`; `damaged_shard`, the bytes of a shard have
      changed.
  """
  directory = pathlib.Path(path).expanduser()
  manifest = read(directory)
  for shard in manifest.all_shards():
    if file_crc32(directory / shard.file) != shard.crc32:
      raise damaged_shard(directory / shard.file, "does not have its checksum")
  return manifest


def damaged_shard(path: pathlib.Path, problem: str) -> UserError:
  """Returns the error for a shard that cannot be used."""
  return UserError(
    problem, file=str(path), fix=_PREPARE_AGAIN, code="damaged_shard"
  )


def file_crc32(path: pathlib.Path) -> int:
  """Returns the CRC-32 of a file's bytes."""
  crc = 0
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      crc = zlib.crc32(chunk, crc)
  return crc
