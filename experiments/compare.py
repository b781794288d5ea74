"""Compares two models that experiments.evaluate measured, item by item.

  python -m experiments.compare --models=runs/measured_base,runs/measured_ppo

Prints for each measure both means and the difference, second less first, with
a 95 % interval: a bootstrap over the prompts, items or rows that both models
have. The first row is the win rate of the second model by the judge's score,
where a tie counts ½. --output=FILE also writes the figures as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import paired
from instructgpt_jax.runs import files


def run(argv: Sequence[str] | None) -> None:
  """Runs the command line.

  Raises:
    UserError: a flag is wrong, or the models have other prompts.
  """
  parser = CommandParser(
    prog="python -m experiments.compare", description=__doc__
  )
  add = parser.add_argument
  add("--models", required=True, help="two workdirs of experiments.evaluate")
  add("--output", default="", help="file that receives the figures, as JSON")
  add("--overwrite", action="store_true", help="replace the file")
  flags = parser.parse_args(argv)
  first, _, second = flags.models.partition(",")
  if not first or not second or "," in second:
    raise UserError(
      f"{flags.models!r} is not WORKDIR,WORKDIR",
      field="--models",
      fix="give two workdirs of experiments.evaluate",
      code="bad_model",
    )
  if flags.output:
    files.check_output(
      flags.output, field="--output", overwrite=flags.overwrite
    )
  names = first, second
  comparison = paired.compare(
    paired.read_answers(first), paired.read_answers(second), names
  )
  sys.stdout.write(paired.to_markdown(comparison, names))
  if flags.output:
    files.write_json_atomic(
      flags.output,
      {
        "models": names,
        "measures": {
          name: measure.as_dict()
          for name, measure in comparison.measures.items()
        },
        "left_out": comparison.left_out,
      },
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status; 2 for a user error."""
  return launch.run_with_errors(lambda: run(argv))


if __name__ == "__main__":
  sys.exit(main())
