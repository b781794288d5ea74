"""The command line of the server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from instructgpt_jax.chat import engine
from instructgpt_jax.serve import command
from tests.interop import ours, tiny

tiny.library("starlette")
tiny.library("uvicorn")


@pytest.fixture(autouse=True)
def restored_signals():
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)


@pytest.fixture
def not_loaded(monkeypatch):
  def load(*unused):
    raise AssertionError("the model was loaded")

  monkeypatch.setattr(engine, "load_session", load)


@pytest.mark.parametrize(
  "argv, words",
  [
    ([], "--checkpoint"),
    (["--checkpoint=x", "--prot=1"], "'--port'"),
    (["--checkpoint=x", "--port=99999"], "from 0 to 65535"),
    (["--checkpoint=x", "--max_batch=0"], "from 1 to"),
    (["--checkpoint=x", "--host=0.0.0.0"], "--allow_remote"),
    (["--checkpoint=x", "--host=no host", "--allow_remote"], "--host"),
  ],
)
def test_user_errors(argv, words, capsys, not_loaded):
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert words in error and len(error.strip().splitlines()) <= 3


def test_a_port_in_use(capsys, not_loaded):
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    assert command.main(["--checkpoint=x", f"--port={port}"]) == 2
  assert f"{port} is in use" in capsys.readouterr().err


def test_missing_packages(capsys, monkeypatch, not_loaded):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  assert command.main(["--checkpoint=x", "--port=0"]) == 2
  assert "pip install" in capsys.readouterr().err


def test_no_such_checkpoint(capsys, tmp_path):
  path = tmp_path / "none"
  assert command.main([f"--checkpoint={path}", "--port=0"]) == 2
  assert str(path) in capsys.readouterr().err


def test_serves_until_sigterm(tmp_path):
  """A Hugging Face directory is served under its own name."""
  path = tmp_path / "small"
  ours.make(path, vocab_size=13)
  for name, content in ours.tokenizer_files().items():
    (path / name).write_bytes(content)
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "instructgpt_jax.serve"),
      *(f"--checkpoint={path}", "--port=0"),
    ],
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  with process:
    line = process.stderr.readline()
    (url,) = re.findall(r"serving small at (http://127\.0\.0\.1:\d+/v1)", line)
    request = urllib.request.Request(
      f"{url}/completions",
      json.dumps(
        {"model": "small", "prompt": [2, 3, 2], "max_tokens": 2}
      ).encode(),
      {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
      assert json.load(response)["usage"]["prompt_tokens"] == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr.read() == ""
