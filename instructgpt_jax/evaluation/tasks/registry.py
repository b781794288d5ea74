"""Names of all tasks, and lists of them as flags write them."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import (
  choices,
  groups,
  made_here,
  questions,
  texts,
  truthfulqa,
  winograd,
)
from instructgpt_jax.evaluation.tasks.task import Item, Task

TASKS: Mapping[str, Task] = {
  task.name: task
  for task in (
    truthfulqa.TRUTHFULQA,
    groups.REALTOXICITY,
    groups.WINOGENDER,
    groups.CROWS_PAIRS,
    questions.SQUAD_V2,
    questions.DROP,
    questions.QUAC,
    choices.HELLASWAG,
    choices.RTE,
    choices.SST2,
    winograd.WSC,
    choices.LAMBADA,
    texts.WMT15,
    texts.CNN_DAILYMAIL,
    texts.TLDR,
    made_here.GENERALISATION,
    made_here.SIMPLE_MISTAKES,
  )
}
# Tasks whose prompts differ in the evaluation harness, with its prompts.
HARNESS: Mapping[str, Task] = {
  "hellaswag": dataclasses.replace(choices.HELLASWAG, instructions={"": ""}),
  "rte": dataclasses.replace(choices.RTE, read=choices.read_rte_harness),
  "sst2": dataclasses.replace(
    choices.SST2, read=choices.read_sst2_harness, instructions={"": ""}
  ),
  "wsc": dataclasses.replace(
    winograd.WSC, read=winograd.read_harness, instructions={"": ""}
  ),
}
PROMPTS = ("paper", "harness")


def column(task: Task, variant: str) -> str:
  """Returns the name of a task's variant in tables of several tasks."""
  return f"{task.name}_{variant}" if variant else task.name


COLUMNS = tuple(
  column(task, variant)
  for task in TASKS.values()
  for variant in task.instructions
)


@dataclasses.dataclass(frozen=True)
class Questions:
  """A task with the items that are asked.

  Attributes:
    task: the task.
    items: the items.
    pool: items that examples are drawn from.
    unused: what of the file is not used → how often.
  """

  task: Task
  items: Sequence[Item]
  pool: Sequence[Item] = ()
  unused: Mapping[str, int] = dataclasses.field(default_factory=dict)


def parse(spec: str, field: str) -> dict[str, str]:
  """Parses a comma list of TASK=FILE, or TASK where no file is needed.

  Args:
    spec: the list.
    field: flag that it comes from, for errors.

  Returns:
    Task → its file, "" without one.

  Raises:
    UserError: `bad_task`, an element is none, or a task is named twice.
  """
  tasks: dict[str, str] = {}
  for part in filter(None, (part.strip() for part in spec.split(","))):
    name, _, path = part.partition("=")
    problem, fix = "", ""
    if name not in TASKS:
      problem = f"there is no task {name!r}"
      fix = configs.nearest(name, TASKS) or f"tasks are {', '.join(TASKS)}"
    elif name in tasks:
      problem, fix = f"{name} is named twice", "name each task once"
    elif not path and TASKS[name].expected:
      problem = f"{name} needs a file"
      fix = f"write {name}=FILE, with {TASKS[name].expected}"
    elif path and not TASKS[name].expected:
      problem, fix = f"{name} has no file", f"write {name} alone"
    if problem:
      raise UserError(problem, field=field, fix=fix, code="bad_task")
    tasks[name] = path
  return tasks


def require_packages(names: Iterable[str], field: str) -> None:
  """Refuses tasks whose score needs a package that is not installed.

  Raises:
    UserError: `missing_package`.
  """
  for name in names:
    for package in TASKS[name].packages:
      if importlib.util.find_spec(package) is None:
        pip_name = package.replace("_", "-")
        raise UserError(
          f"{name} is scored by the package {pip_name}, which is not installed",
          field=field,
          fix=f"pip install {pip_name}, or leave {name} out",
          code="missing_package",
        )


def load(
  name: str,
  path: str,
  *,
  count: int,
  seed: int,
  examples: str = "",
  prompts: str = "paper",
) -> Questions:
  """Reads a task's file and draws the items that are asked.

  Args:
    name: the task, a key of `TASKS`.
    path: its file; "" for tasks that need none.
    count: items to draw; 0 takes all.
    seed: seed of the draw.
    examples: file of the items that examples are drawn from; "" draws them
      from `path` too.
    prompts: one of `PROMPTS`: the paper's, or the evaluation harness's.

  Raises:
    UserError: a file cannot be read, is of another task or has no items.
  """
  task = TASKS[name]
  if prompts == "harness":
    task = HARNESS.get(name, task)
  unused: Counter[str] = Counter()
  items = _read(task, path, unused)
  pool = _read(task, examples, Counter()) if examples else items
  if count and count < len(items):
    # In the file's order, so that progress and results are easy to compare.
    drawn = _draw(items, count, random.Random(f"{name} {seed}"))
    items = [items[i] for i in sorted(drawn)]
  return Questions(task, items, pool, unused)


def _draw(
  items: Sequence[Item], count: int, generator: random.Random
) -> list[int]:
  """Draws indices of items, in turn from each stratum."""
  strata: dict[str, list[int]] = {}
  for index, item in enumerate(items):
    strata.setdefault(item.stratum, []).append(index)
  samples = [
    generator.sample(indices, min(count, len(indices)))
    for indices in strata.values()
  ]
  turns = itertools.chain.from_iterable(itertools.zip_longest(*samples))
  return [index for index in turns if index is not None][:count]


def _read(task: Task, path: str, unused: Counter[str]) -> list[Item]:
  items = list(task.read(path, unused))
  if not items:
    raise UserError(
      "has no items",
      file=path,
      fix=f"give {task.expected}",
      code="no_items",
    )
  return items


def read_tasks(spec: str, count: int, seed: int, field: str) -> list[Questions]:
  """Reads the zero-shot items of a list of tasks.

  Args:
    spec: see `parse`.
    count: items drawn from each file; 0 takes all.
    seed: seed of the draw.
    field: flag of the list, for errors.
  """
  tasks = parse(spec, field)
  require_packages(tasks, field)
  for name in tasks:
    if TASKS[name].is_judged:
      raise UserError(
        f"{name} has no measure without its {TASKS[name].judge} judge",
        field=field,
        fix="measure it by `python -m experiments.tasks`",
        code="bad_task",
      )
  return [
    load(name, path, count=count, seed=seed) for name, path in tasks.items()
  ]
