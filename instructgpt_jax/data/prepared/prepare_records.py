"""Prepares rankings, prompts and demonstrations: curates and tokenises them.

The sources of a run are prepared together, exactly as a run would curate them,
so that no held-out prompt of one is in another. Curation reads all of them into
memory. Their records are then written with their token ids, shard by shard. The
manifest is written last.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import (
  curated_source,
  encoding,
  reading,
  tokenizers,
)
from instructgpt_jax.data import records as records_lib
from instructgpt_jax.data.curation import token_limits
from instructgpt_jax.data.prepared import directory as directory_lib
from instructgpt_jax.data.prepared import layout, record_bytes, records, shards
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared import units as units_lib
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError

SHARD_RECORDS = 1 << 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordsPreparation:
  """Settings of a preparation.

  Attributes:
    directory: the directory to write.
    data: the sources, limits, prompt format, and settings of curation.
    tokenizer_path: the tokenizer.
    shard_records: records of a shard.
  """

  directory: str
  data: configs.Data
  tokenizer_path: str
  shard_records: int = SHARD_RECORDS

  @property
  def sources(self) -> dict[str, str]:
    """Returns source → flag's value, of the sources that are given."""
    named = {k: getattr(self.data, k) for k in curated_source.KINDS}
    return {name: spec for name, spec in named.items() if spec}


def prepare(
  preparation: RecordsPreparation, log: Callable[[str], None] = print
) -> manifest_lib.RecordsManifest:
  """Prepares records, or repeats a preparation that was interrupted.

  Args:
    preparation: the settings.
    log: shows a line.

  Returns:
    The manifest of the complete directory.

  Raises:
    UserError: `no_tokenizer`; `weighted_source`, a path has a weight; and the
      errors of `prepare.prepare` and of a run that reads the sources.
  """
  if not preparation.tokenizer_path:
    raise UserError(
      "is missing",
      field="tokenizer",
      fix="give the workdir or model directory that the stages will start from",
      code="no_tokenizer",
    )
  directory = pathlib.Path(preparation.directory).expanduser()
  specs = preparation.sources
  directory_lib.require_apart(directory, list(specs.values()))
  files = {name: _list_files(name, spec) for name, spec in specs.items()}
  data = preparation.data
  tokenizer = tokenizers.load_tokenizer(preparation.tokenizer_path)
  if not data.chat_template:
    tokenizer = tokenizer.without_template()
  settings = records.text_settings(data, tokenizer) | {
    name: getattr(data, name) for name in (*records.CURATION, "max_dropped")
  }
  description = {
    "format": manifest_lib.RECORDS,
    "version": manifest_lib.VERSION,
    "settings": settings,
    "tokenizer": directory_lib.tokenizer_hash(tokenizer),
    "files": files,
  }
  directory_lib.open_directory(directory, description, (layout.RECORDS,))
  with directory_lib.lock(directory):
    if (directory / layout.MANIFEST).is_file():
      log(f"{directory} is prepared already")
      return manifest_lib.read_records(directory, next(iter(specs)))
    directory_lib.put_tokenizer(
      directory, lambda: tokenizers.load_tokenizer(preparation.tokenizer_path)
    )
    return _write_all(preparation, directory, tokenizer, settings, files, log)


def _list_files(name: str, spec: str) -> list[list[Any]]:
  """Returns path, size and time of each file of a source."""
  listing = reading.list_files(spec)
  if listing.sources:
    raise UserError(
      "has a weight, but prepared data have none",
      file=listing.sources[0].name,
      field=f"data.{name}",
      fix="prepare the data without weights",
      code="weighted_source",
    )
  return [units_lib.describe_file(path) for path in listing.files]


def _write_all(
  preparation: RecordsPreparation,
  directory: pathlib.Path,
  tokenizer: Tokenizer,
  settings: Mapping[str, Any],
  files: Mapping[str, list[list[Any]]],
  log: Callable[[str], None],
) -> manifest_lib.RecordsManifest:
  """Curates all sources, and writes their records and the manifest."""
  data = preparation.data
  log(f"reading {', '.join(files)}")
  sources = {
    name: curated_source.read(f"data.{name}", data, curated_source.KINDS[name])
    for name in files
  }
  written: dict[str, _Written] = {}
  for name, source in sources.items():
    others = [other.records for k, other in sources.items() if k != name]
    curated = curated_source.curate(source, others, data, tokenizer)
    for line in curated.lines:
      log(line)
    writer = _Writer(directory, name, preparation, tokenizer)
    written[name] = writer.write(curated, log)
  manifest = manifest_lib.RecordsManifest(
    kind="records",
    tokenizer_hash=directory_lib.tokenizer_hash(tokenizer),
    vocab_size=tokenizer.vocab_size,
    token_bytes=_token_bytes(tokenizer),
    shards={name: w.shards for name, w in written.items()},
    tables={name: w.tables for name, w in written.items()},
    labelers={name: tuple(w.labelers) for name, w in written.items()},
    lines={name: tuple(w.lines) for name, w in written.items()},
    sources=tuple(
      (os.path.basename(path), size)
      for listed in files.values()
      for path, size, _ in listed
    ),
    settings=settings,
  )
  manifest_lib.write(directory, manifest)
  return manifest


def _token_bytes(tokenizer: Tokenizer) -> int:
  return 2 if tokenizer.vocab_size <= 1 << 16 else 4


@dataclasses.dataclass
class _Written:
  """What was written of a source; see `RecordsManifest`."""

  lines: list[str]
  labelers: dict[str, int] = dataclasses.field(default_factory=dict)
  shards: dict[str, tuple[manifest_lib.Shard, ...]] = dataclasses.field(
    default_factory=dict
  )
  tables: dict[str, manifest_lib.Shard] = dataclasses.field(
    default_factory=dict
  )


class _Writer:
  """Writes the records of a source.

  Args:
    directory: the prepared directory.
    name: the source.
    preparation: the settings.
    tokenizer: encodes the records.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    name: str,
    preparation: RecordsPreparation,
    tokenizer: Tokenizer,
  ):
    self._directory, self._name = directory, name
    self._data, self._tokenizer = preparation.data, tokenizer
    self._size = preparation.shard_records

  def write(
    self, curated: curated_source.Curated, log: Callable[[str], None]
  ) -> _Written:
    """Writes the shards and tables of all splits."""
    written = _Written(curated.lines)
    for split, part in curated.parts.items():
      table: list[list[int]] = []
      files = []
      for number, start in enumerate(range(0, len(part), self._size)):
        chunk = part[start : start + self._size]
        shard = shards.write(
          self._directory,
          layout.records_name(self._name, split, number),
          self._encode(chunk, written.labelers, table),
          rows=len(chunk),
        )
        files.append(shard)
        log(f"{self._name}: {start + len(chunk):,} of {len(part):,} {split}")
      written.shards[split] = tuple(files)
      written.tables[split] = self._write_table(split, table)
    return written

  def _encode(
    self,
    part: Sequence[record_bytes.Record],
    labelers: dict[str, int],
    table: list[list[int]],
  ) -> Iterator[bytes]:
    """Yields records as bytes, and adds a row to the table for each."""
    token_bytes = _token_bytes(self._tokenizer)
    for chunk in token_limits.chunks(part):
      turns = [record.turns for record in chunk]
      prompts = encoding.encode_prompts(turns, self._tokenizer, self._data)
      texts = [t for record in chunk for t in records_lib.replies(record)]
      replies = iter(
        encoding.encode_completions(texts, self._tokenizer, self._data)
      )
      for record, prompt in zip(chunk, prompts, strict=True):
        ids = [next(replies) for _ in records_lib.replies(record)]
        labeler = getattr(record, "labeler_id", "")
        index = labelers.setdefault(labeler, len(labelers)) if labeler else -1
        table.append([index, len(prompt), *map(len, ids)])
        yield record_bytes.encode(record, prompt, ids, token_bytes)

  def _write_table(
    self, split: str, table: Sequence[Sequence[int]]
  ) -> manifest_lib.Shard:
    """Writes the table of a split."""
    width = max(map(len, table), default=2)
    array = np.full((len(table), width), -1, np.int32)
    for row, values in zip(array, table, strict=True):
      row[: len(values)] = values
    name = layout.table_name(self._name, split)
    path = self._directory / name
    scratch = path.with_name(path.name + ".next")
    content = io.BytesIO()
    np.save(content, array)
    try:
      scratch.write_bytes(content.getvalue())
      os.replace(scratch, path)
    except OSError as error:
      raise shards.cannot_write(path, error) from error
    crc32 = manifest_lib.bytes_crc32(content.getvalue())
    return manifest_lib.Shard(name, len(table), 0, path.stat().st_size, crc32)
