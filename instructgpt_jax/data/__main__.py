"""Describes data files: python -m instructgpt_jax.data PATH... [--preset=tiny]

For each file it prints the format, the number of records of each kind, their
lengths, what was skipped, what curation would drop at the limits of a preset or
of flags, and one record as the model sees it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import configs, streams
from instructgpt_jax.configs import presets
from instructgpt_jax.data import (
  curation,
  encoding,
  formats,
  reading,
  records,
  tokenizers,
)
from instructgpt_jax.data.curation import drops, splits
from instructgpt_jax.data.reading import paths
from instructgpt_jax.errors import UserError

_SOURCES = ("demonstrations", "comparisons", "prompts", "pretraining")
_FLAGS_OF = {
  records.Demonstration: "data.demonstrations",
  records.Ranking: "data.comparisons",
  records.Prompt: "data.prompts",
  records.Document: "data.pretraining",
}
_SHOWN_CHARS = 240


class _Words(tokenizers.Tokenizer):
  """Counts words between blanks where no tokenizer is given."""

  def __init__(self):
    super().__init__(base_size=1, pad_id=-1, eos_id=-1)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [
      [zlib.crc32(w.encode()) >> 1 for w in re.findall(r"\S+", t)]
      for t in texts
    ]


@dataclasses.dataclass(frozen=True)
class File:
  """What is read of one file.

  Attributes:
    named: whether the file was named itself.
    kinds: kind -> what a stage of the kind reads; None -> all records.
  """

  named: bool
  kinds: dict[type | None, reading.FileRecords]

  @property
  def records(self) -> list[Any]:
    return self.kinds[None].records

  @property
  def report(self) -> reading.FileReport:
    return self.kinds[None].report

  def holds(self, kind: type) -> bool:
    """Whether the file has records of a kind; drawn prompts do not count."""
    return any(isinstance(r, kind) for r in self.records)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings by which files are judged.

  Attributes:
    data: limits, tags and shares.
    tokenizer: counts tokens; None counts words.
    unit: what the tokenizer counts.
  """

  data: configs.Data
  tokenizer: tokenizers.Tokenizer
  unit: str


# One file.


def _read(path: str, named: bool, must: bool) -> File:
  file = File(named, reading.read_kinds(path))
  if not file.records and must:
    skipped = file.report.skipped.items()
    raise UserError(
      "no record is left of it: "
      + ", ".join(f"{n} {why}" for why, n in skipped),
      file=path,
      line=1,
      fix="see docs/data.md for what is skipped, and why",
      code="nothing_left",
    )
  return file


def _read_all(listing: paths.Listing) -> list[File]:
  """Reads the files as one source, with the splits that their names say."""
  only = len(listing.files) == 1
  files = [
    _read(path, named, named or only) for path, named in listing.files.items()
  ]
  for kind in reading.KIND_NAMES:
    members = _members(files, kind)
    parts = [file.kinds[kind] for file in members]
    parts = reading.split_by_name(parts, listing.roots)
    for file, part in zip(members, parts, strict=True):
      file.kinds[kind] = part
  return files


def _members(files: Sequence[File], kind: type) -> list[File]:
  """Returns the files that a stage of a kind would read together.

  These are files with records of the kind, and where there are any, the other
  files of directories and globs that a stage does not ignore.
  """
  if not any(file.holds(kind) for file in files):
    return []
  return [
    file
    for file in files
    if file.holds(kind) or (not file.named and not _is_ignored(file, kind))
  ]


def _is_ignored(file: File, kind: type) -> bool:
  return file.report.format == formats.PLAIN.name and kind != records.Document


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
      lines += _lengths(items, settings)
      lines += _judged(items, of_kind.skipped, settings, alone=not by_name)
      lines += _as_seen(items[0], settings)
  return lines


def _statistics(texts: Sequence[str], settings: Settings) -> str:
  x = np.array([len(i) for i in settings.tokenizer.encode_batch(texts)])
  return (
    f"{settings.unit}: mean {x.mean():.1f}, deviation {x.std():.1f}, median"
    f" {np.median(x):.0f}, max {x.max()}"
  )


def _lengths(items: Sequence[Any], settings: Settings) -> list[str]:
  """Describes the lengths of records of one kind."""
  if isinstance(items[0], records.Document):
    return ["    " + _statistics([r.text for r in items], settings)]
  prompts = [records.prompt_text(r.turns, settings.data) for r in items]
  lines = ["    prompt " + _statistics(prompts, settings)]
  if isinstance(items[0], records.Ranking):
    sizes = collections.Counter(len(r.ranks) for r in items)
    counts = ", ".join(f"{n} of K={k}" for k, n in sorted(sizes.items()))
    lines.append(f"    completions a prompt: {counts}")
  replies = [c for r in items for c in records.replies(r)]
  if replies:
    lines.append("    completion " + _statistics(replies, settings))
  return lines


# What a stage would do with it.


def _judged(
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


def _as_seen(record: Any, settings: Settings) -> list[str]:
  """Shows a record's text, its token counts, and where loss and cut are."""
  data, coder = settings.data, settings.tokenizer
  lines = [f"    as the model sees {record.origin}:"]
  if isinstance(record, records.Document):
    ids = encoding.encode_documents([record.text], coder)[0]
    text = _decoded(coder, ids, record.text)
    return [*lines, f"      {_count(len(ids) + 1, settings)}: {text}<end>"]
  prompt = encoding.encode_prompts([record.turns], coder, data)[0]
  text = records.prompt_text(record.turns, data)
  over = " (too long: dropped)" * (len(prompt) > data.max_prompt_tokens)
  lines.append(
    f"      prompt, {_count(len(prompt), settings)}{over}:"
    f" {_decoded(coder, prompt, text)}"
  )
  if isinstance(record, records.Prompt):
    return [*lines, "      a reply is sampled from here"]
  if isinstance(record, records.Demonstration):
    lines.append(f"      loss starts here, after {len(prompt)} {settings.unit}")
  return lines + [_reply_line(record, c, settings) for c in _ranked(record)]


def _ranked(record: Any) -> list[tuple[str, str]]:
  """Returns (label, reply) of each reply of a record, the best first."""
  if isinstance(record, records.Demonstration):
    return [("reply", record.completion)]
  pairs = sorted(zip(record.ranks, record.completions, strict=True))
  return [(f"rank {rank}", completion) for rank, completion in pairs]


def _reply_line(record: Any, reply: tuple[str, str], settings: Settings) -> str:
  data, coder = settings.data, settings.tokenizer
  label, completion = reply
  whole = encoding.encode_untruncated([completion], coder, data)[0]
  ids = whole[: data.max_response_tokens]
  cut = len(ids) < len(whole)
  # The end-of-text token is shown by its name.
  body = ids if cut else ids[:-1]
  text = _decoded(coder, body, records.completion_text(completion))
  if cut and isinstance(coder, _Words):
    text = _shown(" ".join(completion.split()[: len(body)]))
  end = (
    f"<cut, {len(whole) - len(ids)} {settings.unit} more, no end-of-text>"
    if cut
    else "<end-of-text>"
  )
  return f"      {label}, {_count(len(ids), settings)}: {text}{end}"


def _count(n: int, settings: Settings) -> str:
  return f"{n} {settings.unit}"


def _decoded(coder: tokenizers.Tokenizer, ids: Any, text: str) -> str:
  """Decodes tokens; returns the text itself where words are counted."""
  if not isinstance(coder, _Words):
    text = coder.decode(ids)
  return _shown(text)


def _shown(text: str) -> str:
  text = text.replace("\n", "\\n")
  if len(text) > _SHOWN_CHARS:
    half = _SHOWN_CHARS // 2
    text = f"{text[:half]} … {text[-half:]}"
  return text


# The command line.


def _value(kind: type) -> Any:
  """Returns the value of a flag from its text."""
  if kind is not bool:
    return kind

  def parse(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
      raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ("true", "1", "yes")

  return parse


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m instructgpt_jax.data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "paths",
    nargs="+",
    metavar="PATH",
    help="a file, folder, quoted glob, comma list or tfds:name/config:split",
  )
  parser.add_argument(
    "--tokenizer",
    default="",
    metavar="PATH",
    help="what counts tokens: a workdir or model directory, a sentencepiece"
    " .model, a tokenizer.json, or a directory with encoder.json and vocab.bpe"
    " (default: words between blanks)",
  )
  parser.add_argument(
    "--preset",
    default="",
    help="preset whose limits apply: " + ", ".join(presets.NAMES),
  )
  for field in dataclasses.fields(configs.Data):
    if field.name in (*_SOURCES, "explicit"):
      continue
    parser.add_argument(
      f"--data.{field.name}",
      f"--{field.name}",
      dest=field.name,
      type=_value(type(field.default)),
      default=None,
      metavar="VALUE",
      help=f"{field.metadata['help']} (default: the preset's, or"
      f" {field.default!r})".replace("%", "%%"),
    )
  return parser


def _data(args: argparse.Namespace) -> configs.Data:
  """Returns the data section of the preset, changed by the flags."""
  data = presets.sft(args.preset).data if args.preset else configs.Data()
  changes = {
    f.name: value
    for f in dataclasses.fields(configs.Data)
    if (value := getattr(args, f.name, None)) is not None
  }
  explicit = ",".join(sorted(changes))
  return dataclasses.replace(data, **changes, explicit=explicit)


def _settings(
  args: argparse.Namespace, data: configs.Data, files: Sequence[File]
) -> tuple[Settings, str]:
  """Returns the settings for judging files, and a sentence about them."""
  preset = args.preset
  text = (
    f"Limits{f' of the preset {preset}' if preset else ''}:"
    f" {data.max_prompt_tokens} tokens a prompt, {data.max_response_tokens} a"
    " reply."
  )
  if not preset and not data.explicit:
    text += " These are the defaults; --preset=NAME takes those of a preset."
  if args.tokenizer:
    coder = tokenizers.load_tokenizer(args.tokenizer)
    return Settings(data, coder, "tokens"), text
  if preset:
    coder = _trained(files, data, presets.sft(preset).tokenizer)
    text += (
      "\nTokens are those of a tokenizer trained on these files, as by a stage"
      " without init_from; --tokenizer=PATH takes another."
    )
    return Settings(data, coder, "tokens"), text
  text += (
    "\nLengths are in words between blanks, so a stage drops and cuts more;"
    " give --tokenizer=PATH for tokens."
  )
  return Settings(data, _Words(), "words"), text


def _trained(
  files: Sequence[File], data: configs.Data, section: configs.Tokenizer
) -> tokenizers.Tokenizer:
  """Trains a tokenizer on the files' documents, or else on all their texts."""
  items = [r for f in files for r in f.records]
  texts = [r.text for r in items if isinstance(r, records.Document)]
  if not texts:
    for record in items:
      prompt = records.prompt_text(record.turns, data)
      texts += [
        prompt + records.completion_text(c) for c in records.replies(record)
      ] or [prompt]
  return tokenizers.train_tokenizer(texts, section)


def _judge_together(files: Sequence[File], settings: Settings) -> None:
  """Prints what curation makes of the records of several files."""
  for kind, plural in reading.KIND_NAMES.items():
    parts = [file.kinds[kind] for file in _members(files, kind)]
    if len(parts) > 1:
      items = [r for part in parts for r in part.records]
      report = reading.Report(tuple(part.report for part in parts))
      print(f"{plural} of {len(parts)} files together: {len(items)}")
      print("\n".join(_judged(items, report.skipped, settings)), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the report; returns the exit status."""
  streams.accept_all_text()
  args = _parser().parse_args(argv)
  try:
    data = _data(args)
    listing = reading.list_files(*args.paths)
    files = _read_all(listing)
    settings, text = _settings(args, data, files)
    print(text)
    for file in files:
      print("\n".join(describe(file, settings)), flush=True)
    for line in paths.show_ignored(listing.ignored):
      print(line)
    _judge_together(files, settings)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    sys.stderr.close()
  return 0


if __name__ == "__main__":
  sys.exit(main())
