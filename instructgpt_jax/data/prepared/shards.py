"""Shards: written, and the rows of several read by index."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence

import grain
import numpy as np
from array_record.python import array_record_module

from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared.manifest import Shard
from instructgpt_jax.errors import UserError

_MAX_OPEN = 512  # shards
_WRITER_OPTIONS = "group_size:1,uncompressed"


def write(
  directory: pathlib.Path,
  name: str,
  records: Iterable[bytes],
  *,
  rows: int,
  loss_tokens: int = 0,
) -> Shard:
  """Writes a shard, which appears only when it is complete.

  Args:
    directory: the prepared directory.
    name: path of the shard in it.
    records: the shard's records.
    rows: number of its rows.
    loss_tokens: number of tokens in them that carry loss.

  Raises:
    UserError: `cannot_write`.
  """
  path = directory / name
  scratch = path.with_name(path.name + ".next")
  try:
    writer = array_record_module.ArrayRecordWriter(
      str(scratch), _WRITER_OPTIONS
    )
    for record in records:
      writer.write(record)
    writer.close()
    size, crc32 = scratch.stat().st_size, manifest_lib.file_crc32(scratch)
    os.replace(scratch, path)
  except (OSError, RuntimeError) as error:  # The writer's are RuntimeErrors.
    raise cannot_write(path, error) from error
  return Shard(name, rows, loss_tokens, size, crc32)


def cannot_write(path: pathlib.Path, error: Exception) -> UserError:
  """Returns the error for a file that cannot be written."""
  return UserError(
    f"cannot be written: {error}",
    file=str(path),
    fix="make room on the disk, and run the same command again; finished work"
    " is kept",
    code="cannot_write",
  )


class Shards:
  """The rows of several shards, one shard after another.

  Attributes:
    count: number of rows.
  """

  def __init__(self, directory: pathlib.Path, shards: Sequence[Shard]):
    self._directory, self._shards = directory, shards
    # Row r is in the shard i with ends[i - 1] <= r < ends[i].
    self._ends = np.cumsum([0, *(shard.rows for shard in shards)])[1:]
    self.count = int(self._ends[-1]) if len(shards) else 0
    self._readers: collections.OrderedDict[
      int, grain.sources.ArrayRecordDataSource
    ] = collections.OrderedDict()

  def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shard of each row [n], and its index in the shard [n]."""
    shards = np.searchsorted(self._ends, indices, side="right")
    starts = self._ends - [shard.rows for shard in self._shards]
    return shards, indices - starts[shards]

  def path(self, shard: int) -> pathlib.Path:
    """Returns the file of a shard."""
    return self._directory / self._shards[shard].file

  def read(self, shard: int, record: int) -> bytes:
    """Reads a record of a shard.

    Raises:
      UserError: `damaged_shard`.
    """
    try:
      return self._reader(shard)[record]
    except (RuntimeError, ValueError, OSError) as error:
      problem = " ".join(str(error).split(";")[0].split())
      raise manifest_lib.damaged_shard(
        self.path(shard), f"cannot be read: {problem}"
      ) from error

  def _reader(self, shard: int) -> grain.sources.ArrayRecordDataSource:
    """Returns the reader of a shard, among the last ones that were used."""
    readers = self._readers
    if shard in readers:
      readers.move_to_end(shard)
      return readers[shard]
    if len(readers) >= _MAX_OPEN:
      _, oldest = readers.popitem(last=False)
      oldest.__exit__(None, None, None)
    path = str(self.path(shard))
    readers[shard] = grain.sources.ArrayRecordDataSource([path])
    return readers[shard]
