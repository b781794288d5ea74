"""Plans memory and speed of an experiment on chips that are not attached.

  python -m instructgpt_jax.planner --experiment=ppo_ptx --preset=175b \\
    --topology=v5p:8x8x8 --mesh.fsdp=64 --mesh.tensor=8
  python -m instructgpt_jax.planner --experiment=sft --preset=1.3b \\
    --topology=h100:8 --sweep_mesh

With libtpu (the extra `tpu`), every program of the experiment is compiled for
a TPU topology. Without it, for GPUs and with --compile=false, costs are
estimates.
All other flags are the experiment's. See docs/planning.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import jax

from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.planner import command


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into its own flags and the experiment's."""
  parser = CommandParser(
    prog="python -m instructgpt_jax.planner",
    description=__doc__,
  )
  add = parser.add_argument
  add("--experiment", required=True, help="experiment, such as ppo_ptx")
  add("--preset", default="1.3b", help="preset of the experiment")
  add("--topology", required=True, help="chips, such as v5p:8x8x8 or h100:64")
  add(
    "--reward_preset",
    default="",
    help="preset of PPO's reward model; by default 6b, as in the paper, or the"
    " policy's network below 125M parameters",
  )
  add("--price", type=_price, default=0.0, help="price per chip hour")
  add(
    "--compile",
    default="auto",
    choices=("auto", "true", "false"),
    help="whether to compile the programs",
  )
  add(
    "--sweep_mesh", action="store_true", help="rank mesh layouts by estimates"
  )
  return parser.parse_known_args(argv)


def _price(text: str) -> float:
  value = float(text)
  if not 0 <= value < math.inf:
    raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
  return value


def main(argv: Sequence[str]) -> int:
  """Prints a plan; returns 2 after a user error, 1 if it does not fit."""
  fits = True

  def run() -> None:
    nonlocal fits
    process_settings.silence_libraries()
    jax.config.update("jax_platforms", "cpu")  # attached chips are not used
    fits = command.run(*parse(argv))

  return launch.run_with_errors(run) or int(not fits)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
