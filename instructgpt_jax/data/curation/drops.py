"""Counts what curation drops, and judges whether it is too much.

A cause that drops more than a tenth of a source is a warning. Dropping more
than `data.max_dropped` of a source is an error, unless the user has set the
flag of the largest cause.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
)
from instructgpt_jax.errors import UserError

DUPLICATE = "duplicate records"
REPEATED = "repeated prompts"
PREFIX = "prompts with the prefix of another"
USER_LIMIT = "prompts over the limit of a user"
LONG = "prompts over the token limit"
HELD_OUT = "records whose prompt is held out elsewhere"
CUT_EQUAL = "rankings whose completions the cut makes equal"
CUT_COMPLETIONS = "completions that the cut makes equal to another"
PERSONAL = "records with personal information"

WARN_SHARE = 0.1
_EXCERPT_CHARS = 60
_FLAGS = {
  PREFIX: "common_prefix_chars",
  USER_LIMIT: "max_prompts_per_user",
  LONG: "max_prompt_tokens",
  CUT_EQUAL: "max_response_tokens",
  PERSONAL: "filter_personal",
}
_FIXES = {
  REPEATED: "none is needed, one of each stays",
  PREFIX: "--data.common_prefix_chars=none compares whole prompts",
  USER_LIMIT: "raise --data.max_prompts_per_user",
  LONG: "raise --data.max_prompt_tokens",
  CUT_EQUAL: "raise --data.max_response_tokens",
  PERSONAL: "--data.filter_personal=false keeps them",
}
# A prompt that is repeated word for word is not lost: it is there once.
_HARMLESS = (REPEATED,)
# Completions of rankings that stay are no records.
_PARTS = (CUT_COMPLETIONS,)

Record = Prompt | Demonstration | Ranking | Document


class Drops(collections.Counter[str]):
  """Number of records (or completions) that each cause drops.

  Attributes:
    examples: cause -> the first record that it drops.
    replies: number of replies that were looked at.
    cut: number of those that are cut at `data.max_response_tokens`.
    cut_example: the first record with a reply that is cut.
    longest: tokens of the longest prompt.
    templates: number of prompts that begin with a template of the source.
    remarks: sentences about the source that the user has to see.
  """

  def __init__(self):
    super().__init__()
    self.examples: dict[str, Record] = {}
    self.replies = self.cut = self.longest = self.templates = 0
    self.cut_example: Record | None = None
    self.remarks: list[str] = []

  def drop(self, cause: str, record: Record, count: int = 1) -> None:
    """Counts a record, or several of its completions."""
    self[cause] += count
    self.examples.setdefault(cause, record)

  def add(self, other: Drops) -> None:
    """Adds the drops of a later step."""
    for cause, count in other.items():
      self.drop(cause, other.examples[cause], count)
    self.replies += other.replies
    self.cut += other.cut
    self.cut_example = self.cut_example or other.cut_example
    self.longest = max(self.longest, other.longest)
    self.templates += other.templates
    self.remarks += other.remarks

  @property
  def records(self) -> int:
    """Returns the number of records that are dropped."""
    return sum(n for cause, n in self.items() if cause not in _PARTS)


def excerpt(record: Record) -> str:
  """Returns the origin of a record and the beginning of its text."""
  text = record.text if isinstance(record, Document) else record.turns[-1].text
  text = " ".join(text.split())
  if len(text) > _EXCERPT_CHARS:
    text = text[:_EXCERPT_CHARS] + "…"
  return f'{record.origin} "{text}"'.strip()


class Cause(NamedTuple):
  """A cause for which records of a source are not used."""

  name: str
  count: int
  flag: str  # field of the data section that changes it, "" for none
  fix: str
  example: Record | None
  where: str  # file and line of the first one, where there is no record


def causes(
  drops: Drops, skipped: Mapping[str, int], first: Mapping[str, str]
) -> list[Cause]:
  """Returns all causes of one source, the largest first.

  Args:
    drops: what curation has dropped.
    skipped: reason -> number of values that reading has skipped.
    first: reason -> file and line of the first of them.
  """
  result = []
  names: dict[str, list[str]] = {}
  for name in drops:
    if name not in _PARTS:
      names.setdefault(name.partition(":")[0], []).append(name)
  for group, members in names.items():
    count = sum(drops[m] for m in members)
    kinds = ", ".join(m.partition(": ")[2] for m in members if ": " in m)
    result.append(
      Cause(
        name=f"{group} ({kinds})" if kinds else group,
        count=count,
        flag=_FLAGS.get(group, ""),
        fix=_fix(group, drops),
        example=drops.examples[members[0]],
        where="",
      )
    )
  for reason, count in skipped.items():
    result.append(
      Cause(reason, count, "", _fix("", drops), None, first.get(reason, ""))
    )
  return sorted(result, key=lambda cause: -cause.count)


def place_of(origin: str) -> tuple[str | None, int | None]:
  """Returns (file, line) of an origin."""
  file, _, line = origin.rpartition(":")
  if file and line.isdigit():
    return file, int(line)
  return origin or None, None


def _fix(group: str, drops: Drops) -> str:
  fix = _FIXES.get(group, "--data.max_dropped=1 goes on without them")
  if group == LONG and drops.longest:
    fix += f" (the longest prompt has {drops.longest} tokens)"
  return fix


def warnings(
  field: str, drops: Drops, causes: list[Cause], total: int
) -> list[str]:
  """Returns the warnings about one source, a line each.

  Args:
    field: the source's flag.
    drops: what curation has dropped.
    causes: all causes.
    total: number of records before anything was dropped or skipped.
  """
  lines = [f"warning: {field}: {remark}" for remark in drops.remarks]
  for cause in causes:
    if cause.count > WARN_SHARE * total:
      example = excerpt(cause.example) if cause.example else cause.where
      lines.append(
        f"warning: {field}: {_share(cause.count, total)} are not used:"
        f" {cause.name}"
        + (f"; for example {example}" if example else "")
        + f"; fix: {cause.fix}"
      )
  if drops.cut > WARN_SHARE * drops.replies:
    example = excerpt(drops.cut_example) if drops.cut_example else ""
    lines.append(
      f"warning: {field}: {_share(drops.cut, drops.replies)} replies are cut"
      " at data.max_response_tokens, and so have no end-of-text; for example"
      f" {example}; fix: raise --data.max_response_tokens"
    )
  return lines


def _share(count: int, total: int) -> str:
  return f"{count} of {total} ({count / total:.0%})"


def judge(
  field: str, causes: list[Cause], total: int, data: configs.Data
) -> None:
  """Refuses a source if most of its records are not used.

  Args:
    field: the source's flag.
    causes: all causes, the largest first.
    total: number of records before anything was dropped or skipped.
    data: has `max_dropped`, and the flags that the user has set.

  Raises:
    UserError: more than `max_dropped` of the source is dropped, and the user
      has not set the flag of the largest cause.
  """
  causes = [cause for cause in causes if cause.name not in _HARMLESS]
  count = sum(cause.count for cause in causes)
  if not causes or count <= data.max_dropped * total:
    return
  largest = causes[0]
  if largest.flag and data.is_explicit(largest.flag):
    return
  what = ", ".join(f"{c.count} {c.name}" for c in causes)
  file, line = place_of(
    largest.example.origin if largest.example else largest.where
  )
  fix = largest.fix
  if "max_dropped" not in fix and count < total:
    fix += f", or give --data.max_dropped={_enough(count, total)}"
  raise UserError(
    f"{_share(count, total)} records would not be used ({what})",
    file=file,
    line=line,
    field=field,
    fix=fix,
    code="most_dropped",
  )


def _enough(count: int, total: int) -> str:
  """Returns the smallest share in hundredths that allows `count` drops."""
  return f"{min(1.0, -(-100 * count // total) / 100):g}"
