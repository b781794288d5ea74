"""Says in a line what was read, kept, dropped and cut of a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.data.curation.drops import (
  CUT_COMPLETIONS,
  Cause,
  Drops,
)
from instructgpt_jax.data.reading.report import Report

_NAMED_FILES = 3  # more files are counted instead of named


def source_line(
  name: str,
  total: int,
  parts: Mapping[str, Sequence[Any]],
  drops: Drops,
  causes: Sequence[Cause],
  data: configs.Data,
  unit: str = "tokens",
) -> str:
  """Returns the counts of one source, such as

  rankings.jsonl [data.comparisons]: 1,000 read, 962 kept (770 train, 96 valid,
  96 test), 38 dropped (30 rankings with only ties, 8 duplicate records), 12 of
  2,000 responses cut at 48 tokens

  Args:
    name: name of the source.
    total: number of records before anything was dropped or skipped.
    parts: split → records that stay.
    drops: what curation has dropped and cut.
    causes: all causes for which records are dropped, the largest first.
    data: the run's data section.
    unit: plural of what the limit of a response counts.
  """
  counts = {split: len(records) for split, records in parts.items()}
  dropped = sum(cause.count for cause in causes)
  remaining = total - dropped
  used = sum(counts.values())
  splits = [f"{n:,} {split}" for split, n in counts.items() if n]
  if not counts["valid"]:
    splits.append("no validation records")
  # A long document is kept as several parts.
  phrases = [
    f"{total:,} read",
    f"{remaining:,} kept"
    + (f" as {used:,} parts" if used != remaining else "")
    + f" ({', '.join(splits)})",
  ]
  if dropped:
    why = ", ".join(f"{cause.count:,} {cause.name}" for cause in causes)
    phrases.append(f"{dropped:,} dropped ({why})")
  if drops.cut:
    phrases.append(
      f"{drops.cut:,} of {drops.replies:,} responses cut at"
      f" {data.max_response_tokens:,} {unit}"
    )
  if drops[CUT_COMPLETIONS]:
    phrases.append(f"{drops[CUT_COMPLETIONS]:,} {CUT_COMPLETIONS} dropped")
  return f"{name}: {', '.join(phrases)}"


def source_name(spec: str, field: str, report: Report) -> str:
  """Returns the files' names, or the source and their number, with the flag."""
  names = [os.path.basename(file.path) or file.path for file in report.files]
  files = ", ".join(names)
  if len(names) > _NAMED_FILES:
    files = f"{spec} ({len(names):,} files)"
  return f"{files} [{field}]"
