"""Formats the lines of benchmarks.run as a Markdown table."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from instructgpt_jax import streams

_HEAD = (
  "model",
  "work",
  "seconds a step",
  "rate",
  "TFLOP/s",
  "of the matrix ceiling",
  "decoding, of the bytes' floor",
  "peak memory",
  "first step",
)


def row(line: dict[str, Any]) -> list[str]:
  """Returns the cells of one measurement of this project."""
  spread, (unit, rate) = line["step_s"], next(iter(line["rates"].items()))
  decode = line.get("decode")
  return [
    line["model"],
    line["work"],
    f"{spread['median']:.4g} [{spread['min']:.4g}, {spread['max']:.4g}]",
    f"{rate:,.4g} {unit.replace('_', ' ')}/s",
    f"{line['gflops'] / 1000:.3g}",
    f"{line['share_of_ceiling']:.0%}",
    f"{decode['share_of_floor']:.0%}" if decode else "",
    f"{line['peak_memory_mib']:,.0f} MiB",
    f"{line['first_step_s']:.1f} s",
  ]


def table(lines: Sequence[dict[str, Any]]) -> str:
  """Formats measurements as Markdown, below a line about the device."""
  ours = [line for line in lines if line.get("who") == "ours"]
  if not ours:
    raise ValueError("no measurement of this project")
  limits = [line["ceilings"] for line in ours]
  versions, machine = ours[0]["versions"], ours[0]["machine"]
  head = [
    f"{machine['device']}, jax {versions['jax']}: matmuls up to "
    f"{max(x['gflops'] for x in limits) / 1000:.3g} TFLOP/s, copies up to "
    f"{max(x['copy_gb_per_s'] for x in limits):.4g} GB/s, "
    "each ceiling measured with its line.",
    "",
  ]
  cells = [list(_HEAD), ["---"] * len(_HEAD), *map(row, ours)]
  return "\n".join(head + [f"| {' | '.join(x)} |" for x in cells])


def main(argv: Sequence[str] | None = None) -> int:
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.table",
    description=__doc__,
  )
  parser.add_argument("file", type=pathlib.Path, help="lines of benchmarks.run")
  path = parser.parse_args(argv).file
  try:
    text = path.read_text(encoding="utf-8")
    print(table([json.loads(x) for x in text.splitlines()]))
  except (OSError, ValueError, KeyError) as error:
    print(f"error: {path}: {error}", file=sys.stderr)
    print("  fix: give a file that benchmarks.run wrote", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
