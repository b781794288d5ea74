"""Reads prepared TFDS data sets, without TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from instructgpt_jax.data.reading import containers, python_values, specs
from instructgpt_jax.errors import UserError

# name, name/config, name:1.0.0 or a directory; then train, train[:10%], a+b.
_TFDS_NAME = re.compile(r"(.+?):([A-Za-z_]\w*(?:\[[^\]]*\])?(?:\+.+)?)")


def read_values(spec: str) -> Iterator[tuple[int, Any]]:
  """Yields (index, record) of a prepared TFDS data set."""
  named = _TFDS_NAME.fullmatch(spec[len(specs.TFDS) :])
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
    (i, containers.with_messages(python_values.as_json(source[i])))
    for i in range(count)
  )
