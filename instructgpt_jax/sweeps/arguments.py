"""Slurm flags of the commands that run sweeps and studies."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from instructgpt_jax.sweeps.cluster import Slurm


def _parse_options(text: str) -> dict[str, str]:
  pairs = [part.partition("=") for part in text.split(",")]
  if not all(name and equals for name, equals, _ in pairs):
    raise argparse.ArgumentTypeError(f"{text!r} is not name=value,name=value")
  return {name: value for name, _, value in pairs}


_SLURM: Mapping[str, tuple[Callable[[str], Any], str]] = {
  "partition": (str, "Slurm partition"),
  "minutes": (int, "time limit in minutes (60); a longer run is queued again"),
  "gpus": (int, "accelerators per run"),
  "cpus": (int, "CPU cores per run"),
  "memory_gb": (float, "memory per run in GB"),
  "extra": (
    _parse_options,
    "further options of sbatch: account=NAME,qos=NAME",
  ),
}


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the --slurm.* flags to a parser."""
  group = parser.add_argument_group("resources of each run on Slurm")
  for name, (kind, text) in _SLURM.items():
    group.add_argument(
      f"--slurm.{name}", type=kind, metavar=name.upper(), help=text
    )


def slurm_resources(arguments: argparse.Namespace) -> Slurm:
  """Returns the resources that the --slurm.* flags request."""
  values = {name: getattr(arguments, f"slurm.{name}") for name in _SLURM}
  return Slurm(**{k: v for k, v in values.items() if v is not None})
