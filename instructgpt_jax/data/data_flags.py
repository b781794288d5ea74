"""Command-line flags of the data commands."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.configs import presets

_SOURCES = ("demonstrations", "comparisons", "prompts", "pretraining")


def add_paths(parser: argparse.ArgumentParser) -> None:
  """Adds the paths of a source."""
  parser.add_argument(
    "paths",
    nargs="+",
    metavar="PATH",
    help="a file, directory, quoted glob, comma list, tfds:name/config:split or"
    " hf:org/name",
  )


def add_data(parser: argparse.ArgumentParser) -> None:
  """Adds --preset and the flags of the data section."""
  parser.add_argument(
    "--preset",
    default="",
    help="preset whose limits apply: " + ", ".join(presets.NAMES),
  )
  for name in configs.options(configs.Data):
    if name not in (*_SOURCES, "explicit"):
      add(parser, configs.Data, "data", name)


def add(
  parser: argparse.ArgumentParser, section: type, prefix: str, name: str
) -> None:
  """Adds the flag of a config field, with and without its section's name."""
  option = configs.options(section)[name]
  default = vars(section())[name]
  parser.add_argument(
    f"--{prefix}.{name}",
    f"--{name}",
    dest=name,
    type=_value(option),
    default=None,
    metavar="VALUE",
    help=f"{option.help} (default: the preset's, or {default!r})".replace(
      "%", "%%"
    ),
  )


def _value(option: configs.Option) -> Any:
  """Returns the function that reads a flag's text; none stays text."""

  def parse(text: str) -> Any:
    if option.normalize(text) is None or option.type is str:
      return text
    if option.type is not bool:
      return option.type(text)
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
      raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ("true", "1", "yes")

  return parse


def changes(args: argparse.Namespace, section: type) -> dict[str, Any]:
  """Returns the fields of a config section that flags set."""
  return {
    name: option.normalize(value)
    for name, option in configs.options(section).items()
    if (value := getattr(args, name, None)) is not None
  }


def data(args: argparse.Namespace) -> configs.Data:
  """Returns the data section of the preset, changed by the flags."""
  section = presets.sft(args.preset).data if args.preset else configs.Data()
  changed = changes(args, configs.Data)
  return dataclasses.replace(
    section, **changed, explicit=",".join(sorted(changed))
  )
