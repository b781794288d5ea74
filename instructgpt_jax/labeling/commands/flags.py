"""Flags of each command; nothing here imports an optional package."""

from __future__ import annotations

import argparse
import math

from instructgpt_jax.cli.listening import whole_number
from instructgpt_jax.cli.parser import CommandParser

PROGRAM = "python -m instructgpt_jax.labeling"
URL = "http://127.0.0.1:8765"
_MAX_INVITATIONS = 1000
# Defaults of the flags that only sampled answers need.
SAMPLING = {
  "completions": 4,
  "num_prompts": 500,
  "task": "ranking",
  "answers": "",
  "temperature": 1.0,
  "max_tokens": 0,
  "seed": 0,
}


def make_parser(description: str | None) -> argparse.ArgumentParser:
  """Returns the parser of all commands; `command` names the one to run."""
  parser = CommandParser(prog=PROGRAM, description=description)
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
  )

  def command(name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text)

  create = command("create", "Makes a project and its store.")
  _add_store(create)
  _add_content(create)
  create.add_argument(
    "--title", default="", help="title on the pages (default: Labeling)"
  )
  create.add_argument(
    "--overlap",
    type=whole_number(1, 1000),
    default=1,
    help="labelers of each item (default: 1)",
  )
  create.add_argument(
    "--instructions",
    default="",
    metavar="FILE",
    help="Markdown file with the instructions (default: a short text)",
  )
  add = command("add", "Adds items to a project and its store.")
  _add_store(add)
  _add_content(add)
  serve = command("serve", "Serves the pages of a store.")
  _add_store(serve)
  serve.add_argument(
    "--project",
    default="",
    metavar="FILE",
    help="PROJECT.json that the store is brought up to; a missing store is"
    " made",
  )
  _add_address(serve)
  invite = command("invite", "Prints links that invite people.")
  _add_store(invite)
  _add_invitation(invite)
  export = command("export", "Writes labels as training data.")
  _add_store(export)
  _add_export(export)
  agreement = command("agreement", "Prints how labelers agree.")
  _add_store(agreement)
  example = command("example", "Serves an example with simulated labels.")
  example.add_argument(
    "--workdir",
    default="runs/labeling",
    metavar="DIR",
    help="directory of the example (default: runs/labeling)",
  )
  example.add_argument(
    "--demo",
    default="runs/demo",
    metavar="DIR",
    help="workdir of the demo, whose prompts are used (default: runs/demo)",
  )
  _add_address(example)
  return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--store",
    required=True,
    metavar="PATH",
    help="SQLite file, or postgresql://USER:PASSWORD@HOST/NAME",
  )


def _add_content(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--project",
    default="PROJECT.json",
    metavar="FILE",
    help="description of the project (default: PROJECT.json)",
  )
  for name, text in (
    ("rank", "prompts with answers to rank"),
    ("compare", "prompts with two answers each to compare"),
    ("demonstrate", "prompts to answer"),
    ("screen", "screening items for candidates"),
  ):
    add(f"--{name}", default="", metavar="FILE", help=text)
  add(
    "--write",
    type=whole_number(1, 100_000),
    default=0,
    metavar="N",
    help="number of prompts that labelers write and answer",
  )
  add(
    "--sample_from",
    default="",
    metavar="DIR,DIR",
    help="workdirs of stages that answer --prompts",
  )
  add("--prompts", default="", metavar="FILE", help="prompts to sample from")
  add(
    "--completions",
    type=whole_number(2, 16),
    default=SAMPLING["completions"],
    help="answers to each prompt, over all stages (default: 4)",
  )
  add(
    "--num_prompts",
    type=whole_number(1, 10**6),
    default=SAMPLING["num_prompts"],
    help="prompts that are answered at most (default: 500)",
  )
  add(
    "--task",
    choices=("ranking", "comparison"),
    default=SAMPLING["task"],
    help="what sampled answers are for; comparison pairs the answers of"
    " different stages (default: ranking)",
  )
  add(
    "--answers",
    default=SAMPLING["answers"],
    metavar="FILE",
    help="file that receives sampled answers (default: answers.jsonl beside"
    " the project)",
  )
  add(
    "--temperature",
    type=_temperature,
    default=SAMPLING["temperature"],
    help="temperature of sampling (default: 1)",
  )
  add(
    "--max_tokens",
    type=whole_number(0, 10**6),
    default=SAMPLING["max_tokens"],
    help="longest answer (default: the limit of each stage)",
  )
  add(
    "--seed",
    type=whole_number(0, 2**31 - 1),
    default=SAMPLING["seed"],
    help="seed of prompts, answers and their order (default: 0)",
  )


def _add_address(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--host",
    default="127.0.0.1",
    help="address to listen on (default: 127.0.0.1)",
  )
  add(
    "--port",
    type=whole_number(0, 65535),
    default=8765,
    help="port to listen on; 0 chooses a free one (default: 8765)",
  )
  add(
    "--names",
    default="",
    metavar="NAME,NAME",
    help="further host names under which browsers open the server",
  )
  add(
    "--https",
    action="store_true",
    help="browsers reach the server through a proxy that ends https",
  )
  add(
    "--tokenizer",
    default="",
    metavar="PATH",
    help="tokenizer, or a stage's workdir, that counts tokens as one writes",
  )
  add("--open", action="store_true", help="open the address in a browser")


def _add_invitation(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--role",
    choices=("owner", "reviewer", "labeler", "candidate"),
    default="labeler",
    help="role of the people (default: labeler)",
  )
  add(
    "--count",
    type=whole_number(1, _MAX_INVITATIONS),
    default=1,
    help="number of links; each is for one person (default: 1)",
  )
  add(
    "--held_out",
    action="store_true",
    help="their labels never reach a training file",
  )
  add(
    "--days",
    type=whole_number(1, 365),
    default=14,
    help="days for which a link can be used (default: 14)",
  )
  add("--note", default="", help="note in the owner's list of invitations")
  add(
    "--url",
    default=URL,
    help=f"address of the server in the links (default: {URL})",
  )


def _add_export(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--to", required=True, metavar="DIR", help="directory of the files")
  add(
    "--format",
    choices=("jsonl", "parquet"),
    default="jsonl",
    help="format of the files (default: jsonl)",
  )
  for name, text in (("valid", "validation"), ("test", "tests")):
    add(
      f"--{name}_fraction",
      type=_fraction,
      default=None,
      help=f"share of users, or prompts, for {text} (default: as"
      f" --data.{name}_fraction)",
    )
  add(
    "--keep_personal",
    action="store_true",
    help="keep records with personal information",
  )
  add(
    "--adjudicated",
    choices=("replace", "keep"),
    default="replace",
    help="whether the final label of an item replaces the labelers' own"
    " (default: replace)",
  )


def _temperature(text: str) -> float:
  return _number(text, 10.0)


def _fraction(text: str) -> float:
  return _number(text, 1.0)


def _number(text: str, most: float) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value <= most:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a number from 0 to {most:g}"
    )
  return value
