"""Chats with the model of a stage, in the terminal or over a file.

  python -m instructgpt_jax.chat --checkpoint=DIR
  python -m instructgpt_jax.chat --checkpoint=DIR --prompts=FILE --output=FILE

DIR is the workdir of a stage whose model writes text: pretrain, sft,
policy_init, ppo or ppo_ptx. In the terminal an answer appears token by token.
Ctrl-C stops the answer, Ctrl-D or /quit ends the conversation, /reset starts a
new one, and /help lists the commands. To send a message that begins with a
slash, put a space before it. The model sees as many earlier turns as fit its
prompt limit.

With --prompts, each record of the file is answered once. The file may have any
format that the data reader knows; "-" is stdin. --output gets one JSON line for
each prompt, in order: {"prompt", "completion", "ended"}. A prompt that is too
long has a null completion and a "skipped" reason. A prompt of several messages
is written as their list. The output may be a pipe, or "-" for stdout. An answer
depends on the seed and on the position of its prompt in the file, not on the
batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from instructgpt_jax import streams
from instructgpt_jax.chat import batch, terminal
from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError

if TYPE_CHECKING:
  from instructgpt_jax.chat.engine import ChatSession

_MAX_INT = 2**31 - 1


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns:
    Exit status: 0; 2 after a user error; 130 after an interrupt.
  """
  interrupted = False

  def run():
    nonlocal interrupted
    try:
      _run(_parse(argv))
    except KeyboardInterrupt:
      interrupted = True

  status = launch.run_with_errors(run)
  if interrupted:
    print("interrupted; nothing was written", file=sys.stderr)
    return launch.INTERRUPTED
  return status


def _run(flags: argparse.Namespace) -> None:
  process_settings.silence_libraries()
  process_settings.trim_malloc_after_compile()
  process_settings.tune_gc()
  if flags.prompts:
    _answer_file(flags)
  else:
    _converse(flags)


def _answer_file(flags: argparse.Namespace) -> None:
  answered, skipped = batch.answer_file(
    flags.prompts,
    flags.output,
    lambda: _load_session(flags, default_seed=0),
    system=flags.system,
    overwrite=flags.overwrite,
    batch_size=flags.batch_size,
  )
  line = f"{answered} prompts answered"
  if skipped:
    line += (
      f", {skipped} too long and skipped (a smaller --max_tokens leaves room)"
    )
  print(f"{line}: {flags.output}", file=sys.stderr)


def _converse(flags: argparse.Namespace) -> None:
  if not streams.accept_all_bytes():
    raise UserError(
      "the standard input is closed",
      fix="run the command in a terminal, or answer a file with --prompts and"
      " --output",
      code="no_input",
    )
  session = _load_session(flags, default_seed=time.time_ns() % 2**31)
  session.check_system_text(flags.system)
  if sys.stdin.isatty():
    try:
      import readline  # noqa: F401  # Gives `input` line editing.
    except ImportError:
      pass
    print(f"{flags.checkpoint}: {terminal.COMMANDS}")
  terminal.run_conversation(
    session,
    flags.system,
    remember=not flags.forget,
    read=terminal.read_line,
  )


def _load_session(flags: argparse.Namespace, default_seed: int) -> ChatSession:
  from instructgpt_jax.chat import engine  # Imports JAX, unlike --help.

  options = engine.SamplingOptions(
    max_tokens=flags.max_tokens,
    temperature=flags.temperature,
    top_k=flags.top_k,
    top_p=flags.top_p,
    seed=default_seed if flags.seed is None else flags.seed,
  )
  return engine.load_session(flags.checkpoint, options)


def _number(kind: type, low: float, high: float) -> Callable[[str], Any]:
  """Returns a parser of numbers in a range."""

  def parse(text: str) -> Any:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not low <= value <= high:
      bounds = f"from {low:g}" + (f" to {high:g}" if high < _MAX_INT else " up")
      noun = "a whole number" if kind is int else "a number"
      raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {bounds}")
    return value

  return parse


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  flags = _make_parser().parse_args(argv)
  if not streams.is_utf8(flags.system):
    raise UserError(
      "is not valid UTF-8",
      field="--system",
      fix="pass the value in UTF-8",
      code="not_utf8",
    )
  if bool(flags.prompts) != bool(flags.output):
    flag, other = "--prompts", "--output"
    if flags.output:
      flag, other = other, flag
    raise UserError(
      f"{flag} needs {other}", fix=f"add {other}", code="bad_flag"
    )
  return flags


def _make_parser() -> CommandParser:
  parser = CommandParser(
    prog="python -m instructgpt_jax.chat",
    description=__doc__,
  )
  add = parser.add_argument
  add("--checkpoint", required=True, metavar="DIR", help="workdir of a stage")
  add("--prompts", metavar="FILE", help="answer the prompts of this file")
  add("--output", metavar="FILE", help="jsonl file for the answers")
  add("--overwrite", action="store_true", help="replace an existing output")
  add(
    "--system",
    default="",
    metavar="TEXT",
    help="system text before every conversation or prompt",
  )
  add(
    "--forget",
    action="store_true",
    help="answer each message without the earlier turns",
  )
  add(
    "--max_tokens",
    type=_number(int, 1, _MAX_INT),
    default=0,
    help="longest answer in tokens (default: the limit used in training)",
  )
  add(
    "--temperature",
    type=_number(float, 0, 100),
    default=1.0,
    help="sampling temperature; 0 selects the most likely token (default: 1)",
  )
  add(
    "--top_k",
    type=_number(int, 0, _MAX_INT),
    default=0,
    help="sample from the k most likely tokens; 0 is all (default: 0)",
  )
  add(
    "--top_p",
    type=_number(float, 0, 1),
    default=1.0,
    help="sample from the most likely tokens of this total probability"
    " (default: 1)",
  )
  add(
    "--seed",
    type=_number(int, 0, _MAX_INT),
    default=None,
    help="seed of the samples (default: the time in a conversation, 0 for a"
    " file)",
  )
  add(
    "--batch_size",
    type=_number(int, 1, 4096),
    default=32,
    help="prompts of a file decoded together (default: 32)",
  )
  return parser
