"""Progress of long work: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, TextIO

import tqdm

from instructgpt_jax.distributed import processes

# ru_maxrss is in KiB on Linux and in bytes on macOS.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def log_line(text: str) -> None:
  """Prints a line for the user on stderr, in the main process only."""
  if processes.is_main_process():
    print(text, file=sys.stderr, flush=True)


def peak_memory() -> int:
  """Returns this process's peak resident memory, in bytes."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_maxrss * _MAXRSS_UNIT


class Progress:
  """Counts to `total`, and shows rate, remaining time and metrics."""

  def __init__(
    self,
    total: int,
    description: str,
    *,
    initial: int = 0,
    unit: str = "step",
    compiles: bool = False,
    stream: TextIO | None = None,
    every: float = 10.0,
  ):
    """Starts counting.

    Args:
      total: count at which the work is done.
      description: name of the work.
      initial: count that an earlier run has done.
      unit: what is counted, in the singular.
      compiles: whether the first update includes compilation. Progress then
        says so, and the rate and remaining time exclude the first update.
      stream: where to write; stderr when None.
      every: seconds between two lines where there is no terminal.
    """
    self.total, self.done = total, initial
    self._shown = initial  # count at the last line
    self._description, self._unit, self._every = description, unit, every
    self._stream = stream or sys.stderr
    self._metrics: dict[str, Any] = {}
    self._compiling = compiles and initial < total
    self._start = self._last_line = time.monotonic()
    # Time and count from which the rate is measured.
    self._rate_start, self._rate_initial = self._start, initial
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
    if self._compiling:
      self._show_compiling()

  def update(self, n: int = 1, **metrics: Any) -> None:
    """Counts `n` more, and shows `metrics` beside the count."""
    self.done += n
    if metrics:
      self._metrics = metrics
    now = time.monotonic()
    first, self._compiling = self._compiling, False
    if first:
      self._rate_start, self._rate_initial = now, self.done
    if self._bar is not None:
      self._update_bar(self._bar, n, restart_rate=first)
    elif now - self._last_line >= self._every:
      self._print_line(now)

  def close(self) -> None:
    """Closes the bar or prints the last line; may be called twice."""
    if self._bar is not None:
      self._bar.close()
    elif self.done != self._shown:
      self._print_line(time.monotonic())

  def _show_compiling(self) -> None:
    if self._bar is not None:
      self._bar.set_postfix_str("compiling …")
    elif not self._silent:
      print(f"{self._description}: compiling …", file=self._stream, flush=True)

  def _update_bar(self, bar: tqdm.tqdm, n: int, *, restart_rate: bool) -> None:
    text = " ".join(
      filter(None, [_metrics_text(self._metrics), _memory_text()])
    )
    bar.set_postfix_str(text, refresh=False)
    if restart_rate:
      bar.n = bar.initial = bar.last_print_n = bar.n + n
      bar.start_t = bar.last_print_t = time.time()
      bar.refresh()
    else:
      bar.update(n)

  def _print_line(self, now: float) -> None:
    self._last_line, self._shown = now, self.done
    if self._silent:
      return
    parts = [
      f"{self._description}: {self.done}/{self.total} {self._unit}s",
      *self._rate_texts(now),
      _memory_text(),
      _metrics_text(self._metrics),
    ]
    print(", ".join(filter(None, parts)), file=self._stream, flush=True)

  def _rate_texts(self, now: float) -> list[str]:
    """Returns the rate, the elapsed and the remaining time."""
    elapsed = f"{clock(now - self._start)} elapsed"
    seconds = now - self._rate_start
    counted = self.done - self._rate_initial
    if counted <= 0 or seconds <= 0:
      return [elapsed]
    rate = counted / seconds
    remaining = (self.total - self.done) / rate
    return [f"{rate:.2f}/s", elapsed, f"{clock(remaining)} left"]

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def clock(seconds: float) -> str:
  """Formats seconds as m:ss or h:mm:ss."""
  minutes, rest = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"


def _memory_text() -> str:
  return f"peak memory {peak_memory() / 1e9:.2f} GB"


def _metrics_text(metrics: dict[str, Any]) -> str:
  return " ".join(
    f"{name}={float(value):.4g}"
    if not isinstance(value, str)
    else f"{name}={value}"
    for name, value in metrics.items()
  )
