"""Reads and writes safetensors files, in parts.

A file is a length (8 bytes, little endian), a JSON header of that length, and
the tensors' bytes: https://huggingface.co/docs/safetensors. Headers are checked
before any tensor is read. Pickles are never read.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from instructgpt_jax import file_signatures
from instructgpt_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CHUNK = 1 << 24  # bytes read at a time
_MAX_HEADER_BYTES = 100_000_000
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
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class ReadableTensor(Protocol):
  """A tensor of a file, which is read in regions."""

  @property
  def file(self) -> str:
    """Returns the file, for errors."""
    ...

  @property
  def dtype(self) -> str:
    """Returns the dtype of its values, a key of _BYTES."""
    ...

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns its shape."""
    ...

  def read_region(
    self, shape: Sequence[int], region: Sequence[slice], into: np.ndarray
  ) -> None:
    """Reads a region, a few rows at a time.

    Args:
      shape: shape that the tensor is reshaped to; divides its first axis, or
        its only one.
      region: a slice of each axis of `shape`, with explicit bounds.
      into: output array or view, of the region's shape.
    """
    ...


class Tensor(NamedTuple):
  """A tensor of a safetensors file."""

  file: str
  dtype: str  # a key of _BYTES
  shape: tuple[int, ...]
  begin: int  # offset in the file, in bytes

  def read_region(
    self, shape: Sequence[int], region: Sequence[slice], into: np.ndarray
  ) -> None:
    """Reads a region of the tensor; see `ReadableTensor`."""
    dtype = _FLOATS[self.dtype]
    others = tuple(region[1:])
    size = math.prod(shape[1:]) * dtype.itemsize
    with open(self.file, "rb") as file:
      for start, stop in split_rows(region[0], size):
        file.seek(self.begin + start * size)
        data = file.read((stop - start) * size)
        if len(data) != (stop - start) * size:
          raise _damaged_file(self.file, "it ends early", "truncated_file")
        values = np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])
        target = slice(start - region[0].start, stop - region[0].start)
        into[target] = values[(slice(None), *others)]


def split_rows(rows: slice, row_bytes: int) -> Iterator[tuple[int, int]]:
  """Yields (start, stop) of rows that are read at a time."""
  step = max(1, _CHUNK // max(row_bytes, 1))
  for start in range(rows.start, rows.stop, step):
    yield start, min(start + step, rows.stop)


class PendingTensor(NamedTuple):
  """A tensor to be written, whose values are computed when needed."""

  name: str
  shape: tuple[int, ...]
  compute: Callable[[], np.ndarray]


def _damaged_file(
  path: str | pathlib.Path, reason: str, code: str = "bad_safetensors"
) -> UserError:
  return UserError(
    f"is not a complete safetensors file: {reason}",
    file=str(path),
    fix="copy it again from its source",
    code=code,
  )


def _truncated_file(
  path: str | pathlib.Path, size: int, whole: int
) -> UserError:
  return _damaged_file(
    path, f"it has only {size:,} of {whole:,} bytes", "truncated_file"
  )


def raise_if_other_file_type(
  path: str | pathlib.Path, head: bytes, problem: str = "cannot be read"
) -> None:
  """Raises an error if a model's file is recognisably of another type.

  Args:
    path: a file that cannot be parsed as its name suggests.
    head: the first bytes of the file.
    problem: general description of the problem.

  Raises:
    UserError: the bytes belong to another file type, such as a Git LFS pointer
      or an HTML page.
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
    fix=kind.fix if pointer else "download it again from its source",
    code=kind.code,
  )


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  table = dict(pairs)
  if len(table) != len(pairs):
    raise ValueError("a name occurs twice in the header")
  return table


def read_header(path: str | pathlib.Path) -> dict[str, Tensor]:
  """Reads the header of a file: name → tensor.

  Raises:
    UserError: the file cannot be read, or its header does not describe every
      byte exactly once.
  """
  try:
    with open(path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      head = file.read(file_signatures.HEAD)
      if head[8:9] != b"{":
        raise_if_other_file_type(path, head, "is not a whole safetensors file")
      if len(head) < 9:
        raise _damaged_file(path, f"it has {size} bytes")
      (count,) = struct.unpack("<Q", head[:8])
      if head[8:9] != b"{" or count > _MAX_HEADER_BYTES:
        raise _damaged_file(path, "it does not begin with a header")
      if count > size - 8:
        raise _truncated_file(path, size, 8 + count)
      file.seek(8)
      header = file.read(count)
  except OSError as error:
    raise UserError(
      f"cannot be read: {error.strerror}", file=str(path), code="unreadable"
    ) from error
  try:
    table = json.loads(header.decode(), object_pairs_hook=_refuse_duplicates)
    if not isinstance(table, dict):
      raise ValueError("the header is not a JSON object")
  except ValueError as error:
    raise _damaged_file(path, str(error)) from error
  table.pop("__metadata__", None)
  headers, spans = {}, []
  for name, entry in table.items():
    tensor, end = _parse_entry(path, name, entry, 8 + count)
    headers[name] = tensor
    spans.append((tensor.begin, end, name))
  position = 8 + count
  for begin, end, name in sorted(spans):
    if begin != position:
      raise _damaged_file(
        path, f"{name} begins at byte {begin}, not {position}"
      )
    position = end
  if size < position:
    raise _truncated_file(path, size, position)
  if position != size:
    raise _damaged_file(
      path, f"the header describes {position} bytes, the file has {size}"
    )
  return headers


def _parse_entry(
  path: Any, name: str, entry: Any, start: int
) -> tuple[Tensor, int]:
  try:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    width = _BYTES[dtype]
    numbers = (begin, end, *shape)
    if not all(type(n) is int and n >= 0 for n in numbers):
      raise ValueError
    if end - begin != math.prod(shape) * width:
      raise ValueError
  except (KeyError, TypeError, ValueError) as error:
    raise _damaged_file(path, f"the entry of {name} is invalid") from error
  return Tensor(str(path), dtype, shape, start + begin), start + end


def find_tensors(directory: str | pathlib.Path) -> dict[str, Tensor]:
  """Reads the headers of model.safetensors or of the files in its index.

  Raises:
    UserError: the directory has no safetensors or only pickles; or the index
      names a file outside the directory or a tensor that its file lacks.
  """
  directory = pathlib.Path(directory)
  index = directory / INDEX
  if index.exists():
    return _find_by_index(directory, index)
  if (directory / SINGLE_FILE).exists():
    return read_header(directory / SINGLE_FILE)
  pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
  if pickles:
    raise UserError(
      f"{pickles[0]} is a pickle, which may run code and is never read",
      file=str(directory),
      fix="save the model as safetensors, for example with save_pretrained",
      code="pickle",
    )
  raise UserError(
    f"contains neither {SINGLE_FILE} nor {INDEX}",
    file=str(directory),
    fix="use a directory that save_pretrained wrote",
    code="no_tensors",
  )


def _find_by_index(
  directory: pathlib.Path, index: pathlib.Path
) -> dict[str, Tensor]:
  try:
    file_of = json.loads(index.read_bytes())["weight_map"]
    files = sorted(set(file_of.values()))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      "is not an index of tensors",
      file=str(index),
      fix="copy it again from its source",
      code="bad_index",
    ) from error
  headers = {}
  for name in files:
    is_basename = isinstance(name, str) and name == os.path.basename(name)
    if not is_basename or not name.endswith(".safetensors"):
      raise UserError(
        f"names {name!r}, which is not a safetensors file of this directory",
        file=str(index),
        fix="correct the index, or copy the directory again from its source",
        code="bad_index",
      )
    headers[name] = read_header(directory / name)
  tensors = {}
  for name, file in file_of.items():
    if name not in headers[file]:
      raise UserError(
        f"lists {name} in {file}, which does not contain it",
        file=str(index),
        fix="copy the directory again from its source",
        code="bad_index",
      )
    tensors[name] = headers[file][name]
  return tensors


def same_samples(a: ReadableTensor, b: ReadableTensor) -> bool:
  """Returns whether two tensors have the same dtype, shape and sampled values.

  Only the first and the last rows are compared, which is enough to distinguish
  tensors that were trained separately.
  """
  if (a.dtype, a.shape) != (b.dtype, b.shape):
    return False
  size = max(1, math.prod(a.shape[1:]))
  count = min(a.shape[0], max(1, (1 << 14) // size))
  others = [slice(0, n) for n in a.shape[1:]]

  def samples(tensor: ReadableTensor) -> list[np.ndarray]:
    values = []
    for start in (0, a.shape[0] - count):
      into = np.empty((count, *a.shape[1:]), np.float32)
      tensor.read_region(a.shape, [slice(start, start + count), *others], into)
      values.append(into)
    return values

  pairs = zip(samples(a), samples(b), strict=True)
  return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def is_float(tensor: ReadableTensor) -> bool:
  """Returns whether `read_region` supports the tensor's dtype."""
  return tensor.dtype in _FLOATS


def write(
  directory: str | pathlib.Path,
  pending: Iterable[PendingTensor],
  dtype: str,
  max_file_size: int,
) -> None:
  """Writes tensors to model.safetensors, or to several files with an index.

  Args:
    directory: output directory.
    pending: the tensors; one at a time is in memory.
    dtype: a key of DTYPES.
    max_file_size: maximum bytes of a file; a larger tensor gets its own file.
  """
  directory = pathlib.Path(directory)
  file_dtype = DTYPES[dtype]
  files: list[list[PendingTensor]] = []
  room = 0
  for tensor in pending:
    size = math.prod(tensor.shape) * _BYTES[file_dtype]
    if not files or size > room:
      files.append([])
      room = max_file_size
    files[-1].append(tensor)
    room -= size
  if len(files) == 1:
    write_file(directory / SINGLE_FILE, files[0], file_dtype)
    return
  file_of, total = {}, 0
  for i, group in enumerate(files):
    name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
    total += write_file(directory / name, group, file_dtype)
    file_of |= {tensor.name: name for tensor in group}
  index = {"metadata": {"total_size": total}, "weight_map": file_of}
  (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_file(
  path: pathlib.Path, pending: Sequence[PendingTensor], dtype: str
) -> int:
  """Writes a safetensors file.

  Args:
    path: file to write.
    pending: the tensors; one at a time is in memory.
    dtype: a value of DTYPES.

  Returns:
    The size of all tensors in bytes.
  """
  table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  begin = 0
  for tensor in pending:
    end = begin + math.prod(tensor.shape) * _BYTES[dtype]
    table[tensor.name] = {
      "dtype": dtype,
      "shape": list(tensor.shape),
      "data_offsets": [begin, end],
    }
    begin = end
  header = json.dumps(table, separators=(",", ":")).encode()
  header += b" " * (-len(header) % 8)
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    for tensor in pending:
      values = np.ascontiguousarray(tensor.compute(), _FLOATS[dtype])
      if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name} is {values.shape}, not {tensor.shape}")
      file.write(values.view(np.uint8).data)
      del values  # free it before the next tensor is computed
    file.flush()
    os.fsync(file.fileno())
  return begin
