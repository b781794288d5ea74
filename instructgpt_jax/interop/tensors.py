"""Safetensors files, checked before anything is read, and read in parts.

A file is a length (8 bytes, little endian), a JSON header of that length, and
the tensors' bytes: https://huggingface.co/docs/safetensors. Nothing else is
ever read, and never a pickle.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from instructgpt_jax import file_signatures
from instructgpt_jax.errors import UserError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CHUNK = 1 << 24  # bytes read at a time
_MOST_HEADER = 100_000_000
_FLOATS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}
_BYTES = {
  "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2,
  "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8,
  "F64": 8,
}  # fmt: skip
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Tensor(NamedTuple):
  """Where a tensor lies."""

  file: str
  kind: str  # of _BYTES
  shape: tuple[int, ...]
  begin: int  # in the file


class New(NamedTuple):
  """A tensor to be written."""

  name: str
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]  # its values, once they are needed


def _damaged(
  path: str | pathlib.Path, what: str, code: str = "bad_safetensors"
) -> UserError:
  return UserError(
    f"is not a whole safetensors file: {what}",
    file=str(path),
    fix="copy it again from where it came from",
    code=code,
  )


def _truncated(path: str | pathlib.Path, size: int, whole: int) -> UserError:
  return _damaged(
    path, f"it ends early, {size:,} of {whole:,} bytes", "truncated_file"
  )


def refuse_other(
  path: str | pathlib.Path, head: bytes, problem: str = "cannot be read"
) -> None:
  """Raises an error that names a file of a model for what it is.

  Args:
    path: a file that cannot be read as what its name says.
    head: its first bytes.
    problem: what is wrong with it, in general.

  Raises:
    UserError: the bytes are those of another kind of file, such as a Git LFS
      pointer or an HTML page.
  """
  kind = file_signatures.recognise(head[: file_signatures.HEAD])
  if not head:
    kind = file_signatures.Signature("empty_file", "empty")
  if kind is None:
    return
  pointer = kind.code.endswith("_pointer")
  raise UserError(
    f"is {kind.name}" if pointer else f"{problem}: it is {kind.name}",
    file=str(path),
    fix=kind.fix if pointer else "download it again from where it came from",
    code=kind.code,
  )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError("a name stands in its header twice")
  return found


def read_header(path: str | pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a file, by name.

  Raises:
    UserError: it cannot be read, or its header does not describe its bytes,
      all of them and each once.
  """
  try:
    with open(path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      head = file.read(file_signatures.HEAD)
      if head[8:9] != b"{":
        refuse_other(path, head, "is not a whole safetensors file")
      if len(head) < 9:
        raise _damaged(path, f"it has {size} bytes")
      (count,) = struct.unpack("<Q", head[:8])
      if head[8:9] != b"{" or count > _MOST_HEADER:
        raise _damaged(path, "it does not begin with a header")
      if count > size - 8:
        raise _truncated(path, size, 8 + count)
      file.seek(8)
      header = file.read(count)
  except OSError as error:
    raise UserError(
      f"cannot be read: {error.strerror}", file=str(path)
    ) from error
  try:
    table = json.loads(header.decode(), object_pairs_hook=_unique)
    if not isinstance(table, dict):
      raise ValueError("its header is no table")
  except ValueError as error:
    raise _damaged(path, str(error)) from error
  table.pop("__metadata__", None)
  found, spans = {}, []
  for name, entry in table.items():
    tensor, end = _entry(path, name, entry, 8 + count)
    found[name] = tensor
    spans.append((tensor.begin, end, name))
  at = 8 + count
  for begin, end, name in sorted(spans):
    if begin != at:
      raise _damaged(path, f"{name} begins at byte {begin}, not {at}")
    at = end
  if size < at:
    raise _truncated(path, size, at)
  if at != size:
    raise _damaged(path, f"{at} bytes are described, {size} are there")
  return found


def _entry(path: Any, name: str, entry: Any, start: int) -> tuple[Tensor, int]:
  try:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    width = _BYTES[kind]
    numbers = (begin, end, *shape)
    if not all(type(n) is int and n >= 0 for n in numbers):
      raise ValueError
    if end - begin != math.prod(shape) * width:
      raise ValueError
  except (KeyError, TypeError, ValueError) as error:
    raise _damaged(path, f"the entry of {name} does not fit") from error
  return Tensor(str(path), kind, shape, start + begin), start + end


def find(folder: str | pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a folder: of model.safetensors, or of the index's files.

  Raises:
    UserError: there are none, or pickles only; the index names a file outside
      the folder, or a tensor that its file does not have.
  """
  folder = pathlib.Path(folder)
  index = folder / INDEX
  if index.exists():
    return _indexed(folder, index)
  if (folder / WHOLE).exists():
    return read_header(folder / WHOLE)
  pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
  if pickles:
    raise UserError(
      f"{pickles[0]} is a pickle, which may run code and is never read",
      file=str(folder),
      fix="save the model again as safetensors (save_pretrained does)",
    )
  raise UserError(
    f"holds neither {WHOLE} nor {INDEX}",
    file=str(folder),
    fix="give a folder that save_pretrained wrote",
  )


def _indexed(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Tensor]:
  try:
    places = json.loads(index.read_bytes())["weight_map"]
    files = sorted(set(places.values()))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      "is not an index of tensors",
      file=str(index),
      fix="copy it again from where it came from",
    ) from error
  headers = {}
  for name in files:
    plain = isinstance(name, str) and name == os.path.basename(name)
    if not plain or not name.endswith(".safetensors"):
      raise UserError(
        f"names {name!r}, which is no safetensors file of its own folder",
        file=str(index),
        fix="do not use this folder, or mend its index",
      )
    headers[name] = read_header(folder / name)
  found = {}
  for name, place in places.items():
    if name not in headers[place]:
      raise UserError(
        f"says that {name} is in {place}, where it is not",
        file=str(index),
        fix="copy the folder again from where it came from",
      )
    found[name] = headers[place][name]
  return found


def read(
  tensor: Tensor,
  shape: Sequence[int],
  region: Sequence[slice],
  into: np.ndarray,
) -> None:
  """Reads a part of a tensor, a few rows at a time.

  Args:
    tensor: what is read.
    shape: how it is seen: as many numbers as it has.
    region: a slice of each axis, with its bounds.
    into: an array of the region's shape, or a view of one.
  """
  dtype = _FLOATS[tensor.kind]
  rows, others = region[0], tuple(region[1:])
  size = math.prod(shape[1:]) * dtype.itemsize
  step = max(1, _CHUNK // max(size, 1))
  with open(tensor.file, "rb") as file:
    for start in range(rows.start, rows.stop, step):
      stop = min(start + step, rows.stop)
      file.seek(tensor.begin + start * size)
      data = file.read((stop - start) * size)
      if len(data) != (stop - start) * size:
        raise _damaged(tensor.file, "it ends early", "truncated_file")
      part = np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])
      at = slice(start - rows.start, stop - rows.start)
      into[at] = part[(slice(None), *others)]


def same_samples(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors have the same type, shape, and some of their bytes.

  The first and the last bytes are compared, which tells tensors that were
  trained apart.
  """
  if (a.kind, a.shape) != (b.kind, b.shape):
    return False
  size = math.prod(a.shape) * _BYTES[a.kind]
  count = min(size, 1 << 16)

  def samples(tensor: Tensor) -> list[bytes]:
    with open(tensor.file, "rb") as file:
      parts = []
      for start in (0, size - count):
        file.seek(tensor.begin + start)
        parts.append(file.read(count))
      return parts

  return samples(a) == samples(b)


def is_float(tensor: Tensor) -> bool:
  """Whether `read` reads it."""
  return tensor.kind in _FLOATS


def write(
  folder: str | pathlib.Path, news: Iterable[New], dtype: str, most: int
) -> None:
  """Writes tensors, one at a time, in files of at most `most` bytes.

  Args:
    folder: where; one file is called model.safetensors, several get an index.
    news: what is written; one tensor is held at a time.
    dtype: of NAMES.
    most: a tensor that is larger has a file of its own.
  """
  folder = pathlib.Path(folder)
  kind = NAMES[dtype]
  files: list[list[New]] = []
  room = 0
  for new in news:
    size = math.prod(new.shape) * _BYTES[kind]
    if not files or size > room:
      files.append([])
      room = most
    files[-1].append(new)
    room -= size
  if len(files) == 1:
    write_file(folder / WHOLE, files[0], kind)
    return
  places, total = {}, 0
  for i, group in enumerate(files):
    name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
    total += write_file(folder / name, group, kind)
    places |= {new.name: name for new in group}
  index = {"metadata": {"total_size": total}, "weight_map": places}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_file(path: pathlib.Path, news: Sequence[New], kind: str) -> int:
  """Writes a file of tensors of a kind in NAMES; the bytes of its tensors."""
  table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  at = 0
  for new in news:
    end = at + math.prod(new.shape) * _BYTES[kind]
    table[new.name] = {
      "dtype": kind,
      "shape": list(new.shape),
      "data_offsets": [at, end],
    }
    at = end
  header = json.dumps(table, separators=(",", ":")).encode()
  header += b" " * (-len(header) % 8)
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    for new in news:
      values = np.ascontiguousarray(new.make(), _FLOATS[kind])
      if values.shape != new.shape:
        raise ValueError(f"{new.name} is {values.shape}, not {new.shape}")
      file.write(values.view(np.uint8).data)
      del values  # before the next one is made
    file.flush()
    os.fsync(file.fileno())
  return at
