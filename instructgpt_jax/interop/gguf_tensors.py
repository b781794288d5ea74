"""Tensors of a GGUF file, dequantised region by region.

The package `gguf` knows the layout of each quantised type. A tensor is read a
few rows at a time, so that memory does not grow with its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from instructgpt_jax import gguf_header
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop.tensors import split_rows

# GGML type → dtype of the values, in the terms of safetensors.
DTYPES = {
  "F32": "F32",
  "F16": "F16",
  "BF16": "BF16",
  "Q4_0": "F32",
  "Q4_1": "F32",
  "Q5_0": "F32",
  "Q5_1": "F32",
  "Q8_0": "F32",
  "Q2_K": "F32",
  "Q3_K": "F32",
  "Q4_K": "F32",
  "Q5_K": "F32",
  "Q6_K": "F32",
}


class GgufTensor(NamedTuple):
  """A tensor of a GGUF file, with the values of the Hugging Face model.

  Attributes:
    file: the file.
    type_name: its GGML type, a key of DTYPES.
    shape: its shape.
    begin: offset in the file, in bytes.
    offset: number that is added to the values.
    rotary_heads: number of heads whose dimensions are ordered so that the two
      that RoPE rotates together are neighbours, which they are not in Hugging
      Face models; 0 where the order is the same.
  """

  file: str
  type_name: str
  shape: tuple[int, ...]
  begin: int
  offset: float = 0.0
  rotary_heads: int = 0

  @property
  def dtype(self) -> str:
    """Returns the dtype of its values."""
    return DTYPES[self.type_name]

  def read_region(
    self, shape: Sequence[int], region: Sequence[slice], into: np.ndarray
  ) -> None:
    """Reads a region of the tensor; see `tensors.ReadableTensor`."""
    others = tuple(region[1:])
    size = math.prod(shape[1:])
    rows = region[0]
    unit, _ = block_layout(self.type_name)
    if self.rotary_heads:
      unit = math.lcm(unit, math.prod(shape) // self.rotary_heads)
    if size % unit:  # a block, or a head, contains several rows
      values = self._values(0, shape)
      into[...] = values[tuple(region)]
      return
    for start, stop in split_rows(rows, 4 * size):
      values = self._values(start * size, (stop - start, *shape[1:]))
      target = slice(start - rows.start, stop - rows.start)
      into[target] = values[(slice(None), *others)]

  def _values(self, first: int, shape: Sequence[int]) -> np.ndarray:
    """Reads rows, which begin and end with a block.

    Args:
      first: index of their first value in the tensor.
      shape: their shape.
    """
    gguf = load_gguf(self.file)
    count = math.prod(shape)
    block, block_bytes = block_layout(self.type_name)
    with open(self.file, "rb") as file:
      file.seek(self.begin + first // block * block_bytes)
      size = count // block * block_bytes
      data = file.read(size)
    if len(data) != size:
      raise gguf_header.damaged(self.file, "it ends early", "truncated_file")
    # As one row: the package loops over groups of 16 rows.
    content = np.frombuffer(data, np.uint8)[None]
    type_id = gguf.GGMLQuantizationType[self.type_name]
    values = gguf.dequantize(content, type_id)[0].reshape(shape)
    if self.offset:
      values = values + np.float32(self.offset)
    if self.rotary_heads:
      head_dim = self.shape[0] // self.rotary_heads
      pairs = values.reshape(-1, head_dim // 2, 2, *self.shape[1:])
      values = pairs.swapaxes(1, 2).reshape(shape)
    return values


def load_gguf(path: str) -> ModuleType:
  """Imports the package `gguf`.

  Args:
    path: the file that is read, for the error.

  Raises:
    UserError: it is not installed.
  """
  try:
    import gguf  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      "GGUF files are read with the package gguf, which is not installed",
      file=path,
      fix="pip install gguf (extra 'gguf')",
      code="missing_package",
    ) from error
  return gguf


def block_layout(type_name: str) -> tuple[int, int]:
  """Returns the number of values of a block, and its bytes."""
  gguf = load_gguf("")
  return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]


def list_tensors(header: gguf_header.Header) -> dict[str, GgufTensor]:
  """Returns the tensors of a file by their names in it.

  Raises:
    UserError: one has a type that is not supported, or the file ends early or
      has two tensors in one place.
  """
  gguf = load_gguf(header.path)
  names = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
  _refuse_types(header, names)
  tensors: dict[str, GgufTensor] = {}
  end = 0
  for entry in sorted(header.tensors.values(), key=lambda e: e.begin):
    kind = names[entry.type_id]
    block, block_bytes = block_layout(kind)
    count = math.prod(entry.shape)
    if not entry.shape or count == 0 or entry.shape[-1] % block:
      raise gguf_header.damaged(
        header.path,
        f"tensor {entry.name} of type {kind} has the shape {list(entry.shape)}",
      )
    if entry.begin < end:
      raise gguf_header.damaged(
        header.path, f"tensor {entry.name} begins inside another"
      )
    end = entry.begin + count // block * block_bytes
    if end > header.file_size:
      raise gguf_header.truncated(header.path, header.file_size, end)
    tensors[entry.name] = GgufTensor(
      header.path, kind, entry.shape, entry.begin
    )
  return tensors


def _refuse_types(header: gguf_header.Header, names: Mapping[int, str]) -> None:
  """Refuses tensors of types that are not supported."""
  others: dict[str, list[str]] = {}
  for entry in header.tensors.values():
    kind = names.get(entry.type_id, f"number {entry.type_id}")
    if kind not in DTYPES:
      others.setdefault(kind, []).append(entry.name)
  if others:
    kinds = ", ".join(
      f"{kind} ({len(tensors)} tensors, such as {tensors[0]})"
      for kind, tensors in others.items()
    )
    raise UserError(
      f"has tensors of types that are not supported: {kinds}",
      file=header.path,
      fix=f"use a file with {', '.join(DTYPES)}, or the original model",
      code="unsupported_quantisation",
    )
