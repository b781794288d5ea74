"""Checksums of the files of a directory, which detect damage before use."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import zlib
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

MANIFEST = "checksums.json"
_CHUNK = 1 << 22  # bytes per read
_THREADS = 4


def write(directory: pathlib.Path, **values: Any) -> None:
  """Writes the manifest of all files in a directory.

  Args:
    directory: has no manifest yet, and does not change afterwards.
    values: JSON values that `read` returns.
  """
  names = sorted(
    path.relative_to(directory).as_posix()
    for path in directory.rglob("*")
    if path.is_file()
  )
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    checksums = pool.map(lambda name: _size_and_crc(directory / name), names)
    body = {"files": dict(zip(names, checksums, strict=True)), "values": values}
  files.write_json_atomic(
    directory / MANIFEST, {"crc32": _body_crc(body), **body}, indent=None
  )


def read(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the values that were passed to `write`.

  Raises:
    UserError: the manifest is missing or damaged.
  """
  return _read_body(directory)["values"]


def find_damage(
  directory: pathlib.Path,
  shard_index: int = 0,
  shard_count: int = 1,
  *,
  deep: bool = True,
) -> str:
  """Compares files with their checksums.

  Args:
    directory: directory with a manifest.
    shard_index: which share of the files to check, below `shard_count`.
    shard_count: number of processes that share the work.
    deep: whether to check files in subdirectories, which are the large ones.

  Returns:
    A short description of the first damage, or "".
  """
  try:
    checksums = _read_body(directory)["files"]
  except UserError as error:
    return f"{MANIFEST}: {error.problem}"
  names = [name for name in sorted(checksums) if deep or "/" not in name]

  def check(name: str) -> str:
    path = directory / name
    try:
      if path.stat().st_size != checksums[name][0]:
        return f"{name} has a different size"
      unchanged = _size_and_crc(path) == checksums[name]
      return "" if unchanged else f"{name} has changed"
    except OSError as error:
      return f"{name}: {error.strerror or error}"

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    problems = pool.map(check, names[shard_index::shard_count])
    return next(filter(None, problems), "")


def _read_body(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / MANIFEST
  content = files.read_json(path)
  try:
    body = {
      "files": dict(content["files"]),
      "values": dict(content["values"]),
    }
    intact = content["crc32"] == _body_crc(body)
  except (KeyError, TypeError, ValueError):
    intact = False
  if not intact:
    raise UserError("is damaged", file=str(path), code="damaged_manifest")
  return body


def _body_crc(body: dict[str, Any]) -> int:
  text = json.dumps(files.to_json_values(body), sort_keys=True)
  return zlib.crc32(text.encode())


def _size_and_crc(path: pathlib.Path) -> list[int]:
  """Returns [size, CRC-32] of a file."""
  crc = 0
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      crc = zlib.crc32(chunk, crc)
    return [os.fstat(file.fileno()).st_size, crc]
