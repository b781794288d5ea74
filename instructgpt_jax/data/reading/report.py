"""Reports what reading a source used, skipped and ignored."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from instructgpt_jax.data.reading import paths


@dataclasses.dataclass(frozen=True)
class FileReport:
  """Counts of one file.

  Attributes:
    path: the file.
    format: the format it was recognised as.
    records: number of records that are used.
    skipped: number of skipped records for each reason.
    unused: number of records that have each field that nothing reads.
    notes: number of records that each other remark applies to.
    first_skips: line of the first value that is skipped for each reason.
  """

  path: str
  format: str
  records: int
  skipped: dict[str, int]
  unused: dict[str, int] = dataclasses.field(default_factory=dict)
  notes: dict[str, int] = dataclasses.field(default_factory=dict)
  first_skips: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
  """Counts of the files of one source, and the files that are ignored."""

  files: tuple[FileReport, ...]
  ignored: tuple[paths.Ignored, ...] = ()

  @property
  def records(self) -> int:
    return sum(f.records for f in self.files)

  @property
  def skipped(self) -> dict[str, int]:
    return self._total("skipped")

  @property
  def unused(self) -> dict[str, int]:
    return self._total("unused")

  @property
  def notes(self) -> dict[str, int]:
    return self._total("notes")

  def _total(self, counts: str) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for f in self.files:
      total.update(getattr(f, counts))
    return dict(total)

  @property
  def first_skips(self) -> dict[str, str]:
    """Returns reason -> file and line of the first value skipped for it."""
    first: dict[str, str] = {}
    for f in self.files:
      for reason, line in f.first_skips.items():
        first.setdefault(reason, f"{f.path}:{line}")
    return first

  def __str__(self) -> str:
    lines = []
    for f in self.files:
      notes = "".join(f"; skipped {n} {why}" for why, n in f.skipped.items())
      notes += "".join(f"; {line}" for line in remarks(f.unused, f.notes))
      lines.append(f"{f.path}: {f.format}, {f.records} records{notes}")
    return "\n".join([*lines, *paths.show_ignored(self.ignored)])


def remarks(unused: Mapping[str, int], notes: Mapping[str, int]) -> list[str]:
  """Returns the counts of unused fields and of other remarks as phrases."""
  lines = [f"{n} {what}" for what, n in sorted(notes.items())]
  if unused:
    most = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({n} records)" for name, n in most[:12])
    more = f" and {len(most) - 12} more" if len(most) > 12 else ""
    lines.append(f"unused fields: {shown}{more}")
  return lines
