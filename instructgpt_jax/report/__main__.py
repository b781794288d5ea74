"""Prints the table of a finished report; redraws its page or main figure.

  python -m instructgpt_jax.report DIR [--page] [--picture=FILE.svg]
  python -m instructgpt_jax.report DIR --samples [--page] [--sort=reward]

DIR contains a report.json. --page writes report.html beside it. --picture
writes the main figure alone.

--samples prints the answers that a run has written to samples.jsonl while it
trained. DIR is the workdir of a stage, or of a pipeline with several. --page
writes samples.html, where they are grouped by prompt and can be filtered.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys
from collections.abc import Sequence

from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.report import page, samples_table, training_samples
from instructgpt_jax.runs import files


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status."""
  streams.accept_all_text()
  parser = CommandParser(
    prog="python -m instructgpt_jax.report",
    description=__doc__,
  )
  parser.add_argument("directory", type=pathlib.Path)
  parser.add_argument("--page", action="store_true")
  parser.add_argument("--picture", type=pathlib.Path)
  parser.add_argument("--samples", action="store_true")
  chosen = parser.add_argument_group("which samples, and in which order")
  chosen.add_argument(
    "--sort",
    default="",
    help="column, such as reward; -reward prints the highest first",
  )
  chosen.add_argument("--step", type=int)
  chosen.add_argument("--iteration", type=int)
  chosen.add_argument("--prompt", type=int, help="index of a prompt")
  chosen.add_argument("--stop_reason", choices=("end", "limit"))
  return launch.run_with_errors(lambda: _show(parser.parse_args(argv)))


def _show(flags: argparse.Namespace) -> None:
  if flags.samples:
    _show_samples(flags)
    return
  names = training_samples.Choice._fields
  unused = [name for name in names if getattr(flags, name) not in (None, "")]
  if unused:
    raise UserError(
      "chooses samples, and --samples is not given",
      field=f"--{unused[0]}",
      fix="add --samples, or leave it out",
      code="unused_flag",
    )
  if flags.picture and flags.picture.suffix != ".svg":
    raise UserError(
      f"{flags.picture} does not end in .svg; pictures are SVG files",
      field="--picture",
      fix=f"name it {flags.picture.with_suffix('.svg').name}",
      code="not_svg",
    )
  path = flags.directory / page.JSON
  results = files.read_json(path, fix="give the workdir of a finished pipeline")
  if not isinstance(results, dict):
    raise UserError(
      "is not a report",
      file=str(path),
      fix="run the pipeline again",
      code="not_a_report",
    )
  if flags.page:
    files.write_text_atomic(flags.directory / page.HTML, page.render(results))
  if flags.picture:
    files.write_text_atomic(flags.picture, page.picture(results))
  print(page.terminal_table(results))


def _show_samples(flags: argparse.Namespace) -> None:
  """Prints a table of samples for each stage, or writes their page."""
  if flags.picture:
    raise UserError(
      "is the main figure of a report, and --samples shows no report",
      field="--picture",
      fix="leave out one of the two",
      code="unused_flag",
    )
  if flags.page:
    print(samples_table.write_page(flags.directory))
    return
  names = training_samples.Choice._fields
  choice = training_samples.Choice(*(getattr(flags, name) for name in names))
  width = shutil.get_terminal_size((page.WIDTH, 24)).columns
  for stage, rows in training_samples.require_stages(flags.directory).items():
    chosen = training_samples.choose(rows, choice, stage)
    print(f"{stage}\n\n{samples_table.terminal_table(chosen, width)}\n")


if __name__ == "__main__":
  sys.exit(main())
