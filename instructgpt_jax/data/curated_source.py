"""Reads and curates a source of a run, and says what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import curation, reading
from instructgpt_jax.data.curation import drops, summary
from instructgpt_jax.data.reading import paths
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError


class Kind(NamedTuple):
  """A kind of source: how it is read, and what it holds."""

  read: Callable[[str], tuple[list[Any], reading.Report]]
  what: str


# Sources whose records are curated together, so that no held-out prompt of one
# is in another.
KINDS: Mapping[str, Kind] = {
  "demonstrations": Kind(reading.read_demonstrations, "demonstrations"),
  "comparisons": Kind(reading.read_rankings, "ranked completions"),
  "prompts": Kind(reading.read_prompts, "prompts"),
}
DOCUMENTS = Kind(reading.read_documents, "documents")


class Source(NamedTuple):
  """The records of one source, and what reading them reports."""

  field: str  # its flag
  spec: str  # the flag's value
  records: list[Any]
  report: reading.Report

  @property
  def total(self) -> int:
    """Number of records before anything was dropped or skipped."""
    return len(self.records) + sum(self.report.skipped.values())

  def causes(self, dropped: drops.Drops) -> list[drops.Cause]:
    """All causes for which records are not used, the largest first."""
    report = self.report
    return drops.causes(dropped, report.skipped, report.first_skips)


class Curated(NamedTuple):
  """The records of one source that are used.

  Attributes:
    parts: split → records.
    lines: counts, notes and warnings, for the log.
  """

  parts: dict[str, list[Any]]
  lines: list[str]


def read(field: str, data: configs.Data, kind: Kind) -> Source:
  """Reads the records of a source.

  Args:
    field: its flag, such as "data.prompts".
    data: the run's data section.
    kind: what it holds.

  Raises:
    UserError: `missing_source`, the flag is not set; and errors of reading.
  """
  spec = getattr(data, field.removeprefix("data."))
  if not spec:
    raise UserError(
      f"{kind.what} are needed here",
      field=field,
      fix=f"give --{field}=PATH (a file, a directory or a quoted glob)",
      code="missing_source",
    )
  return Source(field, spec, *kind.read(spec))


def curate(
  source: Source,
  others: Iterable[Sequence[Any]],
  data: configs.Data,
  tokenizer: Tokenizer | None,
) -> Curated:
  """Curates a source; splits are decided over all sources of the run.

  Args:
    source: the source.
    others: records of the run's other sources.
    data: the run's data section.
    tokenizer: counts tokens; without one, no limit in tokens is applied.

  Raises:
    UserError: it loses too many records.
  """
  parts, dropped = curation.curate(source.records, data, tokenizer, others)
  return accept(source, parts, dropped, data)


def accept(
  source: Source,
  parts: dict[str, list[Any]],
  dropped: drops.Drops,
  data: configs.Data,
) -> Curated:
  """Refuses a source that loses too many records, and describes it."""
  drops.judge(source.field, source.causes(dropped), source.total, data)
  curation.require(parts, dropped, source.field, source.report.skipped)
  return Curated(parts, _describe(source, dropped, parts, data))


def _describe(
  source: Source,
  dropped: drops.Drops,
  parts: dict[str, list[Any]],
  data: configs.Data,
) -> list[str]:
  """Returns one line of counts for a source, then notes and warnings."""
  field, report = source.field, source.report
  name = summary.source_name(source.spec, field, report)
  causes = source.causes(dropped)
  lines = [
    summary.source_line(name, source.total, parts, dropped, causes, data)
  ]
  notes = reading.remarks(report.unused, report.notes)
  notes += paths.show_ignored(report.ignored)
  if dropped.templates:
    notes.append(
      f"{dropped.templates:,} prompts with a shared beginning are compared"
      " from where they differ"
    )
  lines += [f"note: {field}: {note}" for note in notes]
  return lines + drops.warnings(field, dropped, causes, source.total)
