"""Rankings by index: encoded in memory, or read from files when used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from instructgpt_jax.data.encoding import EncodedRanking
from instructgpt_jax.data.prepared.records import PreparedRecords


class RankingSource(Protocol):
  """N encoded rankings that are taken by index."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> EncodedRanking: ...

  @property
  def token_counts(self) -> np.ndarray:
    """The tokens of each ranking's prompt and K completions, [N, 1 + K].

    K is the most completions of any ranking. A ranking with fewer has -1.
    """
    ...


class ListedRankings:
  """Rankings in memory."""

  def __init__(self, rankings: Sequence[EncodedRanking]):
    self._rankings = rankings
    most = max((len(r.completions) for r in rankings), default=0)
    self.token_counts = np.full((len(rankings), 1 + most), -1, np.int64)
    for counts, ranking in zip(self.token_counts, rankings, strict=True):
      lengths = [len(c) for c in ranking.completions]
      counts[: 1 + len(lengths)] = [len(ranking.prompt), *lengths]

  def __len__(self) -> int:
    return len(self._rankings)

  def __getitem__(self, index: int) -> EncodedRanking:
    return self._rankings[index]


class PreparedRankings:
  """Some rankings of a prepared directory.

  Args:
    records: the rankings of a split.
    indices: those that are used, [N]; None for all.
  """

  def __init__(
    self, records: PreparedRecords, indices: np.ndarray | None = None
  ):
    self._records = records
    self._indices = np.arange(len(records)) if indices is None else indices
    counts = records.token_counts[self._indices]
    most = int((counts[:, 1:] >= 0).sum(axis=1).max(initial=0))
    self.token_counts = counts[:, : 1 + most]

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> EncodedRanking:
    return EncodedRanking(*self._records.tokens(int(self._indices[index])))


AnyRankings = Sequence[EncodedRanking] | RankingSource


def ranking_source(rankings: AnyRankings) -> RankingSource:
  """Returns rankings in memory as a source; a source stays as it is."""
  if isinstance(rankings, Sequence):
    return ListedRankings(rankings)
  return rankings


def num_completions(source: RankingSource) -> np.ndarray:
  """Returns the number of completions of each ranking, [N]."""
  return (source.token_counts[:, 1:] >= 0).sum(axis=1)


def row_lengths(source: RankingSource, rows: int) -> np.ndarray:
  """Returns the tokens of each ranking's rows, [N + 1, R].

  A ranking's completions are divided over R rows, each with the prompt. A row
  without completions has no prompt either. The last entry is 0 for padding,
  which has index -1.

  Args:
    source: the rankings.
    rows: R.
  """
  counts = source.token_counts
  table = np.zeros((len(counts) + 1, rows), np.int64)
  per_row = -(-num_completions(source) // rows)
  for j in range(counts.shape[1] - 1):
    rankings = np.flatnonzero(counts[:, 1 + j] >= 0)
    row, index = np.divmod(j, per_row[rankings])
    table[rankings, row] += counts[rankings, 1 + j]
    first = index == 0
    table[rankings[first], row[first]] += counts[rankings[first], 0]
  return table
