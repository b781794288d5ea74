"""Makes instructions whose fulfilment a program checks, and checks answers.

  python -m instructgpt_jax.instructions write --to=DIR
  python -m instructgpt_jax.chat --checkpoint=MODEL \\
    --prompts=DIR/test.jsonl --output=answers.jsonl
  python -m instructgpt_jax.instructions check --items=DIR/test.jsonl \\
    answers.jsonl OTHER_MODELS_ANSWERS.jsonl
  python -m instructgpt_jax.instructions rank --items=DIR/train.jsonl \\
    --to=rankings.jsonl ANSWERS.jsonl MORE_ANSWERS.jsonl

`write` makes train.jsonl and test.jsonl, which share no topic. `check` prints
the share of answers that fulfil their instruction, with a 95 % interval over
instructions, by kind and model. `rank` writes rankings for a reward model:
answers that fulfil their instruction come first.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from instructgpt_jax import statistics, streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.instructions import items as items_lib
from instructgpt_jax.instructions import kinds
from instructgpt_jax.instructions.items import Item
from instructgpt_jax.runs import files

ALL = "all kinds"


def write(to: str, per_kind: int, test_per_kind: int, seed: int) -> None:
  """Writes train.jsonl and test.jsonl into a directory."""
  paths = {s: pathlib.Path(to) / f"{s}.jsonl" for s in ("train", "test")}
  for path in paths.values():
    files.check_output(path, field="--to", overwrite=False)
  made = {
    "train": items_lib.make_items("train", per_kind, seed),
    "test": items_lib.make_items("test", test_per_kind, seed),
  }
  files.make_directory(to)
  for split, items in made.items():
    items_lib.write_items(paths[split], items)
    print(f"{paths[split]}: {len(items)} instructions")


def shares(
  items: Sequence[Item], answers: dict[str, list[str]], seed: int = 0
) -> dict[str, statistics.Interval]:
  """Computes the share of fulfilled instructions.

  Args:
    items: the instructions.
    answers: prompt → answers, see `items.read_answers`.
    seed: seed of the bootstrap.

  Returns:
    Kind → share with its 95 % interval; `ALL` is over all instructions.
  """
  fulfilled: dict[str, list[float]] = {ALL: []}
  for item in items:
    texts = answers[item.prompt]
    share = sum(map(item.is_fulfilled, texts)) / len(texts)
    fulfilled[ALL].append(share)
    fulfilled.setdefault(item.kind, []).append(share)
  order = [ALL, *(kind for kind in kinds.KINDS if kind in fulfilled)]
  return {
    kind: statistics.bootstrap_interval(fulfilled[kind], seed=seed, share=True)
    for kind in order
  }


def check(items_path: str, paths: Sequence[str], output: str) -> None:
  """Prints a table of shares, a column for each file of answers."""
  if output:
    files.check_output(output, field="--output", overwrite=False)
  items = _read_items(items_path)
  prompts = [item.prompt for item in items]
  columns = {
    path: shares(items, items_lib.read_answers(path, prompts)) for path in paths
  }
  width = max(20, *(len(path) for path in paths))
  print("  ".join([f"{'':10}", *(f"{path:>{width}}" for path in paths)]))
  for kind in next(iter(columns.values())):
    cells = (f"{column[kind]!s:>{width}}" for column in columns.values())
    print("  ".join([f"{kind:10}", *cells]))
  if output:
    result = {
      path: {kind: interval.as_dict() for kind, interval in column.items()}
      for path, column in columns.items()
    }
    files.write_json_atomic(output, result)


def rank(items_path: str, paths: Sequence[str], to: str) -> None:
  """Writes rankings of each instruction's answers, the fulfilled ones first.

  Equal answers count once. Instructions whose answers are all fulfilled, or
  none of them, have no ranking.
  """
  files.check_output(to, field="--to", overwrite=False)
  items = _read_items(items_path)
  prompts = [item.prompt for item in items]
  files_ = [items_lib.read_answers(path, prompts) for path in paths]
  rankings = []
  for item in items:
    answers = dict.fromkeys(
      text for file in files_ for text in file[item.prompt] if text.strip()
    )
    ranks = [1 if item.is_fulfilled(text) else 2 for text in answers]
    if len(set(ranks)) == 2:
      rankings.append(
        {"prompt": item.prompt, "completions": [*answers], "ranks": ranks}
      )
  if not rankings:
    raise UserError(
      "no instruction has both a fulfilled and an unfulfilled answer",
      field="ANSWERS",
      fix="give more answers to each instruction, such as by other --seed",
      code="nothing_to_rank",
    )
  files.write_jsonl_atomic(to, rankings)
  print(
    f"{to}: {len(rankings)} rankings; {len(items) - len(rankings)} instructions"
    " have none, since their answers are equally good"
  )


def _read_items(path: str) -> list[Item]:
  items = items_lib.read_items(path)
  if not items:
    raise UserError(
      "has no instruction",
      file=path,
      field="--items",
      fix="give a file that `write` has made",
      code="no_items",
    )
  return items


def _parser() -> CommandParser:
  parser = CommandParser(
    prog="python -m instructgpt_jax.instructions", description=__doc__
  )
  add = parser.add_argument
  add("command", choices=("write", "check", "rank"), help="what to do")
  add("answers", nargs="*", metavar="ANSWERS", help="JSONL files of answers")
  add("--items", default="", help="instructions that were answered")
  add("--to", default="", help="directory of `write`, file of `rank`")
  add("--output", default="", help="JSON file for the table of `check`")
  add(
    "--per_kind",
    type=int,
    default=60,
    help="training instructions of each kind (default 60)",
  )
  add(
    "--test_per_kind",
    type=int,
    default=40,
    help="test instructions of each kind (default 40)",
  )
  add("--seed", type=int, default=0, help="seed of `write` (default 0)")
  return parser


def _run(argv: Sequence[str] | None) -> None:
  flags = _parser().parse_intermixed_args(argv)
  if flags.command == "write":
    _require(flags, "to")
    _refuse(flags, "answers", "items", "output")
    for name in ("per_kind", "test_per_kind"):
      if getattr(flags, name) < 1:
        raise UserError(
          f"is {getattr(flags, name)}, not 1 or more",
          field=f"--{name}",
          fix="give a positive number",
          code="bad_flag",
        )
    write(flags.to, flags.per_kind, flags.test_per_kind, flags.seed)
  elif flags.command == "check":
    _require(flags, "items", "answers")
    _refuse(flags, "to")
    check(flags.items, flags.answers, flags.output)
  else:
    _require(flags, "items", "answers", "to")
    _refuse(flags, "output")
    rank(flags.items, flags.answers, flags.to)


def _name(flag: str) -> str:
  return "ANSWERS" if flag == "answers" else f"--{flag}"


def _require(flags: argparse.Namespace, *names: str) -> None:
  for name in names:
    if not getattr(flags, name):
      raise UserError(
        f"{flags.command} needs {_name(name)}",
        fix=f"add {_name(name)}",
        code="bad_flag",
      )


def _refuse(flags: argparse.Namespace, *names: str) -> None:
  for name in names:
    if getattr(flags, name):
      raise UserError(
        f"{flags.command} does not use {_name(name)}",
        fix="leave it out",
        code="bad_flag",
      )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  streams.accept_all_text()
  return launch.run_with_errors(lambda: _run(argv))


if __name__ == "__main__":
  sys.exit(main())
