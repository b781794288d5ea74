"""Sources of several weighted parts: their records, shares and figures.

`--data.demonstrations=a.jsonl:0.7,b.parquet:0.3` is one source of two parts. A
source without weights, or of one part, is a single group of records, and is
read as if there were no parts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import packing, reading
from instructgpt_jax.data.batch_source import (
  BatchSpec,
  SourceMix,
  record_indices,
)
from instructgpt_jax.data.records import Record
from instructgpt_jax.data.row_source import AnyRows
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line

FIGURES = "sources.json"
_R = TypeVar("_R", bound=Record)


class Mixed(NamedTuple):
  """Rows of all parts, one part after another, and the parts' shares."""

  rows: AnyRows
  mix: SourceMix | None


class MixedSource(NamedTuple):
  """A source of a run.

  Attributes:
    field: its flag, such as "data.prompts".
    parts: its parts, if there are several with weights.
  """

  field: str
  parts: Sequence[reading.WeightedSource]

  def group(self, records: Sequence[_R]) -> list[list[_R]]:
    """Groups training records by their part; without parts, into one group.

    Raises:
      UserError: `empty_source`, a part has no record.
    """
    groups = self.by_part(records)
    if self.parts:
      self._require(list(map(len, groups)))
    return groups

  def by_part(self, records: Sequence[_R]) -> list[list[_R]]:
    """Groups records by their part, also where a part has none."""
    if not self.parts:
      return [list(records)]
    groups: list[list[_R]] = [[] for _ in self.parts]
    part_of = {file: i for i, p in enumerate(self.parts) for file in p.files}
    for record in records:
      groups[part_of[record.origin.rpartition(":")[0]]].append(record)
    return groups

  def _require(self, counts: Sequence[int]) -> None:
    for part, count in zip(self.parts, counts, strict=True):
      if not count:
        raise UserError(
          f"has the weight {part.weight:g}, but no training record is left",
          file=part.name,
          field=self.field,
          fix="give it records for training, or leave it out",
          code="empty_source",
        )

  def mix(self, counts: Sequence[int]) -> SourceMix | None:
    """Returns the shares of groups of `counts` records, if there are parts."""
    if not self.parts:
      return None
    self._require(counts)
    return SourceMix(tuple(counts), tuple(part.weight for part in self.parts))

  def pack(
    self,
    records: Sequence[_R],
    pack: Callable[[Sequence[_R]], packing.Rows],
  ) -> Mixed:
    """Packs each part's records into rows of their own."""
    groups = [pack(group) for group in self.group(records)]
    if not self.parts:
      return Mixed(groups[0], None)
    rows = {k: np.concatenate([r[k] for r in groups]) for k in groups[0]}
    return Mixed(rows, self.mix([len(r["tokens"]) for r in groups]))

  def pack_validation(
    self,
    records: Sequence[_R],
    pack: Callable[[Sequence[_R]], packing.Rows],
  ) -> dict[str, packing.Rows]:
    """Packs validation records.

    Returns:
      Name of each part that has records → its rows; without parts, "" → all
      rows.
    """
    if not self.parts:
      return {"": pack(records)}
    groups = zip(self._names(), self.by_part(records), strict=True)
    return {name: pack(group) for name, group in groups if group}

  def _names(self) -> list[str]:
    """Returns the parts' file names, or whole names where these repeat."""
    names = [pathlib.PurePath(part.name).name for part in self.parts]
    if len(set(names)) == len(names):
      return names
    return [part.name for part in self.parts]


def open_source(data: configs.Data, field: str) -> MixedSource:
  """Returns the parts of a source, such as "data.prompts"."""
  spec = getattr(data, field.removeprefix("data."))
  parts = reading.weighted_sources(spec) if spec else []
  return MixedSource(field, parts if len(parts) > 1 else ())


def count_records(rows: AnyRows, mix: SourceMix | None, count: int) -> float:
  """Counts the records of an epoch, on average.

  Args:
    rows: the rows of all parts.
    mix: shares of the parts, if there are any.
    count: number of records in the rows; the answer without shares.
  """
  if mix is None:
    return count
  assert isinstance(rows, Mapping)
  per_row = np.bincount(mix.source_of, rows["segments"].max(axis=1))
  means = per_row / np.asarray(mix.counts)
  return float(len(rows["tokens"]) * (mix.shares @ means))


class Use(NamedTuple):
  """How much of a source a run uses.

  Attributes:
    source: the source.
    mix: shares of its parts; None where it has none.
    unit: plural of what the shares count, such as "rows".
    total: how many of them the run uses.
    amounts: name -> amount of each of them, such as its tokens.
    stream: that of its `record_indices`.
  """

  source: MixedSource
  mix: SourceMix | None
  unit: str
  total: int
  amounts: Mapping[str, np.ndarray]
  stream: int = 0


def use_of_rows(
  source: MixedSource,
  rows: AnyRows,
  mix: SourceMix | None,
  total: int,
  stream: int = 0,
) -> Use:
  """Returns the use of a source of rows.

  Args:
    source: the source.
    rows: the rows of all parts.
    mix: shares of the parts, if there are any.
    total: number of rows that the run uses.
    stream: that of their `record_indices`.
  """
  amounts = {}
  if mix is not None:
    assert isinstance(rows, Mapping)
    amounts = {
      "records": rows["segments"].max(axis=1),
      "tokens": (rows["segments"] > 0).sum(axis=1),
      "loss_tokens": rows["weights"][:, 1:].sum(axis=1, dtype=np.float64),
    }
  return Use(source, mix, "rows", total, amounts, stream)


def report_use(directory: str, spec: BatchSpec, *uses: Use) -> None:
  """Logs how much of each part a run uses, and writes `sources.json`.

  Args:
    directory: workdir of the run.
    spec: seed and order of the records.
    *uses: the run's sources; those without weights are left out.
  """
  figures = {
    use.source.field: _figures(use, spec) for use in uses if use.mix is not None
  }
  for use in uses:
    for figure in figures.get(use.source.field, ()):
      log_line(f"{use.source.field}: {_describe(use.unit, figure)}")
  if figures:
    files.write_json_atomic(pathlib.Path(directory) / FIGURES, figures)


def read_figures(
  directories: Mapping[str, pathlib.Path],
) -> dict[str, dict[str, Any]]:
  """Returns stage -> figures, of the stages that have weighted sources.

  Args:
    directories: stage -> its workdir.
  """
  return {
    stage: files.read_json(directory / FIGURES)
    for stage, directory in directories.items()
    if (directory / FIGURES).is_file()
  }


def _figures(use: Use, spec: BatchSpec) -> list[dict[str, Any]]:
  """Computes what a run uses of each part."""
  assert use.mix is not None
  count = sum(use.mix.counts)
  indices = record_indices(count, spec, mix=use.mix, stream=use.stream)
  uses = indices.use_counts(use.total)
  amounts = {use.unit: np.ones(count), **use.amounts}
  source_of = use.mix.source_of
  used = {
    name: np.bincount(source_of, uses * amount)
    for name, amount in amounts.items()
  }
  figures = []
  for i, part in enumerate(use.source.parts):
    figure: dict[str, Any] = {"source": part.name, "weight": part.weight}
    for name, amount in amounts.items():
      figure[name] = round(amount[source_of == i].sum())
      figure[f"used_{name}"] = round(used[name][i])
      figure[f"{name}_share"] = float(used[name][i] / max(used[name].sum(), 1))
    figure["passes"] = figure[f"used_{use.unit}"] / figure[use.unit]
    figures.append(figure)
  return figures


def _describe(unit: str, figure: Mapping[str, Any]) -> str:
  """Describes one part on a line."""
  shares = [f"{figure[f'{unit}_share']:.1%} of the {unit}"]
  if "loss_tokens_share" in figure:
    shares.append(
      f"{figure['loss_tokens_share']:.1%} of the tokens that carry loss"
    )
  elif "tokens_share" in figure:
    shares.append(f"{figure['tokens_share']:.1%} of the tokens")
  return (
    f"{figure['source']} (weight {figure['weight']:g}): {', '.join(shares)};"
    f" {figure['passes']:.3g} passes over {figure[unit]:,.0f} {unit}"
  )
