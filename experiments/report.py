"""Writes one page of all studies whose runs are complete.

  python -m experiments.report --workdir=runs/study
  python -m experiments.report --workdir=runs/study --output=docs/results \\
    --earlier=docs/results/results.json

Reads the runs of `experiments.study` and runs nothing itself. Writes
index.html, results.json and figures/ into the workdir, or into --output.
docs/results/index.html is such a page. Studies that are not complete in the
workdir are taken from --earlier, if it is given.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Sequence

from experiments import studies
from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.report import study_page
from instructgpt_jax.runs import files
from instructgpt_jax.studies import study as study_lib


def build(workdir: str, output: str = "", earlier: str = "") -> pathlib.Path:
  """Writes the page, prints its summary and path, and returns the path.

  Args:
    workdir: directory of the runs.
    output: directory of the page; by default the workdir.
    earlier: results.json that has the studies which are not complete; may be
      that of `output`.
  """
  scale = study_lib.read_size(workdir)
  results = study_lib.collect_results(
    list(studies.ALL.values()),
    scale,
    workdir,
    study_lib.read_seconds(workdir),
    machine(),
  )
  if earlier:
    results, taken = study_lib.add_earlier(
      results, files.read_json(earlier), earlier
    )
    print(f"from {earlier}: {', '.join(taken) or 'no study'}")
  path = study_page.write(results, output or workdir)
  print(study_page.terminal_summary(results))
  print(f"report: {path}")
  return path


def machine() -> str:
  """Describes the hardware in a few words."""
  cores = len(os.sched_getaffinity(0))
  return f"{cores} CPU cores, {platform.machine()}"


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status; 2 for a user error."""
  streams.accept_all_text()
  parser = CommandParser(
    prog="python -m experiments.report",
    description=__doc__,
  )
  parser.add_argument("--workdir", required=True, help="directory of the runs")
  parser.add_argument("--output", default="", help="directory of the page")
  parser.add_argument(
    "--earlier",
    default="",
    help="results.json of a page; has the studies that are not complete here",
  )

  def run() -> None:
    arguments = parser.parse_args(argv)
    build(arguments.workdir, arguments.output, arguments.earlier)

  return launch.run_with_errors(run)


if __name__ == "__main__":
  sys.exit(main())
