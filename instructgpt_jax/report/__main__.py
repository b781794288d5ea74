"""Prints the table of a finished report; redraws its page or main figure.

  python -m instructgpt_jax.report DIR [--page] [--picture=FILE.svg]

DIR contains a report.json. --page writes report.html beside it. --picture
writes the main figure alone.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.report import page
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
  return launch.run_with_errors(lambda: _show(parser.parse_args(argv)))


def _show(flags: argparse.Namespace) -> None:
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


if __name__ == "__main__":
  sys.exit(main())
