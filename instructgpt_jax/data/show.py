"""Shows records as a model sees them: text, token ids and what carries loss.

python -m instructgpt_jax.data show PATH... --tokenizer=PATH [--n=5]

Tokens that carry loss are green on a terminal, and in brackets elsewhere. What
a limit cuts off is shown too. Curation is not applied.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.configs import presets
from instructgpt_jax.data import (
  data_flags,
  reading,
  record_view,
  records,
  tokenizers,
)
from instructgpt_jax.data.record_view import Run, TokenSequence, Use
from instructgpt_jax.errors import UserError

_COLORS: dict[Use, str] = {
  "context": "",
  "loss": "\x1b[32m",
  "score": "\x1b[1;35m",
  "cut": "\x1b[9;31m",
}
_RESET = "\x1b[0m"
_KINDS = {name: kind for kind, name in reading.KIND_NAMES.items()}
_INDENT = " " * 4


class _View(NamedTuple):
  """How records are encoded and marked."""

  tokenizer: tokenizers.Tokenizer
  data: configs.Data
  section: configs.Sft
  color: bool
  max_tokens: int


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m instructgpt_jax.data show",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  data_flags.add_paths(parser)
  parser.add_argument(
    "--tokenizer",
    required=True,
    metavar="PATH",
    help="a workdir or model directory, or a tokenizer file",
  )
  parser.add_argument(
    "--n", type=int, default=5, help="number of records (default: 5)"
  )
  parser.add_argument(
    "--skip", type=int, default=0, help="number of records to skip first"
  )
  parser.add_argument(
    "--max_tokens",
    type=int,
    default=1000,
    help="tokens of a sequence to show; the middle of a longer one is left out"
    " (default: 1000)",
  )
  parser.add_argument(
    "--kind",
    choices=sorted(_KINDS),
    help="kind of record (default: all that the files hold)",
  )
  parser.add_argument(
    "--color",
    action="store_true",
    help="use colors where the output is no terminal, too",
  )
  for name in ("mask_prompt", "loss_turns"):
    data_flags.add(parser, configs.Sft, "sft", name)
  data_flags.add_data(parser)
  return parser


def main(argv: Sequence[str]) -> int:
  """Prints records; returns the exit status."""
  args = _parser().parse_args(argv)
  try:
    view = _view(args)
    uses: set[Use] = set()
    for record in _records(args):
      for line in _describe(record, view, uses):
        print(line)
    for line in _legend(view.color, uses):
      print(line)
    sys.stdout.flush()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    sys.stderr.close()
  return 0


def _view(args: argparse.Namespace) -> _View:
  """Returns how records are shown by the flags."""
  data = data_flags.data(args)
  section = presets.sft(args.preset).sft if args.preset else configs.Sft()
  changes = data_flags.changes(args, configs.Sft)
  section = dataclasses.replace(section, **changes)
  tokenizer = tokenizers.load_tokenizer(args.tokenizer)
  if not data.chat_template:
    tokenizer = tokenizer.without_template()
  is_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
  color = args.color or is_terminal
  return _View(tokenizer, data, section, color, max(args.max_tokens, 2))


def _records(args: argparse.Namespace) -> Iterator[records.Record]:
  """Yields the records to show; reads no more of the files."""
  kind = _KINDS.get(args.kind)
  items = itertools.chain.from_iterable(
    reading.iterate(path, kind)
    for path in reading.list_files(*args.paths).files
  )
  count = 0
  skip, stop = max(args.skip, 0), max(args.skip, 0) + max(args.n, 1)
  for record in itertools.islice(items, skip, stop):
    count += 1
    yield record
  if not count:
    what = args.kind or "records"
    raise UserError(
      f"holds no more than {skip} {what}" if skip else f"holds no {what}",
      file=", ".join(args.paths),
      fix="give another --skip or --kind, or other files",
      code="no_records",
    )


def _describe(
  record: records.Record, view: _View, uses: set[Use]
) -> Iterator[str]:
  """Yields the lines of one record; adds the uses of its tokens to `uses`."""
  kind = reading.KIND_NAMES[type(record)].removesuffix("s")
  split = f", split {record.split}" if record.split else ""
  yield f"{record.origin}: {kind}{split}"
  if not isinstance(record, records.Document):
    ids = record_view.prompt_ids(record, view.tokenizer, view.data)
    if len(ids) > view.data.max_prompt_tokens:
      yield (
        f"  dropped by a stage: the prompt has {len(ids)} tokens, over"
        f" --data.max_prompt_tokens={view.data.max_prompt_tokens}"
      )
  for sequence in record_view.sequences(
    record, view.tokenizer, view.data, view.section
  ):
    uses.update(sequence.uses)
    yield f"  {_counts(sequence)}"
    yield from _tokens(sequence, view)
  if isinstance(record, records.Prompt):
    yield f"{_INDENT}a reply is sampled from here"
  yield ""


def _tokens(sequence: TokenSequence, view: _View) -> Iterator[str]:
  """Yields the text of a sequence and its ids, without the middle if long."""
  count, half = len(sequence.ids), view.max_tokens // 2
  parts = [sequence.runs(0, count)]
  if count > view.max_tokens:
    parts = [sequence.runs(0, half), sequence.runs(count - half, count)]
  for ids in (False, True):
    for i, runs in enumerate(parts):
      if i:
        yield f"{_INDENT}… {count - 2 * half} more tokens …"
      yield from _marked(
        [(r, " ".join(map(str, r.ids)) if ids else r.text) for r in runs],
        view.color,
        " " if ids else "",
      )


def _counts(sequence: TokenSequence) -> str:
  """Returns what a sequence is, and its numbers of tokens."""
  counts = [f"{len(sequence.ids) - sequence.count('cut')} tokens"]
  named: tuple[tuple[Use, str], ...] = (("loss", "with loss"), ("cut", "cut"))
  for use, what in named:
    if sequence.count(use):
      counts.append(f"{sequence.count(use)} {what}")
  return ", ".join([*filter(None, [sequence.label]), *counts])


def _marked(
  runs: Sequence[tuple[Run, str]], color: bool, joint: str = ""
) -> Iterator[str]:
  """Yields the lines of a text whose parts are marked by their use."""
  parts = []
  for run, text in runs:
    if run.use == "context":
      parts.append(text)
    elif color:
      # Each line has its own color, so that none reaches the indents.
      lines = (f"{_COLORS[run.use]}{t}{_RESET}" for t in text.split("\n"))
      parts.append("\n".join(lines))
    else:
      parts.append(f"[{run.use}: {text}]")
  for line in joint.join(parts).split("\n"):
    yield _INDENT + line


def _legend(color: bool, uses: set[Use]) -> Iterator[str]:
  """Yields what each mark means."""
  for use, meaning in record_view.USES.items():
    if use in uses and use != "context":
      mark = f"{_COLORS[use]}{use}{_RESET}" if color else f"[{use}: …]"
      yield f"{mark} {meaning}"
