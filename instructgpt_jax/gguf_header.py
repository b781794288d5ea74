"""Reads the header of a GGUF file: its metadata and the list of its tensors.

A file is a magic, a version, metadata (key, type, value), a table of tensors
(name, shape, type, offset), and the tensors' bytes:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is checked
before anything in it is used: a damaged count or length never costs more time
or memory than the file has bytes. The package `gguf` has a reader, which loops
over a damaged count, and takes 50 times as long for 262,000 tokens.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import file_signatures
from instructgpt_jax.errors import UserError

MAGIC = b"GGUF"
SUFFIX = ".gguf"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_MAX_AXES = 4
_MAX_NAME = 256  # characters
_STRING, _ARRAY = 8, 9
_SCALARS = {
  0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
  4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"),
  10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
_COPY = "copy it again from its source"


class TensorEntry(NamedTuple):
  """A tensor as the header lists it.

  Attributes:
    name: its name, such as "blk.0.attn_q.weight".
    shape: its shape, the axis that varies fastest last.
    type_id: number of its GGML type.
    begin: offset in the file, in bytes.
  """

  name: str
  shape: tuple[int, ...]
  type_id: int
  begin: int


class Header(NamedTuple):
  """The header of a GGUF file.

  Attributes:
    path: the file.
    metadata: key → number, text, list of texts, or array of numbers.
    tensors: name → tensor.
    file_size: size of the file in bytes.
  """

  path: str
  metadata: dict[str, Any]
  tensors: dict[str, TensorEntry]
  file_size: int


def is_gguf(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is a file that claims to be GGUF.

  It does by its name or by its first bytes, so that a damaged file counts.
  """
  try:
    with open(path, "rb") as file:
      return pathlib.Path(path).suffix.lower() == SUFFIX or (
        file.read(len(MAGIC)) == MAGIC
      )
  except OSError:
    return False


def damaged(path: str, reason: str, code: str = "bad_gguf") -> UserError:
  """Returns the error for a file that is not a whole GGUF file."""
  return UserError(
    f"is not a whole GGUF file: {reason}", file=path, fix=_COPY, code=code
  )


def truncated(path: str, size: int, needed: int) -> UserError:
  """Returns the error for a file that ends before its data do."""
  return damaged(
    path,
    f"it has {size:,} bytes, and its header needs at least {needed:,}",
    "truncated_file",
  )


def read_header(path: str | os.PathLike[str]) -> Header:
  """Reads the header of a file.

  Raises:
    UserError: the file cannot be read, is damaged, one of several splits, or
      of a version that is not supported.
  """
  path = os.fspath(path)
  _refuse_split(path)
  try:
    with open(path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      _refuse_other_type(path, file.read(file_signatures.HEAD))
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _parse(_Cursor(path, data, len(MAGIC)), size)
  except OSError as error:
    raise UserError(
      f"cannot be read: {error.strerror}",
      file=path,
      fix="check the path and its permissions",
      code="unreadable",
    ) from error


def _refuse_split(path: str, count: int = 0) -> None:
  """Refuses one of several files that a model was split into."""
  split = _SPLIT.search(path)
  if split is not None:
    count = max(count, int(split[1]))
  if count > 1:
    raise UserError(
      f"is one of {count} files that a model was split into",
      file=path,
      fix="join them with `llama-gguf-split --merge FIRST.gguf WHOLE.gguf`, and"
      " give the whole file",
      code="split_gguf",
    )


def _refuse_other_type(path: str, head: bytes) -> None:
  """Refuses a file that does not begin as GGUF does."""
  if head.startswith(MAGIC):
    return
  kind = file_signatures.recognise(head)
  if not head:
    kind = file_signatures.Signature("empty_file", "empty")
  if kind is not None and not kind.code.endswith("_pointer"):
    raise UserError(
      f"is no GGUF file: it is {kind.name}",
      file=path,
      fix="give a GGUF file",
      code=kind.code,
    )
  if kind is not None:
    raise file_signatures.as_error(kind, path)
  raise UserError(
    "is no GGUF file: it does not begin with the letters GGUF",
    file=path,
    fix="give a GGUF file, or a Hugging Face directory",
    code="not_gguf",
  )


class _Cursor:
  """Reads values one after another, and never beyond the file's end."""

  def __init__(self, path: str, data: mmap.mmap, position: int):
    self.path, self.position = path, position
    self._data, self._size = data, len(data)

  def need(self, count: int) -> int:
    """Moves on by a number of bytes; returns the position before them."""
    start = self.position
    if count > self._size - start:
      raise truncated(self.path, self._size, start + count)
    self.position = start + count
    return start

  def number(self, kind: str) -> Any:
    """Reads a number of a format of `struct`."""
    start = self.need(struct.calcsize(kind))
    return struct.unpack_from("<" + kind, self._data, start)[0]

  def text(self) -> str:
    """Reads a text: its length and its bytes in UTF-8."""
    count = self.number("Q")
    start = self.need(count)
    try:
      return self._data[start : start + count].decode()
    except UnicodeDecodeError as error:
      raise damaged(
        self.path, f"the text at byte {start} is not UTF-8"
      ) from error

  def name(self) -> str:
    """Reads the name of a key or of a tensor."""
    start = self.position
    name = self.text()
    if not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
      raise damaged(self.path, f"the text at byte {start} is no name")
    return name

  def value(self) -> Any:
    """Reads a type and a value of it."""
    type_id = self.number("I")
    if type_id == _STRING:
      return self.text()
    if type_id == _ARRAY:
      return self._array()
    return self._scalars(type_id, 1)[0].item()

  def _array(self) -> Any:
    type_id, count = self.number("I"), self.number("Q")
    if type_id != _STRING:
      return self._scalars(type_id, count)
    start = self.need(8 * count)  # each text has at least its length
    self.position = start
    return [self.text() for _ in range(count)]

  def _scalars(self, type_id: int, count: int) -> np.ndarray:
    if type_id not in _SCALARS:
      raise damaged(
        self.path,
        f"its metadata have a value of type {type_id} at byte {self.position}",
      )
    dtype = _SCALARS[type_id]
    start = self.need(count * dtype.itemsize)
    content = self._data[start : self.position]
    return np.frombuffer(content, dtype)


def _parse(cursor: _Cursor, size: int) -> Header:
  path = cursor.path
  version = cursor.number("I")
  if version not in _VERSIONS:
    swapped = struct.unpack(">I", struct.pack("<I", version))[0]
    order = " in big-endian order" if swapped in _VERSIONS else ""
    raise UserError(
      f"is GGUF of version {swapped if order else version}{order}; supported:"
      f" versions {_VERSIONS[0]} and {_VERSIONS[1]} in little-endian order",
      file=path,
      fix="convert the model again with a current llama.cpp",
      code="gguf_version",
    )
  tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
  metadata: dict[str, Any] = {}
  for _ in range(key_count):
    key = cursor.name()
    if key in metadata:
      raise damaged(path, f"its metadata have {key} twice")
    metadata[key] = cursor.value()
  count = metadata.get("split.count", 0)
  _refuse_split(path, count if isinstance(count, int) else 0)
  table = [_parse_entry(cursor) for _ in range(tensor_count)]
  alignment = metadata.get("general.alignment", _ALIGNMENT)
  if type(alignment) is not int or alignment < 1 or alignment % 8:
    raise damaged(path, f"general.alignment is {alignment!r}")
  start = -(-cursor.position // alignment) * alignment
  tensors: dict[str, TensorEntry] = {}
  for entry in table:
    if entry.name in tensors:
      raise damaged(path, f"it has a tensor {entry.name} twice")
    tensors[entry.name] = entry._replace(begin=start + entry.begin)
  return Header(path, metadata, tensors, size)


def _parse_entry(cursor: _Cursor) -> TensorEntry:
  name = cursor.name()
  axes = cursor.number("I")
  if axes > _MAX_AXES:
    raise damaged(cursor.path, f"tensor {name} has {axes} axes")
  shape = [cursor.number("Q") for _ in range(axes)]
  type_id, offset = cursor.number("I"), cursor.number("Q")
  return TensorEntry(name, tuple(reversed(shape)), type_id, offset)
