"""Tokenises data once: corpora larger than memory, and many records.

python -m instructgpt_jax.data prepare PATH... --to=DIR --length=1024
    [--tokenizer=PATH] [--preset=NAME] [--processes=N]
python -m instructgpt_jax.data prepare --to=DIR --tokenizer=PATH
    [--data.comparisons=PATH] [--data.prompts=PATH]
    [--data.demonstrations=PATH] [--preset=NAME]
python -m instructgpt_jax.data prepare --to=DIR --verify

The first form packs documents, which stages read by index:
--data.pretraining=DIR. The second curates rankings, prompts and demonstrations
together: --data.comparisons=DIR --data.prompts=DIR. The same command continues
a preparation that was interrupted. --verify compares all files with their
checksums.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

from instructgpt_jax import configs
from instructgpt_jax.configs import presets
from instructgpt_jax.data import curated_source, data_flags, encoding
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared import prepare as prepare_lib
from instructgpt_jax.data.prepared import prepare_records, records
from instructgpt_jax.data.records import SPLITS
from instructgpt_jax.errors import UserError

_DOCUMENT_FIELDS = ("valid_fraction", "test_fraction", "max_dropped")
_RECORD_FIELDS = (
  *records.LIMITS,
  *(name for name in records.CURATION if name not in _DOCUMENT_FIELDS),
  *encoding.TAG_FIELDS,
  *encoding.TEMPLATE_FIELDS,
)
_TOKENIZER_FIELDS = ("vocab_size", "kind")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m instructgpt_jax.data prepare",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "paths",
    nargs="*",
    metavar="PATH",
    help="documents: files, directories, quoted globs, tfds:name/config:split"
    " or hf:org/name; together one source",
  )
  parser.add_argument(
    "--to", required=True, metavar="DIR", help="the directory to write"
  )
  parser.add_argument(
    "--length",
    default="",
    metavar="T[,T]",
    help="tokens of a row: pretrain.sequence, sft.sequence, ppo.ptx_sequence"
    " and measure.sequence of the stages that will read it, or else"
    " model.max_seq_len (default: those of the preset)",
  )
  parser.add_argument(
    "--tokenizer",
    default="",
    metavar="PATH",
    help="a workdir or model directory, a sentencepiece .model, a"
    " tokenizer.json, or a directory with encoder.json and vocab.bpe (default"
    " for documents: one is trained on 64 MB of them)",
  )
  parser.add_argument(
    "--preset",
    default="",
    help="preset whose lengths, limits and tokenizer size apply: "
    + ", ".join(presets.NAMES),
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=os.cpu_count() or 1,
    metavar="N",
    help="number of worker processes for documents, of about 1 GB each"
    " (default: the number of CPUs)",
  )
  parser.add_argument(
    "--verify", action="store_true", help="check the files of a directory"
  )
  for name in curated_source.KINDS:
    parser.add_argument(
      f"--data.{name}",
      dest=name,
      default=None,
      metavar="PATH",
      help=f"{name} to prepare, as the flag of a stage",
    )
  for name in (*_DOCUMENT_FIELDS, *_RECORD_FIELDS):
    data_flags.add(parser, configs.Data, "data", name)
  for name in _TOKENIZER_FIELDS:
    data_flags.add(parser, configs.Tokenizer, "tokenizer", name)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares or verifies; returns the exit status."""
  args = _parser().parse_args(argv)
  try:
    if args.verify:
      manifest = manifest_lib.verify(args.to)
      print("all files have their checksums")
    elif any(getattr(args, name) for name in curated_source.KINDS):
      manifest = prepare_records.prepare(_records_preparation(args), _log)
    else:
      manifest = prepare_lib.prepare(_preparation(args), _log)
    if isinstance(manifest, manifest_lib.RecordsManifest):
      print("\n".join(_describe_records(args.to, manifest)))
    else:
      print("\n".join(_describe(args.to, manifest)))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _log(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _records_preparation(
  args: argparse.Namespace,
) -> prepare_records.RecordsPreparation:
  """Returns the settings of rankings, prompts and demonstrations."""
  for name, value in (("PATH", args.paths), ("--length", args.length)):
    if value:
      raise UserError(
        "is for documents, which are prepared by themselves",
        field=name,
        fix="leave it out, and prepare documents to another directory",
        code="documents_apart",
      )
  return prepare_records.RecordsPreparation(
    directory=args.to,
    data=data_flags.data(args),
    tokenizer_path=args.tokenizer,
  )


def _preparation(args: argparse.Namespace) -> prepare_lib.Preparation:
  """Returns the settings that the flags give."""
  if not args.paths:
    raise UserError(
      "no data are given",
      fix="give files, directories or quoted globs of documents before the"
      " flags, or --data.comparisons, --data.prompts or --data.demonstrations",
      code="no_data",
    )
  for name in _RECORD_FIELDS:
    if getattr(args, name) is not None:
      raise UserError(
        "is not for documents",
        field=f"data.{name}",
        fix="leave it out, or give rankings, prompts or demonstrations by their"
        " flags",
        code="not_for_documents",
      )
  if args.processes < 1:
    raise UserError(
      f"is {args.processes}",
      field="processes",
      fix="give at least 1",
      code="bad_flag",
    )
  tokenizer = configs.Tokenizer()
  if args.preset:
    tokenizer = presets.pretrain(args.preset).tokenizer
  tokenizer = dataclasses.replace(
    tokenizer, **data_flags.changes(args, configs.Tokenizer)
  )
  return prepare_lib.Preparation(
    paths=args.paths,
    directory=args.to,
    lengths=_lengths(args),
    data=data_flags.data(args),
    tokenizer_path=args.tokenizer,
    tokenizer=tokenizer,
    processes=args.processes,
  )


def _lengths(args: argparse.Namespace) -> list[int]:
  """Returns the row lengths of the flag, or else of the preset."""
  if args.length:
    texts = [text.strip() for text in args.length.split(",")]
    if not all(text.isdecimal() and int(text) > 1 for text in texts):
      raise UserError(
        f"{args.length!r} is no list of row lengths",
        field="length",
        fix="give numbers of tokens of at least 2, such as --length=1024,256",
        code="bad_length",
      )
    return sorted({int(text) for text in texts})
  if not args.preset:
    raise UserError(
      "no row length is given",
      field="length",
      fix="give --length=T, the model.max_seq_len of the stages that will read"
      " the documents, or --preset=NAME",
      code="no_length",
    )
  pretrain = presets.pretrain(args.preset)
  context = pretrain.model.max_seq_len
  return sorted(
    {
      pretrain.pretrain.sequence or context,
      presets.policy_init(args.preset).sft.sequence or context,
      presets.ppo_ptx(args.preset).ptx_length,
    }
  )


def _describe(directory: str, manifest: manifest_lib.Manifest) -> list[str]:
  """Describes a prepared directory."""

  def counts(of: dict[str, int]) -> str:
    return ", ".join(f"{of[split]:,} {split}" for split in SPLITS)

  size = sum(shard.size for shard in manifest.all_shards())
  lines = [
    f"{directory}: {size / 1e6:,.1f} MB",
    f"  documents: {counts(dict(manifest.documents))}",
    f"  tokens: {counts(dict(manifest.tokens))}",
  ]
  for length in manifest.shards:
    rows = {split: manifest.rows(length, split) for split in SPLITS}
    lines.append(f"  rows of {length:,} tokens: {counts(rows)}")
  for reason, number in manifest.dropped["skipped"].items():
    lines.append(f"  skipped: {number:,} {reason}")
  for field, number in manifest.dropped["unused"].items():
    lines.append(f"  unused field: {field} ({number:,} records)")
  for note, number in manifest.dropped["notes"].items():
    lines.append(f"  {number:,} {note}")
  for name, reason in manifest.dropped["ignored"]:
    lines.append(f"  ignored: {name} ({reason})")
  return [*lines, f"use it with --data.pretraining={directory}"]


def _describe_records(
  directory: str, manifest: manifest_lib.RecordsManifest
) -> list[str]:
  """Describes a directory of prepared records."""
  size = sum(shard.size for shard in manifest.all_shards())
  lines = [f"{directory}: {size / 1e6:,.1f} MB"]
  for name in manifest.shards:
    of = manifest.counts(name)
    counts = ", ".join(f"{of[split]:,} {split}" for split in SPLITS)
    lines.append(f"  {name}: {counts}")
  flags = " ".join(f"--data.{name}={directory}" for name in manifest.shards)
  return [*lines, f"use it with {flags}"]
