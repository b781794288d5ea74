"""Checksums of a folder's files, by which damage is found before it is used."""

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
_CHUNK = 1 << 22  # bytes read at once
_THREADS = 4


def write(folder: pathlib.Path, **values: Any) -> None:
  """Writes the manifest of all files that the folder holds.

  Args:
    folder: it holds no manifest yet, and nothing in it changes any more.
    values: JSON values that `read` gives back.
  """
  names = sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file()
  )
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda name: _measured(folder / name), names)
    body = {"files": dict(zip(names, sums, strict=True)), "values": values}
  files.write_json_atomic(
    folder / MANIFEST, {"crc32": _own(body), **body}, indent=None
  )


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The values that `write` was given.

  Raises:
    UserError: the manifest is missing or damaged.
  """
  return _body(folder)["values"]


def find_damage(
  folder: pathlib.Path, part: int = 0, parts: int = 1, *, deep: bool = True
) -> str:
  """What is wrong with a folder, in a few words; "" when nothing is.

  Args:
    folder: the folder.
    part: of `parts`; every so many files are looked at, from this one on.
    parts: processes that share the work.
    deep: whether files in inner folders, the large ones, are looked at too.
  """
  try:
    wanted = _body(folder)["files"]
  except UserError as error:
    return f"{MANIFEST}: {error.problem}"
  names = [name for name in sorted(wanted) if deep or "/" not in name]

  def wrong(name: str) -> str:
    path = folder / name
    try:
      if path.stat().st_size != wanted[name][0]:
        return f"{name} has another size"
      return "" if _measured(path) == wanted[name] else f"{name} has changed"
    except OSError as error:
      return f"{name}: {error.strerror or error}"

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return next(filter(None, pool.map(wrong, names[part::parts])), "")


def _body(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / MANIFEST
  held = files.read_json(path)
  try:
    body = {"files": dict(held["files"]), "values": dict(held["values"])}
    whole = held["crc32"] == _own(body)
  except (KeyError, TypeError, ValueError):
    whole = False
  if not whole:
    raise UserError("is damaged", file=str(path))
  return body


def _own(body: dict[str, Any]) -> int:
  text = json.dumps(files.to_json_values(body), sort_keys=True)
  return zlib.crc32(text.encode())


def _measured(path: pathlib.Path) -> list[int]:
  """[size, CRC-32] of a file."""
  crc = 0
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      crc = zlib.crc32(chunk, crc)
    return [os.fstat(file.fileno()).st_size, crc]
