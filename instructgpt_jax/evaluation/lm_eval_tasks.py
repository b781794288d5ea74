"""Writes lm-eval tasks that read published files instead of a hub.

  python -m instructgpt_jax.evaluation.lm_eval_tasks --data=EVALS --out=TASKS
  python -m instructgpt_jax.evaluation.lm_eval run --include_path TASKS …

A task keeps its name. Its prompts, choices and metrics are those of the
harness, whose own file it includes; only where the data are is new. TASKS
refers to the installed lm-eval, so write it again for another version.

EVALS holds the files as their publishers name them:

  hellaswag/hellaswag.jsonl   lines with ctx_a, ctx_b, endings and label
  sst2/dev.tsv                sentence and label, with or without a header
  lambada/lambada_test.jsonl  lines with text
  truthfulqa/TruthfulQA.csv   the table; the best answer is the right choice,
                              each incorrect answer another one, all closed with
                              a full stop as in the harness's own data
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import lm_eval
from instructgpt_jax.evaluation.tasks import (
  choices,
  records,
  registry,
  truthfulqa,
)
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line

Record = dict[str, Any]


def _objects(path: str, name: str, fields: Sequence[str]) -> Iterator[Record]:
  """Yields the objects of a file, with these fields alone."""
  for record in records.read_records(path, registry.TASKS[name].expected):
    yield {field: record.get(field) for field in fields}


def _hellaswag(path: str) -> Iterator[Record]:
  fields = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
  return _objects(path, "hellaswag", fields)


def _lambada(path: str) -> Iterator[Record]:
  return _objects(path, "lambada", ("text",))


def _sst2(path: str) -> Iterator[Record]:
  for _, sentence, label in choices.read_sentences(path):
    yield {"sentence": sentence, "label": label}


def _truthfulqa(path: str) -> Iterator[Record]:
  """Yields questions with the choices of MC1, the right one first."""
  for item in truthfulqa.read(path, Counter()):
    indices = [item.extra["best"], *item.extra["wrong_mc1"]]
    yield {
      "question": item.extra["question"],
      "mc1_targets": {
        "choices": [item.choices[i].removeprefix(" ") for i in indices],
        "labels": [1] + [0] * (len(indices) - 1),
      },
    }


class Source(NamedTuple):
  """Where a task's data are.

  Attributes:
    config: file of the harness that has the task.
    file: published file.
    split: split of the task that the file is.
    read: yields what the harness reads of each record of a file.
  """

  config: str
  file: str
  split: str
  read: Callable[[str], Iterator[Record]]


SOURCES = {
  "hellaswag": Source(
    "hellaswag/hellaswag.yaml",
    "hellaswag/hellaswag.jsonl",
    "validation",
    _hellaswag,
  ),
  "sst2": Source("glue/sst2/default.yaml", "sst2/dev.tsv", "validation", _sst2),
  "lambada_openai": Source(
    "lambada/lambada_openai.yaml",
    "lambada/lambada_test.jsonl",
    "test",
    _lambada,
  ),
  "truthfulqa_mc1": Source(
    "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa/TruthfulQA.csv",
    "validation",
    _truthfulqa,
  ),
}


def write_tasks(
  data: str, out: str, names: Sequence[str] = tuple(SOURCES), limit: int = 0
) -> dict[str, int]:
  """Writes tasks and their data.

  Args:
    data: directory of published files; see the module.
    out: directory to write to.
    names: keys of `SOURCES`.
    limit: number of items, the first of each file; 0 is all.

  Returns:
    The number of items of each task.

  Raises:
    UserError: a file is missing or has no such items, or lm-eval lacks a task.
  """
  if limit < 0:
    raise UserError(
      f"is {limit}", field="--limit", fix="give 0 or more", code="bad_flag"
    )
  directory = files.make_directory(out)
  counts = {}
  for name in names:
    source = SOURCES[name]
    path = str(pathlib.Path(data) / source.file)
    items = list(source.read(path))
    if not items:
      raise UserError(
        "has no items",
        file=path,
        fix="give the file as its publisher has it",
        code="no_items",
      )
    items = items[: limit or None]
    target = directory / f"{name}.jsonl"
    files.write_jsonl_atomic(target, items)
    files.write_json_atomic(  # JSON is YAML
      directory / f"{name}.yaml", _config(name, source, target.resolve())
    )
    counts[name] = len(items)
  return counts


def _config(name: str, source: Source, data: pathlib.Path) -> Record:
  """Returns a task of the harness with its data in a file.

  Raises:
    UserError: lm-eval is not installed, or its version lacks the task.
  """
  lm_eval.require_library()
  spec = importlib.util.find_spec("lm_eval")
  assert spec is not None and spec.origin is not None
  config = pathlib.Path(spec.origin).parent / "tasks" / source.config
  if not config.exists():
    raise UserError(
      f"this version of lm-eval has no task {name} there",
      file=str(config),
      fix="pip install lm_eval==0.4.13",
      code="other_version",
    )
  return {
    "include": str(config),
    "task": name,
    "dataset_path": "json",
    "dataset_name": None,
    "dataset_kwargs": {
      "data_files": {source.split: str(data)},
      "cache_dir": str(data.parent / "cache"),
    },
    "training_split": None,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""

  def body() -> None:
    parser = CommandParser(prog="lm_eval_tasks", description=__doc__)
    parser.add_argument("--data", required=True, help="published files")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument(
      "--tasks", default=",".join(SOURCES), help="names, with commas"
    )
    parser.add_argument(
      "--limit", type=int, default=0, help="first items of each; 0 is all"
    )
    flags = parser.parse_args(argv)
    names = [name.strip() for name in flags.tasks.split(",")]
    for name in names:
      if name not in SOURCES:
        raise UserError(
          f"there is no task {name!r} here",
          field="--tasks",
          fix=f"use {', '.join(SOURCES)}",
          code="unknown_task",
        )
    counts = write_tasks(flags.data, flags.out, names, flags.limit)
    for name, count in counts.items():
      log_line(f"{name}: {count} items")

  return launch.run_with_errors(body)


if __name__ == "__main__":
  sys.exit(main())
