"""Rows of prepared documents, read by index from their shards."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence

import grain
import numpy as np

from instructgpt_jax.data import packing
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared import row_records

_MAX_OPEN = 512  # shards


class PreparedRows:
  """Rows of one length and split; a `RowSource`.

  Args:
    directory: the prepared directory.
    manifest: its manifest.
    length: T, tokens of a row.
    split: "train", "valid" or "test".
    pad_id: token id of padding.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    manifest: manifest_lib.Manifest,
    length: int,
    split: str,
    pad_id: int,
  ):
    self._directory = pathlib.Path(directory).expanduser()
    self._shards = manifest.shards[length][split]
    self._token_bytes, self._pad_id = manifest.token_bytes, pad_id
    self._length = length
    # Row r is in the shard i with ends[i - 1] <= r < ends[i].
    self._ends = np.cumsum([0, *(shard.rows for shard in self._shards)])[1:]
    self._readers: collections.OrderedDict[
      int, grain.sources.ArrayRecordDataSource
    ] = collections.OrderedDict()

  @property
  def count(self) -> int:
    """Number of rows."""
    return int(self._ends[-1]) if len(self._ends) else 0

  @property
  def length(self) -> int:
    """Tokens of a row."""
    return self._length

  def loss_tokens(self, indices: np.ndarray) -> np.ndarray:
    """Returns the mean number of tokens that carry loss, for each row."""
    total = sum(shard.loss_tokens for shard in self._shards)
    return np.full(len(indices), total / max(self.count, 1))

  def take(self, indices: np.ndarray) -> packing.Rows:
    """Returns the rows at indices."""
    if not len(indices):
      return packing.empty_rows(0, self._length, self._pad_id)
    size = row_records.row_bytes(self._length, self._token_bytes)
    per_record = row_records.rows_per_record(self._length)
    shards = np.searchsorted(self._ends, indices, side="right")
    rows: list[bytes] = []
    last: tuple[int, int, bytes] = (-1, -1, b"")
    for shard, index in zip(shards.tolist(), indices.tolist(), strict=True):
      first = int(self._ends[shard]) - self._shards[shard].rows
      record, slot = divmod(index - first, per_record)
      if last[:2] != (shard, record):
        last = (shard, record, self._read(shard, record))
      rows.append(last[2][slot * size : (slot + 1) * size])
    self._check_sizes(rows, shards, size)
    return row_records.decode(
      rows, self._length, self._token_bytes, self._pad_id
    )

  def _check_sizes(
    self, rows: Sequence[bytes], shards: np.ndarray, size: int
  ) -> None:
    for row, shard in zip(rows, shards.tolist(), strict=True):
      if len(row) != size:
        path = self._directory / self._shards[shard].file
        raise manifest_lib.damaged_shard(path, "has a record of another size")

  def _read(self, shard: int, record: int) -> bytes:
    """Reads a record of a shard.

    Raises:
      UserError: `damaged_shard`.
    """
    path = self._directory / self._shards[shard].file
    try:
      return self._reader(shard, path)[record]
    except (RuntimeError, ValueError, OSError) as error:
      problem = " ".join(str(error).split(";")[0].split())
      raise manifest_lib.damaged_shard(
        path, f"cannot be read: {problem}"
      ) from error

  def _reader(
    self, shard: int, path: pathlib.Path
  ) -> grain.sources.ArrayRecordDataSource:
    """Returns the reader of a shard, among the last ones that were used."""
    readers = self._readers
    if shard in readers:
      readers.move_to_end(shard)
      return readers[shard]
    if len(readers) >= _MAX_OPEN:
      _, oldest = readers.popitem(last=False)
      oldest.__exit__(None, None, None)
    readers[shard] = grain.sources.ArrayRecordDataSource([str(path)])
    return readers[shard]
