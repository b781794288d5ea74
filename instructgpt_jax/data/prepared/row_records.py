"""Packed rows as bytes.

A shard is an ArrayRecord file. Each of its records has the same number of rows,
but the last may have fewer. A row of T tokens is

  T token ids         little-endian, of 2 or 4 bytes; 0 on padding
  ⌈T / 8⌉ bytes       one bit a token, 1 where a segment starts
  4 bytes             little-endian, number of tokens before the padding

Segments, positions and weights of `packing.pack_documents` follow from these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from instructgpt_jax.data import packing

_RECORD_TOKENS = 1 << 14


def rows_per_record(length: int) -> int:
  """Returns how many rows of `length` tokens a record has."""
  return max(1, _RECORD_TOKENS // length)


def token_dtype(token_bytes: int) -> np.dtype:
  """Returns the type of a stored token id."""
  return np.dtype(f"<u{token_bytes}")


def row_bytes(length: int, token_bytes: int) -> int:
  """Returns the bytes of a row."""
  return length * token_bytes + -(-length // 8) + 4


def encode(rows: packing.Rows, token_bytes: int) -> Iterator[bytes]:
  """Yields the records of packed documents.

  Args:
    rows: rows of `packing.pack_documents`, [R, T].
    token_bytes: bytes of a token id.
  """
  real = rows["segments"] > 0
  starts = real & (rows["positions"] == 0)
  tokens = np.where(real, rows["tokens"], 0).astype(token_dtype(token_bytes))
  columns = [
    tokens.view(np.uint8),
    np.packbits(starts, axis=1),
    real.sum(axis=1, dtype="<u4")[:, None].view(np.uint8),
  ]
  count, length = real.shape
  size = rows_per_record(length)
  for first in range(0, count, size):
    record = [column[first : first + size] for column in columns]
    yield np.concatenate(record, axis=1).tobytes()


def decode(
  rows: Sequence[bytes], length: int, token_bytes: int, pad_id: int
) -> packing.Rows:
  """Returns stored rows as `packing.pack_documents` made them.

  Args:
    rows: the bytes of each row.
    length: T, tokens of a row.
    token_bytes: bytes of a token id.
    pad_id: token id of padding.
  """
  shape = (len(rows), row_bytes(length, token_bytes))
  raw = np.frombuffer(b"".join(rows), np.uint8).reshape(shape)
  ids, bits = length * token_bytes, -(-length // 8)
  tokens = np.ascontiguousarray(raw[:, :ids]).view(token_dtype(token_bytes))
  starts = np.unpackbits(raw[:, ids : ids + bits], axis=1, count=length)
  counts = np.ascontiguousarray(raw[:, -4:]).view("<u4")
  index = np.arange(length, dtype=np.int32)
  real = index < counts
  segment_starts = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
  return dict(
    tokens=np.where(real, tokens, pad_id).astype(np.int32),
    segments=np.where(real, np.cumsum(starts, axis=1), 0).astype(np.int32),
    positions=np.where(real, index - segment_starts, 0).astype(np.int32),
    weights=(real & (starts == 0)).astype(np.float32),
  )
