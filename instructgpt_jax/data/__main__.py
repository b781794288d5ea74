"""Says what data files hold: python -m instructgpt_jax.data PATH...

For each file: the format it is recognised as, how many records of which kind,
how long they are in tokens, what was skipped, and what curation would drop.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence

import numpy as np

from instructgpt_jax import config, streams
from instructgpt_jax.data import curation, paths, records, sources, tokenizer
from instructgpt_jax.errors import UserError


class _Words(tokenizer.Tokenizer):
  """Counts words between blanks where no tokenizer is given."""

  def __init__(self):
    super().__init__(base_size=1, pad_id=-1, eos_id=-1)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [[0] * len(re.findall(r"\S+", t)) for t in texts]


def _statistics(lengths: Sequence[int]) -> str:
  x = np.asarray(lengths)
  return (
    f"mean {x.mean():.1f}, deviation {x.std():.1f}, median"
    f" {np.median(x):.0f}, max {x.max()}"
  )


def _lengths(coder, texts: Sequence[str]) -> list[int]:
  return [len(ids) for ids in coder.encode_batch(texts)]


def describe(path: str, data: config.Data, coder, unit: str) -> str:
  """The report on one file, as text."""
  found, report = sources.read_any(path)
  lines = [f"{path}", f"  recognised as: {report.format}"]
  for reason, n in report.skipped.items():
    lines.append(f"  skipped: {n} {reason}")
  lines += [
    f"  {line}" for line in sources.remarks(report.unused, report.notes)
  ]
  if not found:
    reasons = ", ".join(f"{n} {why}" for why, n in report.skipped.items())
    raise UserError(
      f"no record is left of it: {reasons}",
      file=path,
      line=1,
      fix="see docs/data.md for what is skipped, and why",
      code="nothing_left",
    )
  for kind, plural in sources.KIND_NAMES.items():
    mine = [r for r in found if isinstance(r, kind)]
    if not mine:
      continue
    lines.append(f"  {plural}: {len(mine)}")
    if kind is records.Document:
      texts = [r.text for r in mine]
      lines.append(f"    {unit}: {_statistics(_lengths(coder, texts))}")
      shares = curation.split_documents(mine, data)
    else:
      texts = [records.prompt_text(r.turns, data) for r in mine]
      lines.append(f"    prompt {unit}: {_statistics(_lengths(coder, texts))}")
      if kind is records.Demonstration:
        replies = [r.completion for r in mine]
      elif kind is records.Ranking:
        replies = [c for r in mine for c in r.completions]
        sizes = np.bincount([len(r.ranks) for r in mine])
        counts = ", ".join(f"{n} of K={k}" for k, n in enumerate(sizes) if n)
        lines.append(f"    completions a prompt: {counts}")
      else:
        replies = []
      if replies:
        lines.append(
          f"    completion {unit}: {_statistics(_lengths(coder, replies))}"
        )
      shares, dropped = curation.curate(mine, data, coder)
      for reason, n in dropped.items():
        lines.append(f"    curation drops: {n} {reason}")
      if not dropped:
        lines.append("    curation drops: nothing")
    lines.append(
      "    splits: " + ", ".join(f"{len(v)} {k}" for k, v in shares.items())
    )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  streams.accept_all_text()
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
    help="what counts tokens: a sentencepiece .model, a tokenizer.json, or a"
    " folder with encoder.json and vocab.bpe (default: words between blanks)",
  )
  for field in dataclasses.fields(config.Data):
    if field.name in ("max_prompt_tokens", "common_prefix_chars",
                      "max_prompts_per_user"):  # fmt: skip
      parser.add_argument(
        f"--{field.name}",
        type=int,
        default=field.default,
        metavar="N",
        help=f"{field.metadata['help']} (default: {field.default})",
      )
  args = parser.parse_args(argv)
  try:
    data = config.Data(
      max_prompt_tokens=args.max_prompt_tokens,
      common_prefix_chars=args.common_prefix_chars,
      max_prompts_per_user=args.max_prompts_per_user,
    )
    if args.tokenizer:
      coder, unit = tokenizer.load_tokenizer(args.tokenizer), "tokens"
    else:
      coder, unit = _Words(), "words"
      print("Lengths are in words between blanks; give --tokenizer for tokens.")
    for spec in args.paths:
      listing = sources.list_files(spec)
      for path in listing.files:
        print(describe(path, data, coder, unit), flush=True)
      for line in paths.show_ignored(listing.ignored):
        print(line)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    sys.stderr.close()
  return 0


if __name__ == "__main__":
  sys.exit(main())
