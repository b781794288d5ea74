"""A conversation with a model in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError

if TYPE_CHECKING:
  from instructgpt_jax.chat.engine import ChatSession

COMMANDS = (
  "/reset starts a new conversation, /quit or Ctrl-D ends it, /help lists these"
  " commands; to send a message that begins with /, put a space before it"
)
_COMMAND = re.compile(r"/[^\s/]*(\s|$)")


def run_conversation(
  session: ChatSession,
  system: str = "",
  *,
  remember: bool = True,
  read: Callable[[str], str] = input,
  out: TextIO | None = None,
) -> None:
  """Answers messages until the input ends.

  Args:
    session: the model.
    system: text of a system turn before every conversation.
    remember: whether earlier turns stay in the prompt.
    read: returns the next line of the user; EOFError ends the conversation.
    out: where answers are written; stdout when None.
  """
  out = sys.stdout if out is None else out
  first_turns = [Turn("system", system)] if system else []
  turns = list(first_turns)
  count = 0
  while True:
    try:
      line = read("you> ")
    except (EOFError, KeyboardInterrupt):
      return
    message = line.strip()
    if message == "/quit":
      return
    if message == "/reset":
      turns = list(first_turns)
    reply = _reply_to_command(line)
    if reply:
      print(reply, file=out)
    if reply or not message:
      continue
    turns = [*(turns if remember else first_turns), Turn("user", message)]
    try:
      turns = list(session.newest_turns(turns))
    except UserError as error:
      print(launch.error_text(error), file=out)
      turns = turns[:-1]
      continue
    turns.append(Turn("assistant", _print_answer(session, turns, count, out)))
    count += 1


def read_line(prompt: str) -> str:
  """Reads a line of the user from stdin, in any encoding.

  Raises:
    EOFError: the input has ended.
    UserError: the input cannot be read.
  """
  on_terminal = sys.stdin.isatty()
  try:
    line = input(prompt if on_terminal else "")
  except (EOFError, KeyboardInterrupt):
    if on_terminal:
      print()
    raise
  except OSError as error:
    raise UserError(
      f"the standard input cannot be read: {error.strerror}", code="no_input"
    ) from error
  return streams.as_utf8(line).removeprefix("\ufeff")


def printable(text: str) -> str:
  """Replaces control characters, which could be commands to a terminal."""
  return "".join(
    c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
    for c in text
  )


def _reply_to_command(line: str) -> str:
  """Returns the reply to a command or invalid message; "" for messages."""
  message = line.strip()
  if message == "/reset":
    return "(new conversation)"
  if message == "/help":
    return COMMANDS
  if _COMMAND.match(line):
    return f"{printable(message.split()[0])} is not a command: {COMMANDS}"
  problem = ""
  if not streams.is_utf8(message):
    problem = "the message is not valid UTF-8, and was not sent"
  elif "\0" in message:
    problem = "the message contains NUL characters, and was not sent"
  return (
    launch.error_text(UserError(problem, code="bad_message")) if problem else ""
  )


def _print_answer(
  session: ChatSession, turns: Sequence[Turn], index: int, out: TextIO
) -> str:
  """Prints an answer while it is sampled, and returns its text."""
  pieces = []
  try:
    for piece in session.stream(turns, index):
      pieces.append(piece)
      out.write(printable(piece))
      out.flush()
  except KeyboardInterrupt:
    out.write(" (stopped)")
  out.write("\n")
  out.flush()
  return "".join(pieces).strip()
