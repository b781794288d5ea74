"""Describes data files, and what stages make of them, as lines of text."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax.data import (
  curation,
  encoding,
  reading,
  records,
  tokenizers,
)
from instructgpt_jax.data.curation import drops, splits
from instructgpt_jax.data.inspection import (
  File,
  Settings,
  WordTokenizer,
  members,
)
from instructgpt_jax.errors import UserError

_FLAGS_OF = {
  records.Demonstration: "data.demonstrations",
  records.Ranking: "data.comparisons",
  records.Prompt: "data.prompts",
  records.Document: "data.pretraining",
}
_SHOWN_CHARS = 240


def describe(file: File, settings: Settings) -> list[str]:
  """Returns the report on one file, as lines."""
  report = file.report
  lines = [report.path, f"  recognised as: {report.format}"]
  for reason, n in report.skipped.items():
    lines.append(f"  skipped: {n} {reason}")
  lines += [
    f"  {line}" for line in reading.remarks(report.unused, report.notes)
  ]
  for kind, plural in reading.KIND_NAMES.items():
    if file.holds(kind):
      items, of_kind = file.kinds[kind]
      lines.append(f"  {plural}: {len(items)}")
      by_name = of_kind.notes.keys() - report.notes.keys()
      lines += [f"    {of_kind.notes[note]} {note}" for note in sorted(by_name)]
      lines += _describe_lengths(items, settings)
      lines += _describe_curation(
        items, of_kind.skipped, settings, alone=not by_name
      )
      lines += _describe_example(items[0], settings)
  return lines


def _describe_counts(texts: Sequence[str], settings: Settings) -> str:
  x = np.array([len(i) for i in settings.tokenizer.encode_batch(texts)])
  return (
    f"{settings.unit}: mean {x.mean():.1f}, deviation {x.std():.1f}, median"
    f" {np.median(x):.0f}, max {x.max()}"
  )


def _describe_lengths(items: Sequence[Any], settings: Settings) -> list[str]:
  """Describes the lengths of records of one kind."""
  if isinstance(items[0], records.Document):
    return ["    " + _describe_counts([r.text for r in items], settings)]
  prompts = [records.prompt_text(r.turns, settings.data) for r in items]
  lines = ["    prompt " + _describe_counts(prompts, settings)]
  if isinstance(items[0], records.Ranking):
    sizes = collections.Counter(len(r.ranks) for r in items)
    counts = ", ".join(f"{n} of K={k}" for k, n in sorted(sizes.items()))
    lines.append(f"    completions a prompt: {counts}")
  replies = [c for r in items for c in records.replies(r)]
  if replies:
    lines.append("    completion " + _describe_counts(replies, settings))
  return lines


def describe_together(files: Sequence[File], settings: Settings) -> list[str]:
  """Returns what curation makes of the records of several files, as lines."""
  lines = []
  for kind, plural in reading.KIND_NAMES.items():
    parts = [file.kinds[kind] for file in members(files, kind)]
    if len(parts) > 1:
      items = [r for part in parts for r in part.records]
      report = reading.Report(tuple(part.report for part in parts))
      lines.append(f"{plural} of {len(parts)} files together: {len(items)}")
      lines += _describe_curation(items, report.skipped, settings)
  return lines


# What a stage would do with it.


def _describe_curation(
  items: Sequence[Any],
  skipped: Mapping[str, int],
  settings: Settings,
  *,
  alone: bool = True,
) -> list[str]:
  """Describes what curation drops, with warnings, a refusal, and splits.

  Args:
    items: records of one kind.
    skipped: reason -> number of values that a stage of the kind skips.
    settings: limits, tags and shares.
    alone: whether the records need a training record among them.
  """
  data, field = settings.data, _FLAGS_OF[type(items[0])]
  if isinstance(items[0], records.Document):
    parts, dropped = splits.split_documents(items, data), drops.Drops()
  else:
    parts, dropped = curation.curate(items, data, settings.tokenizer)
  lines = [f"    curation drops: {n} {reason}" for reason, n in dropped.items()]
  lines = lines or ["    curation drops: nothing"]
  if dropped.cut:
    lines.append(
      f"    curation cuts: {dropped.cut} of {dropped.replies} replies at"
      f" {data.max_response_tokens} {settings.unit}"
    )
  if dropped.templates:
    lines.append(
      f"    {dropped.templates} prompts with a shared beginning are compared"
      " from where they differ"
    )
  total = len(items) + sum(skipped.values())
  causes = drops.causes(dropped, skipped, {})
  lines += ["    " + w for w in drops.warnings(field, dropped, causes, total)]
  try:
    drops.judge(field, causes, total, data)
    if alone:
      curation.require(parts, dropped, field, skipped)
  except UserError as error:
    lines.append(f"    a stage refuses it: {error}".replace("\n", "\n    "))
  counts = ", ".join(f"{len(v)} {k}" for k, v in parts.items())
  return [*lines, f"    splits: {counts}"]


# One record as the model sees it.


def _describe_example(record: Any, settings: Settings) -> list[str]:
  """Describes a record's text and tokens, and where loss and cut are."""
  data, tokenizer = settings.data, settings.tokenizer
  lines = [f"    as the model sees {record.origin}:"]
  if isinstance(record, records.Document):
    ids = encoding.encode_documents([record.text], tokenizer)[0]
    text = _decode(tokenizer, ids, record.text)
    return [*lines, f"      {_with_unit(len(ids) + 1, settings)}: {text}<end>"]
  prompt = encoding.encode_prompts([record.turns], tokenizer, data)[0]
  text = records.prompt_text(record.turns, data)
  over = " (too long: dropped)" * (len(prompt) > data.max_prompt_tokens)
  lines.append(
    f"      prompt, {_with_unit(len(prompt), settings)}{over}:"
    f" {_decode(tokenizer, prompt, text)}"
  )
  if isinstance(record, records.Prompt):
    return [*lines, "      a reply is sampled from here"]
  if isinstance(record, records.Demonstration):
    lines.append(f"      loss starts here, after {len(prompt)} {settings.unit}")
  return lines + [
    _describe_reply(record, c, settings) for c in _labeled_replies(record)
  ]


def _labeled_replies(record: Any) -> list[tuple[str, str]]:
  """Returns (label, reply) of each reply of a record, the best first."""
  if isinstance(record, records.Demonstration):
    return [("reply", record.completion)]
  pairs = sorted(zip(record.ranks, record.completions, strict=True))
  return [(f"rank {rank}", completion) for rank, completion in pairs]


def _describe_reply(
  record: Any, reply: tuple[str, str], settings: Settings
) -> str:
  data, tokenizer = settings.data, settings.tokenizer
  label, completion = reply
  whole = encoding.encode_untruncated([completion], tokenizer, data)[0]
  ids = whole[: data.max_response_tokens]
  cut = len(ids) < len(whole)
  # The end-of-text token is shown by its name.
  body = ids if cut else ids[:-1]
  text = _decode(tokenizer, body, records.completion_text(completion))
  if cut and isinstance(tokenizer, WordTokenizer):
    text = _shorten(" ".join(completion.split()[: len(body)]))
  end = (
    f"<cut, {len(whole) - len(ids)} {settings.unit} more, no end-of-text>"
    if cut
    else "<end-of-text>"
  )
  return f"      {label}, {_with_unit(len(ids), settings)}: {text}{end}"


def _with_unit(n: int, settings: Settings) -> str:
  return f"{n} {settings.unit}"


def _decode(tokenizer: tokenizers.Tokenizer, ids: Any, text: str) -> str:
  """Decodes tokens; returns the text itself where words are counted."""
  if not isinstance(tokenizer, WordTokenizer):
    text = tokenizer.decode(ids)
  return _shorten(text)


def _shorten(text: str) -> str:
  text = text.replace("\n", "\\n")
  if len(text) > _SHOWN_CHARS:
    half = _SHOWN_CHARS // 2
    text = f"{text[:half]} … {text[-half:]}"
  return text
