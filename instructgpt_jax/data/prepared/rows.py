"""Rows of prepared documents, read by index from their shards."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from instructgpt_jax.data import packing
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared import row_records
from instructgpt_jax.data.prepared.shards import Shards


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
    self._shards = manifest.shards[length][split]
    self._files = Shards(pathlib.Path(directory).expanduser(), self._shards)
    self._token_bytes, self._pad_id = manifest.token_bytes, pad_id
    self._length = length

  @property
  def count(self) -> int:
    """Number of rows."""
    return self._files.count

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
    shards, positions = self._files.locate(indices)
    rows: list[bytes] = []
    last: tuple[int, int, bytes] = (-1, -1, b"")
    for shard, index in zip(shards.tolist(), positions.tolist(), strict=True):
      record, slot = divmod(index, per_record)
      if last[:2] != (shard, record):
        last = (shard, record, self._files.read(shard, record))
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
        raise manifest_lib.damaged_shard(
          self._files.path(shard), "has a record of another size"
        )
