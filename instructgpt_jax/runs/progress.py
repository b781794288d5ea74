"""How far a loop is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

import tqdm

from instructgpt_jax.distributed import processes


def log_line(text: str) -> None:
  """One line for the user, beside the progress."""
  if processes.is_main_process():
    print(text, file=sys.stderr, flush=True)


class Progress:
  """Counts to `total`, showing rate, time left and the newest metrics."""

  def __init__(
    self,
    total: int,
    description: str,
    *,
    initial: int = 0,
    unit: str = "step",
    stream: TextIO | None = None,
    every: float = 10.0,
  ):
    """Starts counting.

    Args:
      total: the count at which the loop ends.
      description: a few words.
      initial: count already done by an earlier run.
      unit: what is counted, singular.
      stream: where to write; stderr when None.
      every: seconds between two lines where there is no terminal.
    """
    self.total, self.done, self._initial = total, initial, initial
    self._description, self._unit, self._every = description, unit, every
    self._stream = stream or sys.stderr
    self._metrics: dict[str, Any] = {}
    self._start = self._said = time.monotonic()
    self._bar = None
    self._silent = not processes.is_main_process()
    if self._stream.isatty() and not self._silent:
      self._bar = tqdm.tqdm(
        total=total,
        desc=description,
        initial=initial,
        unit=unit,
        file=self._stream,
        dynamic_ncols=True,
        mininterval=0.2,
      )

  def update(self, n: int = 1, **metrics: Any) -> None:
    """Counts `n` more; `metrics` stand beside the count."""
    self.done += n
    if metrics:
      self._metrics = metrics
    if self._bar is not None:
      if metrics:
        self._bar.set_postfix_str(_shown(metrics), refresh=False)
      self._bar.update(n)
    elif time.monotonic() - self._said >= self._every:
      self._line()

  def close(self) -> None:
    """Ends the bar or writes the last line; may be called twice."""
    if self._bar is not None:
      self._bar.close()
    elif self.done != self._initial:
      self._line()
      self._initial = self.done

  def _line(self) -> None:
    if self._silent:
      return
    now = self._said = time.monotonic()
    seconds = now - self._start
    rate = (self.done - self._initial) / seconds if seconds > 0 else 0.0
    left = (self.total - self.done) / rate if rate > 0 else 0.0
    parts = [
      f"{self._description}: {self.done}/{self.total} {self._unit}s",
      f"{rate:.2f}/s",
      f"{clock(seconds)} gone, {clock(left)} left",
      _shown(self._metrics),
    ]
    print(", ".join(filter(None, parts)), file=self._stream, flush=True)

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def clock(seconds: float) -> str:
  """Seconds as m:ss or h:mm:ss."""
  minutes, rest = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"


def _shown(metrics: dict[str, Any]) -> str:
  return " ".join(
    f"{name}={float(value):.4g}"
    if not isinstance(value, str)
    else f"{name}={value}"
    for name, value in metrics.items()
  )
