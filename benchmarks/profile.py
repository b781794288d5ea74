"""Profiles a step: time of XLA's operations, by program and kind.

    python -m benchmarks.profile --work=reward --model=S

Prints a table: milliseconds per step summed over threads, count, and share of
the traced time. An operation that runs on several threads is traced on each.
Threads of other libraries and waiting are not traced.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import ours, run
from instructgpt_jax import streams
from instructgpt_jax.cli import process_settings


class Spent(NamedTuple):
  """Time of one kind of operation per step.

  Attributes:
    program: name of the compiled program.
    kind: name of the operation in HLO, without its number.
    count: runs per step.
    milliseconds: time per step, summed over threads.
  """

  program: str
  kind: str
  count: float
  milliseconds: float


def spent(
  step: Callable[[int], Any], steps: int, warmup: int = 2
) -> list[Spent]:
  """Runs a step a few times under JAX's profiler.

  Args:
    step: number → arrays to wait for.
    steps: number of traced steps.
    warmup: number of steps before them.

  Returns:
    The kinds of operations, the longest first.
  """
  for index in range(warmup):
    jax.block_until_ready(step(index))
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for index in range(warmup, warmup + steps):
        jax.block_until_ready(step(index))
    (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
  nanoseconds: collections.Counter[tuple[str, str]] = collections.Counter()
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  for plane in profile.planes:
    for line in plane.lines:
      for event in line.events:
        program = dict(event.stats).get("hlo_module")
        if not program:
          continue
        key = (
          re.sub(r"^jit_|\.\d+$", "", str(program)),
          re.sub(r"[.\d]+$", "", event.name),
        )
        nanoseconds[key] += event.duration_ns
        counts[key] += 1
  return [
    Spent(*key, counts[key] / steps, total / steps / 1e6)
    for key, total in nanoseconds.most_common()
  ]


def table(rows: Sequence[Spent], top: int) -> str:
  """Formats the longest operations and the sum of all others."""
  total = sum(row.milliseconds for row in rows)
  rest = rows[top:]
  shown = list(rows[:top])
  if rest:
    sums = (sum(x) for x in zip(*(row[2:] for row in rest), strict=True))
    shown.append(Spent("", f"{len(rest)} others", *sums))
  lines = [f"{'ms':>9} {'times':>7} {'share':>6}  program, operations"]
  lines += [
    f"{row.milliseconds:9.2f} {row.count:7.0f}"
    f" {row.milliseconds / total:6.1%}  {row.program} {row.kind}"
    for row in shown
  ]
  return "\n".join([*lines, f"{total:9.2f} {'':7} {'':6}  together"])


def main(argv: Sequence[str] | None = None) -> int:
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.profile",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--work", choices=run.WORKS, required=True)
  add("--model", choices=run.MODELS, default="S")
  add("--steps", type=int, default=5, help="number of traced steps")
  add("--top", type=int, default=20, help="lines of the table")
  flags = parser.parse_args(argv)
  if min(flags.steps, flags.top) < 1:
    parser.error("--steps and --top must be at least 1")
  process_settings.silence_libraries()
  step = ours.make(flags.work, flags.model)
  seconds: list[float] = []

  def timed(index: int) -> Any:
    began = time.perf_counter()
    result = jax.block_until_ready(step(index))
    seconds.append(time.perf_counter() - began)
    return result

  rows = spent(timed, flags.steps)
  traced = sorted(seconds[-flags.steps :])[flags.steps // 2]
  print(f"{flags.work} {flags.model}: {1e3 * traced:.0f} ms a step, traced")
  print(table(rows, flags.top))
  return 0


if __name__ == "__main__":
  sys.exit(main())
