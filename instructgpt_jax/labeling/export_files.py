"""Writes an export as JSON lines or Parquet, the same bytes each time."""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import export as export_lib
from instructgpt_jax.labeling import forms
from instructgpt_jax.runs import files

FORMATS = ("jsonl", "parquet")
MANIFEST = "export.json"

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_LABELING = pa.struct(
  [
    ("item", pa.int64()),
    ("kind", pa.string()),
    ("instructions", pa.int64()),
    ("submitted_at", pa.float64()),
    ("revised_at", pa.float64()),
    ("seconds", pa.float64()),
    ("adjudicated", pa.bool_()),
    ("intent", pa.string()),
    ("sources", pa.list_(pa.string())),
    ("notes", pa.string()),
    ("confidence", pa.int64()),
    ("overall", pa.list_(pa.int64())),
    (
      "flags",
      pa.list_(pa.struct([(name, pa.bool_()) for name in forms.FLAG_NAMES])),
    ),
  ]
)
_COLUMNS = {
  "prompt": _TURNS,
  "completions": pa.list_(pa.string()),
  "ranks": pa.list_(pa.int64()),
  "completion": pa.string(),
  "labeler_id": pa.string(),
  "user_id": pa.string(),
  "split": pa.string(),
  export_lib.FIELD: _LABELING,
}


def write_export(
  export: export_lib.Export, directory: str, file_format: str = "jsonl"
) -> list[str]:
  """Writes the files of an export, and `export.json`, into a directory.

  Files of an earlier export into the directory that have no records now are
  removed. Each file appears whole or not at all, and the manifest last.

  Args:
    export: the records.
    directory: directory of the files; created if missing.
    file_format: one of `FORMATS`.

  Returns:
    The paths of the files, the manifest last.

  Raises:
    UserError: a file cannot be written, `export.json` is not of an export, or
      a file exists that no export has written ("output_exists").
  """
  if file_format not in FORMATS:
    raise UserError(
      f"{file_format!r} is no format",
      field="--format",
      fix="use jsonl or parquet",
      code="bad_format",
    )
  root = files.make_directory(directory)
  earlier = _earlier_files(root)
  contents = {
    f"{name}.{file_format}": encode(rows, file_format)
    for name, rows in export.files.items()
  }
  for name in contents.keys() - earlier:
    if (root / name).exists():
      raise UserError(
        "exists already, and is of no export",
        file=str(root / name),
        field="--to",
        fix="choose another directory, or move the file",
        code="output_exists",
      )
  for name, content in contents.items():
    files.write_chunks_atomic(root / name, (content,))
  for name in sorted(earlier - contents.keys()):
    with files.disk_errors_as_user_errors(root / name):
      (root / name).unlink(missing_ok=True)
  files.write_json_atomic(
    root / MANIFEST, _manifest(export, contents, file_format)
  )
  return [str(root / name) for name in (*contents, MANIFEST)]


def _manifest(
  export: export_lib.Export,
  contents: Mapping[str, bytes],
  file_format: str,
) -> dict[str, Any]:
  rows = dict(zip(contents, export.files.values(), strict=True))
  return {
    "labels": export.labels,
    "files": {
      name: {
        "records": len(rows[name]),
        "labelers": len({r["labeler_id"] for r in rows[name]
                         if "labeler_id" in r}),
        "bytes": len(content),
        "crc32": f"{zlib.crc32(content):08x}",
      }
      for name, content in contents.items()
    },
    "format": file_format,
    "left_out": export.left_out,
  }  # fmt: skip


def _earlier_files(root: pathlib.Path) -> set[str]:
  """Returns the names of the files of an earlier export."""
  path = root / MANIFEST
  if not path.exists():
    return set()
  value = files.read_json(path)
  names = value.get("files") if isinstance(value, dict) else None
  if not isinstance(names, dict):
    raise UserError(
      "is not of an export",
      file=str(path),
      field="files",
      fix="choose another --to",
      code="not_an_export",
    )
  known = {f"{name}.{kind}" for name in export_lib.FILES for kind in FORMATS}
  return names.keys() & known


def encode(rows: Sequence[Mapping[str, Any]], file_format: str) -> bytes:
  """Returns the content of a file of records, in one of `FORMATS`."""
  if file_format == "jsonl":
    lines = (
      json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows
    )
    return "".join(f"{line}\n" for line in lines).encode()
  present = [name for name in _COLUMNS if any(name in row for row in rows)]
  schema = pa.schema([(name, _COLUMNS[name]) for name in present])
  table = pa.Table.from_pylist(list(rows), schema=schema)
  sink = pa.BufferOutputStream()
  pq.write_table(table, sink)
  return sink.getvalue().to_pybytes()
