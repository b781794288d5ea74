"""The command line of chat."""

from __future__ import annotations

import io

import pytest

from instructgpt_jax.chat import command, engine
from instructgpt_jax.data.records import Turn
from tests.chat.toy import DATA, Echo, make_session, user


def _not_loaded(*unused):
  raise AssertionError("the model was loaded")


@pytest.mark.parametrize(
  "argv, words",
  [
    (["--checkpiont=x"], "--checkpoint"),
    ([], "--checkpoint"),
    (["--checkpoint=x", "--promts=y"], "did you mean '--prompts'"),
    (["--checkpoint=x", "--prompts=y"], "add --output"),
    (["--checkpoint=x", "--output=y"], "add --prompts"),
    (["--checkpoint=x", "--temperature=hot"], "not a number from 0"),
    (["--checkpoint=x", "--top_p=1.5"], "from 0 to 1"),
    (["--checkpoint=x", "--top_k=-1"], "from 0 up"),
    (["--checkpoint=x", "--seed=1.5"], "whole number"),
    (["--checkpoint=x", "--prompts=/no/file", "--output=y"], "/no/file"),
  ],
)
def test_user_errors_take_at_most_three_lines(argv, words, capsys, monkeypatch):
  monkeypatch.setattr(engine, "load_session", _not_loaded)
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert words in error
  assert len(error.strip().splitlines()) <= 3


def test_reads_lines_without_a_terminal(policy, capsys, monkeypatch):
  arguments = {}

  def load(checkpoint, sampling):
    arguments.update(checkpoint=checkpoint, sampling=sampling)
    return engine.ChatSession(*policy, DATA, sampling)

  monkeypatch.setattr(engine, "load_session", load)
  monkeypatch.setattr("sys.stdin", io.StringIO("the fox\n\nowls\n"))
  argv = [
    "--checkpoint=runs/x",
    "--temperature=0",
    "--max_tokens=5",
    "--seed=4",
  ]
  assert command.main(argv) == 0
  session = make_session(policy, temperature=0.0, max_tokens=5)
  first = "".join(session.stream(user("the fox")))
  turns = [*user("the fox"), Turn("assistant", first.strip()), *user("owls")]
  second = "".join(session.stream(session.newest_turns(turns)))
  assert capsys.readouterr().out == f"{first}\n{second}\n"
  assert arguments["checkpoint"] == "runs/x"
  assert arguments["sampling"] == engine.SamplingOptions(5, 0.0, 0, 1.0, 4)


def _stdin(content: bytes, encoding: str) -> io.TextIOWrapper:
  return io.TextIOWrapper(io.BytesIO(content), encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_reads_any_encoding(encoding, monkeypatch, capsys):
  messages = []

  class Listener(Echo):
    def stream(self, turns, index):
      messages.append(turns[-1].text)
      yield "ok"

  monkeypatch.setattr(engine, "load_session", lambda *_: Listener())
  content = b"\xef\xbb\xbfone\ncaf\xe9\nfour \xc3\xa9\n"
  monkeypatch.setattr("sys.stdin", _stdin(content, encoding))
  assert command.main(["--checkpoint=x", "--forget"]) == 0
  out = capsys.readouterr().out.splitlines()
  if encoding == "latin-1":
    # Every byte is a Latin-1 character; UTF-8 is recognised.
    assert messages[1:] == ["café", "four é"]
  else:
    assert messages == ["one", "four é"]
    assert out[1].startswith("error: ") and out[::2] == ["ok", "ok"]


def test_closed_input_is_an_error(monkeypatch, capsys):
  monkeypatch.setattr(engine, "load_session", _not_loaded)
  monkeypatch.setattr("sys.stdin", None)
  assert command.main(["--checkpoint=x"]) == 2
  assert "standard input is closed" in capsys.readouterr().err


def test_system_text_must_be_utf8(capsys):
  assert command.main(["--checkpoint=x", "--system=caf\udce9"]) == 2
  assert "--system" in capsys.readouterr().err


def test_interrupt_has_its_own_status(monkeypatch, capsys):
  def load(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(engine, "load_session", load)
  assert command.main(["--checkpoint=x"]) == 130
  assert capsys.readouterr().err == "interrupted; nothing was written\n"
