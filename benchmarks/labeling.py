"""Labels by simulated labelers over HTTP: correct under kills, and fast.

  python -m benchmarks.labeling accept --labelers=20 --prompts=500 --kills=2
  python -m benchmarks.labeling load --labelers=100 --seconds=60
  python -m benchmarks.labeling agreement --prompts=500

`accept` checks that labels are complete and right (`labeling_acceptance.py`);
`--train` also trains a small reward model on the export and on rankings that
are written directly. `load` measures how long saving takes
(`labeling_load.py`), and `agreement` computes what the tastes and the noise of
the world give (`labeling_agreement.py`). The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.labeling_acceptance import accept
from benchmarks.labeling_agreement import expected_figures
from benchmarks.labeling_load import load
from benchmarks.labeling_site import Failed, check
from instructgpt_jax import streams


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a benchmark, and prints its figures as JSON."""
  streams.accept_all_text()
  flags = _parser().parse_args(argv)
  with tempfile.TemporaryDirectory(prefix="labeling-") as name:
    directory = pathlib.Path(flags.directory or name)
    directory.mkdir(parents=True, exist_ok=True)
    try:
      if flags.command == "accept":
        figures = accept(
          directory,
          labelers=flags.labelers,
          prompts=flags.prompts,
          completions=flags.completions,
          overlap=flags.overlap,
          kills=flags.kills,
          train=flags.train,
        )
      elif flags.command == "agreement":
        figures = expected_figures(flags.prompts, flags.completions)
      else:
        figures = load(
          directory,
          labelers=flags.labelers,
          seconds=flags.seconds,
          think=flags.think,
          completions=flags.completions,
        )
        print(json.dumps(figures), flush=True)
        for name in ("draft", "submit"):
          p99 = figures[name]["p99_ms"]
          check(p99 < flags.p99_ms, f"p99 of {name} is {p99} ms")
        most = figures["memory_mib"]["most"]
        check(most < flags.memory_mib, f"the server used {most} MiB at most")
    except Failed as error:
      print(f"failed: {error}", file=sys.stderr)
      return 1
  print(json.dumps(figures))
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.labeling",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  for name, labelers in (("accept", 20), ("load", 100)):
    command = commands.add_parser(name)
    command.add_argument("--labelers", type=int, default=labelers)
    command.add_argument("--completions", type=int, default=6)
    command.add_argument(
      "--directory", default="", help="directory that is kept (default: none)"
    )
    if name == "accept":
      command.add_argument("--prompts", type=int, default=500)
      command.add_argument("--overlap", type=int, default=3)
      command.add_argument("--kills", type=int, default=2)
      command.add_argument("--train", action="store_true")
    else:
      command.add_argument("--seconds", type=float, default=60.0)
      command.add_argument("--think", type=float, default=2.0)
      command.add_argument("--p99_ms", type=float, default=200.0)
      command.add_argument("--memory_mib", type=float, default=400.0)
  agreement = commands.add_parser("agreement")
  agreement.add_argument("--prompts", type=int, default=500)
  agreement.add_argument("--completions", type=int, default=6)
  agreement.set_defaults(directory="")
  return parser


if __name__ == "__main__":
  sys.exit(main())
