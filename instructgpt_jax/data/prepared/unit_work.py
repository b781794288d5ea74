"""Prepares one unit: reads, splits, tokenises and packs its documents."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, packing, reading
from instructgpt_jax.data.curation import splits
from instructgpt_jax.data.prepared import (
  layout,
  manifest,
  row_records,
  shards,
)
from instructgpt_jax.data.prepared.units import Piece, Unit
from instructgpt_jax.data.reading import file_parts, file_records
from instructgpt_jax.data.records import Document
from instructgpt_jax.data.tokenizers import Tokenizer

_ENCODED_CHARS = 1_000_000  # characters that are encoded in one call


class Settings(NamedTuple):
  """How documents are prepared.

  Attributes:
    directory: the prepared directory.
    lengths: row lengths.
    valid_fraction: share of documents for validation.
    test_fraction: share of documents for test.
    token_bytes: bytes of a stored token id.
    fill: whether an empty train or valid split gets a document of another;
      True where there is one unit.
  """

  directory: str
  lengths: tuple[int, ...]
  valid_fraction: float
  test_fraction: float
  token_bytes: int
  fill: bool


class PieceResult(NamedTuple):
  """What reading a file, or a part of it, reports."""

  path: str
  start: int
  report: dict[str, Any]


def result_path(directory: str | os.PathLike[str], unit: int) -> pathlib.Path:
  """Returns the file that a finished unit's result is written to."""
  return pathlib.Path(directory) / layout.UNITS / f"{unit:05d}.json"


def prepare_unit(
  number: int, unit: Unit, settings: Settings, tokenizer: Tokenizer
) -> dict[str, Any]:
  """Writes the shards of a unit, and then its result.

  Args:
    number: index of the unit.
    unit: its files.
    settings: how documents are prepared.
    tokenizer: encodes them.

  Returns:
    The result: counts, shards and what reading reports, as JSON values.
  """
  documents, pieces = _read(unit)
  data = configs.Data(
    valid_fraction=settings.valid_fraction, test_fraction=settings.test_fraction
  )
  parts = splits.split_documents(documents, data, fill=settings.fill)
  del documents
  result: dict[str, Any] = {
    "documents": {split: len(part) for split, part in parts.items()},
    "tokens": {},
    "shards": {str(length): {} for length in settings.lengths},
    "pieces": [piece._asdict() for piece in pieces],
  }
  for split, part in parts.items():
    encoded = list(_encode([d.text for d in part], tokenizer))
    part.clear()
    # Empty documents are left out, as by `packing.pack_documents`.
    result["tokens"][split] = sum(len(ids) + 1 for ids in encoded if len(ids))
    for length in settings.lengths:
      rows = packing.pack_documents(
        encoded,
        length,
        eos_id=tokenizer.document_end_id,
        pad_id=tokenizer.pad_id,
      )
      if len(rows["tokens"]):
        name = layout.shard_name(number, length, split)
        shard = shards.write(
          pathlib.Path(settings.directory),
          name,
          row_records.encode(rows, settings.token_bytes),
          rows=len(rows["tokens"]),
          loss_tokens=int(rows["weights"].sum(dtype=np.float64)),
        )
        result["shards"][str(length)][split] = shard._asdict()
  manifest.write_json(result_path(settings.directory, number), result)
  return result


def _read(unit: Unit) -> tuple[list[Document], list[PieceResult]]:
  """Reads the documents of a unit."""
  documents: list[Document] = []
  results = []
  for piece in unit:
    file = _read_piece(piece)
    records, report = file.records, dataclasses.asdict(file.report)
    if piece.split:
      count = sum(not record.split for record in records)
      records = [
        record
        if record.split
        else dataclasses.replace(record, split=piece.split)
        for record in records
      ]
      report["notes"][f"records in {piece.split} by file name"] = count
    documents += records
    results.append(PieceResult(piece.path, piece.start, report))
  return documents, results


def _read_piece(piece: Piece) -> reading.FileRecords:
  if piece.stop < 0:
    return file_records.read_file(piece.path, Document, piece.named)
  return file_parts.read_documents(piece.path, piece.start, piece.stop)


def read_texts(unit: Unit, data: configs.Data, *, fill: bool) -> Iterator[str]:
  """Yields the training texts of a unit, for a tokenizer."""
  documents, _ = _read(unit)
  for document in splits.split_documents(documents, data, fill=fill)["train"]:
    yield document.text


def _encode(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
  """Encodes texts, a few at a time: ids in Python lists take much memory."""
  first, chars = 0, 0
  for i, text in enumerate(texts):
    chars += len(text)
    if chars >= _ENCODED_CHARS or i == len(texts) - 1:
      yield from encoding.encode_documents(texts[first : i + 1], tokenizer)
      first, chars = i + 1, 0


def is_finished(
  directory: str | os.PathLike[str], number: int
) -> dict[str, Any] | None:
  """Returns the result of a unit whose shards are all there, else None."""
  path = result_path(directory, number)
  if not path.is_file():
    return None
  result = manifest.read_json(path)
  for splits_of in result["shards"].values():
    for shard in splits_of.values():
      file = pathlib.Path(directory) / shard["file"]
      if not file.is_file() or file.stat().st_size != shard["size"]:
        return None
  return result
