"""Reads prepared TFDS data sets, without TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.reading import containers, paths
from instructgpt_jax.errors import UserError

# name, name/config, name:1.0.0 or a directory; then train, train[:10%], a+b.
_TFDS_NAME = re.compile(r"(.+?):([A-Za-z_]\w*(?:\[[^\]]*\])?(?:\+.+)?)")


def read_values(spec: str) -> Iterator[tuple[int, Any]]:
  """Yields (index, record) of a prepared TFDS data set."""
  named = _TFDS_NAME.fullmatch(spec[len(paths.TFDS) :])
  if named is None:
    raise UserError(
      "the split is missing",
      file=spec,
      fix="write tfds:name/config:split, for example tfds:mine:train",
      code="missing_split",
    )
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise UserError(
      "TFDS is not installed",
      file=spec,
      fix="pip install tensorflow-datasets array-record",
      code="missing_package",
    ) from e
  name, split = named.groups()
  source: Any
  try:
    if os.path.isdir(os.path.expanduser(name)):
      builder: Any = tfds.builder_from_directory(os.path.expanduser(name))
      source = builder.as_data_source(split=split)
    else:
      source = tfds.data_source(
        name,
        split=split,
        data_dir=os.environ.get("TFDS_DATA_DIR"),
        download=False,
      )
    count = len(source)
  except Exception as e:
    what = " ".join(str(e).split())[:160] or type(e).__name__
    raise UserError(
      f"TFDS cannot open it ({what})",
      file=spec,
      fix="prepare it with file_format='array_record', and set"
      " TFDS_DATA_DIR or give its directory as the name",
      code="unreadable",
    ) from e
  if not count:
    raise UserError(
      "is empty",
      file=spec,
      line=1,
      fix="choose a split with records",
      code="no_records",
    )
  return (
    (i, containers.with_messages(_to_json(source[i]))) for i in range(count)
  )


def _to_json(value: Any) -> Any:
  """Converts TFDS's bytes, NumPy scalars and arrays to JSON values."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value  # An image, or an error where a text is expected.
  if isinstance(value, dict):
    result = {k: _to_json(v) for k, v in value.items()}
    for field in ("messages", "conversations", "prompt", "completion",
                  "completions", "chosen", "rejected", "history"):  # fmt: skip
      columns = result.get(field)
      if isinstance(columns, dict):
        # A sequence of objects comes as an object of sequences.
        result[field] = [
          dict(zip(columns, row, strict=True))
          for row in zip(*columns.values(), strict=True)
        ]
    return result
  if isinstance(value, list | tuple):
    return [_to_json(v) for v in value]
  if hasattr(value, "tolist"):
    return _to_json(value.tolist())
  return value
