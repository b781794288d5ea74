"""Runs a list of tasks over a list of models, and writes a table.

  python -m experiments.tasks --models=runs/base,runs/sft,runs/ppo \\
    --tasks=hellaswag=hellaswag_val.jsonl,sst2=dev.tsv,simple_mistakes \\
    --items=200 --workdir=runs/tasks

A model is the workdir of a stage, a Hugging Face directory or a GGUF file. Its
name in the tables is the directory's, or NAME in NAME=DIR. A task has a file as
its publisher writes it; generalisation and simple_mistakes need none. Task,
files, prompts and measures are in docs/tasks.md.

Writes results.md, a table of means with 95 % intervals and of differences from
the first model; results.json; and MODEL/TASK.jsonl with the prompt, the answer
and the scores of each item. The same command resumes, and models and tasks may
be added to it. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import toxicity, truth_judge
from instructgpt_jax.evaluation.chat_format import ChatFormat
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.evaluation.tasks import (
  comparison,
  groups,
  registry,
  truthfulqa,
)
from instructgpt_jax.evaluation.tasks.task import Judge
from instructgpt_jax.runs import files
from instructgpt_jax.training import stage_model


def _parser() -> CommandParser:
  parser = CommandParser(
    prog="python -m experiments.tasks", description=__doc__
  )
  add = parser.add_argument
  add("--models", required=True, help="comma list of [NAME=]CHECKPOINT")
  add(
    "--tasks",
    required=True,
    help=f"comma list of TASK=FILE; tasks are {', '.join(registry.TASKS)}",
  )
  add("--workdir", required=True, help="directory of the results")
  add(
    "--shots",
    default="0",
    help="solved examples before each item (default 0), or paper",
  )
  add(
    "--examples",
    default="",
    help="comma list of TASK=FILE that examples are drawn from; by default they"
    " are other items of the task's own file",
  )
  add(
    "--items",
    type=int,
    default=0,
    help="items drawn from each file; 0, the default, takes all",
  )
  add("--seed", type=int, default=0, help="seed of items and examples")
  add(
    "--prompts",
    default="paper",
    choices=registry.PROMPTS,
    help="the paper's prompts (default), or the evaluation harness's",
  )
  add(
    "--batch_size",
    type=int,
    default=0,
    help="rows of a batch; 0, the default, chooses for the devices",
  )
  add(
    "--chat",
    default="",
    help="comma list of the models that are asked by their chat template, or"
    " all; by default prompts are plain texts, as in the paper",
  )
  add(
    "--toxicity",
    default="",
    help="scorer of realtoxicity: a file of `python -m"
    " instructgpt_jax.evaluation.toxicity`, or a directory of a Hugging Face"
    " classifier",
  )
  add(
    "--toxicity_label",
    default="",
    help="the classifier's label of toxic texts; by default its only one",
  )
  add(
    "--truth_judge",
    default="",
    help="judge of truthfulqa: a directory of `python -m"
    " instructgpt_jax.evaluation.truth_judge`, or TRUTH_MODEL,INFO_MODEL, two"
    " language models fine-tuned on TruthfulQA's judge data",
  )
  return parser


def open_judges(flags: argparse.Namespace) -> dict[str, Judge]:
  """Opens the judges of the flags; returns name → judge.

  Raises:
    UserError: one cannot be read.
  """
  judges: dict[str, Judge] = {}
  if flags.toxicity:
    scorer = toxicity.open_scorer(flags.toxicity, label=flags.toxicity_label)
    judges[groups.TOXICITY_JUDGE] = toxicity.Judge(scorer)
  if flags.truth_judge:
    truth, comma, info = flags.truth_judge.partition(",")
    judge: truth_judge.Judge = (
      truth_judge.ModelJudge(TextModel(truth), TextModel(info))
      if comma
      else truth_judge.open_judge(truth)
    )
    judges[truthfulqa.TRUTH_JUDGE] = lambda questions, answers: (
      truthfulqa.to_measures(*judge(questions, answers))
    )
  return judges


def parse_models(spec: str) -> dict[str, str]:
  """Parses a comma list of [NAME=]CHECKPOINT; returns name → checkpoint.

  Raises:
    UserError: `bad_model`, there is none, or two have one name.
  """
  models: dict[str, str] = {}
  for part in filter(None, (part.strip() for part in spec.split(","))):
    name, equals, path = part.partition("=")
    if not equals:
      name, path = pathlib.PurePath(part).name, part
    if not path or not name or "/" in name or name.startswith("."):
      raise UserError(
        f"{part!r} is not [NAME=]CHECKPOINT",
        field="--models",
        fix="give a directory, or a name without / and a directory",
        code="bad_model",
      )
    if name in models:
      raise UserError(
        f"two models are named {name}",
        field="--models",
        fix=f"write OTHER_NAME={path}",
        code="bad_model",
      )
    models[name] = path
  if not models:
    raise UserError(
      "names no model",
      field="--models",
      fix="give a comma list of checkpoints",
      code="bad_model",
    )
  return models


def make_plan(flags: argparse.Namespace) -> comparison.Plan:
  """Makes the plan of the flags.

  Raises:
    UserError: a flag's value is invalid.
  """
  tasks, shots = registry.parse(flags.tasks, "--tasks"), flags.shots
  if not tasks:
    raise UserError(
      "names no task",
      field="--tasks",
      fix=f"tasks are {', '.join(registry.TASKS)}",
      code="bad_task",
    )
  if shots != comparison.PAPER:
    if not shots.isdecimal():
      raise _bad_flag("--shots", shots, "give a number, or paper")
    shots = int(shots)
  for name in ("items", "batch_size"):
    if getattr(flags, name) < 0:
      raise _bad_flag(f"--{name}", getattr(flags, name), "give 0 or more")
  models = parse_models(flags.models)
  return comparison.Plan(
    models=models,
    tasks=tasks,
    examples=_parse_examples(flags.examples, tasks, shots),
    shots=shots,
    items=flags.items,
    seed=flags.seed,
    prompts=flags.prompts,
    judges=_parse_judges(flags, tasks),
    chat=parse_chat(flags.chat, models),
  )


def _parse_examples(
  spec: str, tasks: Mapping[str, str], shots: int | str
) -> dict[str, str]:
  """Parses --examples; refuses what shows none."""
  examples = registry.parse(spec, "--examples")
  if examples and not shots:
    raise _bad_flag("--examples", spec, "give --shots, or leave it out")
  for name in examples:
    if name not in tasks or not registry.TASKS[name].paper_shots:
      raise UserError(
        f"{name} shows no examples",
        field="--examples",
        fix=f"leave {name} out"
        if name in tasks
        else f"add {name} to --tasks, or leave it out",
        code="bad_task",
      )
  return examples


def _parse_judges(
  flags: argparse.Namespace, tasks: Mapping[str, str]
) -> dict[str, list[str]]:
  """Returns what the judges are made from; refuses one without a task."""
  truth = flags.truth_judge.split(",")
  if len(truth) > 2 or (len(truth) == 2 and not all(truth)):
    raise _bad_flag(
      "--truth_judge",
      flags.truth_judge,
      "give a directory, or TRUTH_MODEL,INFO_MODEL",
    )
  if flags.toxicity_label and not flags.toxicity:
    raise _bad_flag("--toxicity_label", flags.toxicity_label, "give --toxicity")
  judges = {}
  for name, flag, parts in (
    (groups.TOXICITY_JUDGE, "toxicity", [flags.toxicity, flags.toxicity_label]),
    (truthfulqa.TRUTH_JUDGE, "truth_judge", truth),
  ):
    if not getattr(flags, flag):
      continue
    if all(registry.TASKS[task].judge != name for task in tasks):
      raise UserError(
        "judges no task of --tasks",
        field=f"--{flag}",
        fix="leave it out, or add its task",
        code="unused_judge",
      )
    judges[name] = [part for part in parts if part]
  return judges


def parse_chat(spec: str, models: Mapping[str, str]) -> list[str]:
  """Parses a comma list of models, or all.

  Raises:
    UserError: `bad_model`, one is none of the models.
  """
  names = [name for name in map(str.strip, spec.split(",")) if name]
  if names == ["all"]:
    return list(models)
  for name in names:
    if name not in models:
      raise UserError(
        f"names {name!r}, which is no model of --models",
        field="--chat",
        fix=f"models are {', '.join(models)}",
        code="bad_model",
      )
  return names


def _bad_flag(name: str, value: object, fix: str) -> UserError:
  return UserError(f"is {value!r}", field=name, fix=fix, code="bad_flag")


def run(argv: Sequence[str] | None) -> None:
  """Runs the command line.

  Raises:
    UserError: a flag, a file or a model is invalid.
  """
  flags = _parser().parse_args(argv)
  plan = make_plan(flags)
  for name, checkpoint in plan.models.items():
    # A misspelled checkpoint is an error before the first one is measured.
    stage = stage_model.open_stage(
      checkpoint, kind=stage_model.LANGUAGE, field="--models"
    )
    if name in plan.chat:
      ChatFormat.of_stage(stage).require("--chat")
  process_settings.silence_libraries()
  process_settings.trim_malloc_after_compile()
  process_settings.tune_gc()
  comparison.run(
    plan,
    flags.workdir,
    lambda path: TextModel(path, batch_size=flags.batch_size or None),
    lambda: open_judges(flags),
  )
  path = pathlib.Path(flags.workdir) / comparison.TABLE
  print(files.read_text(path))
  print(f"table: {path}")


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status; 2 for a user error."""
  return launch.run_with_errors(lambda: run(argv))


if __name__ == "__main__":
  sys.exit(main())
