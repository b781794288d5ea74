"""Progress shows a bar on a terminal, and lines elsewhere."""

import io
import re

import pytest

from instructgpt_jax.runs import progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def times(monkeypatch):
  """Replaces the clock by the times that a test sets."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(progress, "peak_memory", lambda: 1_234_000_000)
  return now


def test_prints_lines_where_there_is_no_terminal():
  stream = io.StringIO()
  with progress.Progress(4, "train", stream=stream, every=0.0) as bar:
    bar.update(1, loss=0.123456)
    bar.update(3)
  lines = stream.getvalue().splitlines()
  assert lines[0].startswith("train: 1/4 steps, ")
  assert "loss=0.1235" in lines[0]
  assert lines[1].startswith("train: 4/4 steps, ")
  assert "\r" not in stream.getvalue()


def test_lines_are_rare():
  stream = io.StringIO()
  with progress.Progress(100, "train", stream=stream, every=3600.0) as bar:
    for _ in range(100):
      bar.update()
  assert stream.getvalue().count("\n") == 1
  bar.close()
  assert stream.getvalue().count("\n") == 1


def test_rate_excludes_an_earlier_run(times):
  stream = io.StringIO()
  bar = progress.Progress(120, "train", initial=100, stream=stream)
  times[0] = 10.0
  bar.update(10)
  assert stream.getvalue() == (
    "train: 110/120 steps, 1.00/s, 0:10 elapsed, 0:10 left,"
    " peak memory 1.23 GB\n"
  )


def test_rate_excludes_compilation(times):
  stream = io.StringIO()
  bar = progress.Progress(10, "train", compiles=True, stream=stream)
  times[0] = 60.0
  bar.update()
  times[0] = 80.0
  bar.update(2)
  bar.close()
  lines = stream.getvalue().splitlines()
  assert lines == [
    "train: compiling …",
    "train: 1/10 steps, 1:00 elapsed, peak memory 1.23 GB",
    "train: 3/10 steps, 0.10/s, 1:20 elapsed, 1:10 left, peak memory 1.23 GB",
  ]


def test_finished_work_does_not_compile():
  stream = io.StringIO()
  progress.Progress(3, "train", initial=3, compiles=True, stream=stream).close()
  assert stream.getvalue() == ""


def test_bar_on_a_terminal():
  stream = _Terminal()
  with progress.Progress(4, "train", compiles=True, stream=stream) as bar:
    bar.update(2)
    bar.update(2, loss=1.0)
  text = stream.getvalue()
  assert "train" in text and "compiling …" in text
  assert "4/4" in text and "loss=1" in text
  assert re.search(r"peak memory \d+\.\d\d GB", text)


def test_peak_memory_is_in_bytes():
  assert 10e6 < progress.peak_memory() < 1e12


def test_clock():
  assert progress.clock(0.4) == "0:00"
  assert progress.clock(75) == "1:15"
  assert progress.clock(3661) == "1:01:01"
