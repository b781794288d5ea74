"""A bar on a terminal, lines elsewhere."""

import io

from instructgpt_jax.runs import progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_lines_where_there_is_no_terminal():
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


def test_an_earlier_runs_share_does_not_count_in_the_rate(monkeypatch):
  now = iter([0.0, 10.0, 10.0, 10.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
  stream = io.StringIO()
  bar = progress.Progress(120, "train", initial=100, stream=stream)
  bar.update(10)
  assert stream.getvalue() == (
    "train: 110/120 steps, 1.00/s, 0:10 gone, 0:10 left\n"
  )


def test_bar_on_a_terminal():
  stream = _Terminal()
  with progress.Progress(4, "train", stream=stream) as bar:
    bar.update(4, loss=1.0)
  assert "train" in stream.getvalue()
  assert "4/4" in stream.getvalue()
  assert "loss=1" in stream.getvalue()


def test_clock():
  assert progress.clock(0.4) == "0:00"
  assert progress.clock(75) == "1:15"
  assert progress.clock(3661) == "1:01:01"
