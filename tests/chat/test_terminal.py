"""Conversations in the terminal."""

from __future__ import annotations

import io

import pytest

from instructgpt_jax.chat import terminal
from tests.chat.toy import Echo


def _converse(lines, **settings) -> list[str]:
  out = io.StringIO()
  lines = iter(lines)

  def read(prompt):
    del prompt
    for line in lines:
      if isinstance(line, BaseException):
        raise line
      return line
    raise EOFError

  terminal.run_conversation(Echo(), read=read, out=out, **settings)
  return out.getvalue().splitlines()


def test_conversation_remembers_turns_until_reset():
  output = _converse(["hi", "", "you", "/reset", "new"], system="be kind")
  assert output[0] == "0:s.be kind|u.hi"
  assert output[1] == "1:s.be kind|u.hi|a.0:s.be kind|u.hi|u.you"
  assert output[2:4] == ["(new conversation)", "2:s.be kind|u.new"]
  assert _converse(["a", "b"], remember=False)[:2] == ["0:u.a", "1:u.b"]


def test_message_that_is_too_long_is_an_error_line():
  output = _converse(["hi", "x" * 99, "you", "/quit", "unread"])
  assert output == ["0:u.hi", "error: too long", "1:u.hi|a.0:u.hi|u.you"]


def test_interrupt_at_the_prompt_ends_the_conversation():
  assert _converse([KeyboardInterrupt(), "unread"]) == []


def test_interrupt_of_an_answer_stops_only_the_answer():
  class Slow(Echo):
    def stream(self, turns, index):
      yield f"{len(turns)}"
      if index == 0:
        raise KeyboardInterrupt
      yield "!"

  out, lines = io.StringIO(), iter(["a", "b", "/quit"])
  terminal.run_conversation(Slow(), read=lambda _: next(lines), out=out)
  assert out.getvalue().splitlines() == ["1 (stopped)", "3!"]


@pytest.mark.parametrize(
  "line", ["/help", " /help ", "/halp", "/", "/?", "/help me", "/Quit", "/é x"]
)
def test_commands_are_never_sent(line):
  output = _converse([line, "you"])
  assert len(output) == 2
  assert "/reset" in output[0] and "/quit" in output[0]
  assert output[0].startswith("/reset") == (line.strip() == "/help")
  assert output[1] == "0:u.you"


@pytest.mark.parametrize("line", [" /halp", "/etc/hosts is what?", "a /reset"])
def test_messages_with_slashes_are_sent(line):
  assert _converse([line]) == [f"0:u.{line.strip()}"]


@pytest.mark.parametrize("line", ["caf\udce9", "\ud800", "h\0i\0"])
def test_invalid_text_is_not_sent(line):
  output = _converse(["hi", line, "you"])
  assert output[0] == "0:u.hi" and output[1].startswith("error: ")
  assert output[2:] == ["1:u.hi|a.0:u.hi|u.you"]


def test_control_characters_are_not_printed():
  output = _converse(["\x1b[2J\x9b31mred\x07"])
  assert output == ["0:u.�[2J�31mred�"]
  assert terminal.printable("a\nb\tc é 短") == "a\nb\tc é 短"
