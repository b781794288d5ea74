"""Every command prints on streams of any encoding."""

import io
import os
import subprocess
import sys

import pytest

from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.data import __main__ as data_command
from instructgpt_jax.report import __main__ as report_command

TEXT = "β · \udce9 \ud800 ✓"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_every_text_can_be_printed(monkeypatch, encoding, errors):
  for name in ("stdout", "stderr"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    monkeypatch.setattr(sys, name, stream)
  streams.accept_all_text()
  for stream in (sys.stdout, sys.stderr):
    print(TEXT, file=stream, flush=True)
    shown = stream.buffer.getvalue().decode(encoding)
    assert len(shown) == len(TEXT) + 1
    assert shown[2] in "·?"


def test_errors_are_printed_in_ascii(monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  monkeypatch.setattr(sys, "stderr", stream)

  def body():
    raise launch.UserError(TEXT)

  assert launch.run_with_errors(body) == 2
  stream.flush()
  assert stream.buffer.getvalue().startswith(b"error: ? ")


def test_a_closed_stream_discards(monkeypatch):
  monkeypatch.setattr(sys, "stdout", None)
  monkeypatch.setattr(sys, "stderr", None)
  streams.accept_all_text()
  assert sys.stdout.write(TEXT) and sys.stderr.write(TEXT)
  assert launch.run_with_errors(lambda: print(TEXT)) == 0
  sys.stdout.close()
  sys.stderr.close()


def test_escapes_of_stderr_stay(monkeypatch):
  stream = io.TextIOWrapper(
    io.BytesIO(), encoding="ascii", errors="backslashreplace"
  )
  monkeypatch.setattr(sys, "stderr", stream)
  streams.accept_all_text()
  assert sys.stderr.errors == "backslashreplace"


def test_a_full_output_is_an_error_and_no_traceback(monkeypatch, capsys):
  class Full(io.StringIO):
    def flush(self):
      raise OSError(28, "No space left on device")

  monkeypatch.setattr(sys, "stdout", Full())
  assert launch.run_with_errors(lambda: None) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and "Traceback" not in error


@pytest.mark.parametrize(
  "text, answer", [("é", True), ("", True), ("\udce9", False), ("a\ud800", 0)]
)
def test_lone_surrogates_are_not_text(text, answer):
  assert streams.is_utf8(text) == answer


@pytest.mark.parametrize("name", ["data", "report"])
def test_commands_in_ascii(name, monkeypatch, tmp_path):
  """These look at the streams themselves, before `launch.run_with_errors`."""
  stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  monkeypatch.setattr(sys, "stdout", stream)
  monkeypatch.setattr(sys, "stderr", stream)
  command = {"data": data_command, "report": report_command}[name]
  assert command.main([str(tmp_path / "é")]) == 2
  stream.flush()
  shown = stream.buffer.getvalue()
  assert b"error: " in shown and b"/?" in shown


def _main_modules():
  root = os.path.join(os.path.dirname(__file__), "..")
  for folder in ("instructgpt_jax", "experiments", "benchmarks"):
    for parent, _, names in os.walk(os.path.join(root, folder)):
      for name in names:
        if name.endswith(".py"):
          yield os.path.join(parent, name)


def test_every_entry_point_prepares_its_streams():
  """Each calls accept_all_text itself, or through `launch` and the sweeps."""
  ways = (
    "accept_all_text()", "launch.main(", "launch.run_with_errors(",
    "command.main(", "commands.main(", "main.main(",
  )  # fmt: skip
  count = 0
  for path in _main_modules():
    with open(path, encoding="utf-8") as file:
      text = file.read()
    if '__name__ == "__main__"' in text and not path.endswith("child.py"):
      count += 1
      assert any(way in text for way in ways), path
  assert count > 15


def test_help_in_cp1252():
  done = subprocess.run(
    [sys.executable, "-m", "experiments.ppo", "--help"],
    capture_output=True,
    env={**os.environ, "PYTHONIOENCODING": "cp1252"},
  )
  assert done.returncode == 0, done.stderr
  assert b"kl_coef" in done.stdout and b"Traceback" not in done.stderr
