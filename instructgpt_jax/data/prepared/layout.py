"""File names of a directory of prepared data; see `manifest`."""

from __future__ import annotations

import os
import pathlib

MANIFEST = "prepared.json"  # written last: the directory is complete
PLAN = "prepared_plan.json"  # written first
UNITS = "units"  # one result for each finished unit of work
ROWS = "rows"  # shards of documents
RECORDS = "records"  # shards of other records, and tables of their lengths
TOKENIZER = "tokenizer"


def is_prepared(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is a directory of prepared data, finished or not."""
  if not path:
    return False
  directory = pathlib.Path(path).expanduser()
  return any((directory / name).is_file() for name in (MANIFEST, PLAN))


def shard_name(unit: int, length: int, split: str) -> str:
  """Returns the path of a shard in its directory."""
  return f"{ROWS}/{length}-{split}-{unit:05d}.array_record"


def records_name(source: str, split: str, number: int) -> str:
  """Returns the path of a shard of records in its directory."""
  return f"{RECORDS}/{source}-{split}-{number:05d}.array_record"


def table_name(source: str, split: str) -> str:
  """Returns the path of the table of a split's records in its directory."""
  return f"{RECORDS}/{source}-{split}.npy"
