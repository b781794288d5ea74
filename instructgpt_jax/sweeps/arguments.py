"""Command lines of sweeps and studies: what they have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps.cluster import Slurm


class Parser(argparse.ArgumentParser):
  """Tells a mistake as all commands here do."""

  def error(self, message: str) -> NoReturn:
    """Raises a UserError."""
    raise UserError(message, fix="--help lists the flags")


def _options(text: str) -> dict[str, str]:
  pairs = [part.partition("=") for part in text.split(",")]
  if not all(name and equals for name, equals, _ in pairs):
    raise argparse.ArgumentTypeError(f"{text!r} is not name=value,name=value")
  return {name: value for name, _, value in pairs}


_SLURM: Mapping[str, tuple[Callable[[str], Any], str]] = {
  "partition": (str, "its partition"),
  "minutes": (int, "time limit (60); a longer run is queued again"),
  "gpus": (int, "accelerators"),
  "cpus": (int, "cores"),
  "memory_gb": (float, "memory"),
  "extra": (_options, "more options of sbatch: account=NAME,qos=NAME"),
}


def add_slurm(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a cluster."""
  group = parser.add_argument_group("what each run asks of Slurm")
  for name, (kind, text) in _SLURM.items():
    group.add_argument(
      f"--slurm.{name}", type=kind, metavar=name.upper(), help=text
    )


def slurm(arguments: argparse.Namespace) -> Slurm:
  """What the flags of `add_slurm` ask for."""
  asked = {name: getattr(arguments, f"slurm.{name}") for name in _SLURM}
  return Slurm(**{k: v for k, v in asked.items() if v is not None})
