"""Rows by index: packed in memory, or read from files when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from instructgpt_jax.data import packing


class RowSource(Protocol):
  """Rows of `length` tokens that are taken by index."""

  @property
  def count(self) -> int:
    """Number of rows."""
    ...

  @property
  def length(self) -> int:
    """Tokens of a row."""
    ...

  def take(self, indices: np.ndarray) -> packing.Rows:
    """Returns the rows at indices [n], each in [0, count)."""
    ...

  def loss_tokens(self, indices: np.ndarray) -> np.ndarray:
    """Returns how many tokens of each row carry loss, [n] float64.

    A source that is read from files returns the mean of its rows for each.
    """
    ...


class ArrayRows:
  """Rows in memory."""

  def __init__(self, rows: Mapping[str, np.ndarray]):
    self._rows = {name: np.asarray(value) for name, value in rows.items()}

  @property
  def count(self) -> int:
    """Number of rows."""
    return len(self._rows["tokens"])

  @property
  def length(self) -> int:
    """Tokens of a row."""
    return self._rows["tokens"].shape[1]

  def take(self, indices: np.ndarray) -> packing.Rows:
    """Returns the rows at indices."""
    return {name: value[indices] for name, value in self._rows.items()}

  def loss_tokens(self, indices: np.ndarray) -> np.ndarray:
    """Returns how many tokens of each row carry loss; the first never does."""
    tokens = self._rows["weights"][:, 1:].sum(axis=1, dtype=np.float64)
    return tokens[indices]


AnyRows = Mapping[str, np.ndarray] | RowSource


def row_source(rows: AnyRows) -> RowSource:
  """Returns rows in memory as a source; a source stays as it is."""
  return ArrayRows(rows) if isinstance(rows, Mapping) else rows


def take_padded(
  source: RowSource, indices: np.ndarray, pad_id: int
) -> packing.Rows:
  """Returns the rows at indices; index -1 is a row of padding."""
  real = indices >= 0
  if real.all():
    return source.take(indices)
  rows = packing.empty_rows(len(indices), source.length, pad_id)
  if real.any():
    for name, value in source.take(indices[real]).items():
      rows[name][real] = value
  return rows
