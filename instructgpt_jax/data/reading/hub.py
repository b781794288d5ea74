"""Reads datasets of the Hugging Face hub through the `datasets` library.

A name is `hf:org/name`, `hf:org/name:split` or `hf:org/name/config:split`; a
local directory may replace `org/name`. Code of a dataset is never run: version
4 of the library, which this module needs, cannot do so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from instructgpt_jax.data.reading import specs, tables
from instructgpt_jax.errors import UserError

_MIN_VERSION = 4
_BATCH = 1024  # rows that are converted at a time


class _Name(NamedTuple):
  name: str  # of a dataset on the hub, or a directory
  config: str
  split: str  # "" for all


def split_names(spec: str) -> list[str]:
  """Returns a name for each split of a dataset, or for the one that it names.

  Raises:
    UserError: the library is missing, or cannot load the dataset.
  """
  if _parse(spec).split:
    return [spec]
  loaded = _load(spec)
  return [f"{spec}:{split}" for split in loaded] if _is_dict(loaded) else [spec]


def read_values(spec: str) -> Iterator[tuple[int, Any]]:
  """Yields (row, record) of a split, counted from 1.

  Raises:
    UserError: the library is missing, or cannot load the dataset.
  """
  dataset = _load(spec)
  row = 0
  for table in dataset.with_format("arrow").iter(_BATCH):
    for value in tables.records_of(table, spec):
      row += 1
      yield row, value


def _parse(spec: str) -> _Name:
  text = spec.removeprefix(specs.HUB)
  path = os.path.expanduser(text)
  if os.path.isdir(path):
    return _Name(path, "", "")
  name, _, split = text.rpartition(":")
  if not name:
    name, split = text, ""
  path = os.path.expanduser(name)
  if os.path.isdir(path):
    return _Name(path, "", split)
  if not name or name.startswith((".", "/", "~")) or ":" in name:
    raise UserError(
      "is no name of a dataset, and no directory",
      file=spec,
      fix="write hf:org/name, hf:org/name:split or hf:org/name/config:split",
      code="bad_hub_name",
    )
  owner, *rest = name.split("/", 2)
  if len(rest) == 2:
    return _Name(f"{owner}/{rest[0]}", rest[1], split)
  return _Name(name, "", split)


def _is_dict(loaded: Any) -> bool:
  return isinstance(loaded, dict)


def _library(spec: str) -> Any:
  try:
    import datasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      "needs the datasets library",
      file=spec,
      fix=f"pip install 'datasets>={_MIN_VERSION}' (the extra hub-data), or"
      " give a file or directory",
      code="missing_library",
    ) from error
  if int(datasets.__version__.split(".")[0]) < _MIN_VERSION:
    raise UserError(
      f"datasets {datasets.__version__} may run code of a dataset",
      file=spec,
      fix=f"pip install 'datasets>={_MIN_VERSION}'",
      code="old_library",
    )
  return datasets


@functools.cache
def _load(spec: str) -> Any:
  """Loads a dataset: a dictionary of splits where the name has no split."""
  name, config, split = _parse(spec)
  datasets = _library(spec)
  try:
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
      loaded = datasets.load_from_disk(name)
      return loaded[split] if split else loaded
    if os.path.isfile(os.path.join(name, "state.json")):
      return datasets.load_from_disk(name)
    return datasets.load_dataset(name, config or None, split=split or None)
  except Exception as error:  # of the library, the network or the data
    what = " ".join(str(error).split())[:160] or type(error).__name__
    raise UserError(
      f"cannot be loaded ({what})",
      file=spec,
      fix="check the name, its split and the network; or give a directory of"
      " its Parquet files",
      code="hub_error",
    ) from error
