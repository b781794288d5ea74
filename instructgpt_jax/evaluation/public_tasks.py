"""Reads public tasks from files in their publishers' own formats."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

Item = dict[str, Any]
SST2_CHOICES = ("negative", "positive")


def _hellaswag(line: str, path: str, number: int) -> Item:
  """Reads one JSON line with ctx, endings and label (Zellers et al., 2019)."""
  record = _record(line, path, number)
  context, endings, label = (
    record.get(name) for name in ("ctx", "endings", "label")
  )
  if isinstance(label, str) and label.isdecimal():
    label = int(label)
  if (
    not isinstance(context, str)
    or not isinstance(endings, list)
    or not all(isinstance(ending, str) for ending in endings)
    or not isinstance(label, int)
    or not 0 <= label < len(endings)
  ):
    raise _not_an_item(
      path, number, 'HellaSwag has {"ctx", "endings", "label"}'
    )
  return {"prompt": context, "choices": endings, "answer": label}


def _lambada(line: str, path: str, number: int) -> Item:
  """Reads one JSON line with a passage; its last word is the answer."""
  text = _record(line, path, number).get("text")
  words = text.strip().rsplit(maxsplit=1) if isinstance(text, str) else []
  if len(words) != 2:
    raise _not_an_item(path, number, 'LAMBADA has {"text"}')
  return {"prompt": words[0], "next_word": words[1]}


def _sst2(line: str, path: str, number: int) -> Item:
  """Reads a sentence, a tab, and 0 (negative) or 1 (positive)."""
  sentence, _, label = line.rpartition("\t")
  if not sentence or label not in ("0", "1"):
    raise _not_an_item(path, number, "SST-2 has a sentence, a tab, and 0 or 1")
  return {
    "prompt": f"Review: {sentence.strip()}\nSentiment:",
    "choices": [*SST2_CHOICES],
    "answer": int(label),
  }


TASKS: Mapping[str, Callable[[str, str, int], Item]] = {
  "hellaswag": _hellaswag,
  "lambada": _lambada,
  "sst2": _sst2,
}


def read_tasks(spec: str, count: int, seed: int = 0) -> list[Item]:
  """Reads the items of several tasks.

  Args:
    spec: comma list of TASK=FILE; tasks are the keys of `TASKS`.
    count: items drawn from each file.
    seed: seed of the draw.

  Returns:
    Items as `tasks.read_items` describes them, with the task as their kind.

  Raises:
    UserError: an element is no TASK=FILE, or a file cannot be read.
  """
  items = []
  for part in filter(None, spec.split(",")):
    name, _, path = part.partition("=")
    if name not in TASKS or not path:
      raise UserError(
        f"{part!r} is not TASK=FILE",
        field="measure.tasks",
        fix=configs.nearest(name, TASKS) or f"tasks are {', '.join(TASKS)}",
        code="bad_task",
      )
    lines = [
      (number, line)
      for number, line in enumerate(files.read_text(path).splitlines(), 1)
      if line.strip() and not (name == "sst2" and line == "sentence\tlabel")
    ]
    if not lines:
      raise UserError(
        "has no items",
        file=path,
        field="measure.tasks",
        fix=f"give the published file of {name}",
        code="no_items",
      )
    drawn = random.Random(f"{name} {seed}").sample(
      lines, min(count, len(lines))
    )
    items += [
      {"kind": name} | TASKS[name](line, path, number) for number, line in drawn
    ]
  return items


def _record(line: str, path: str, number: int) -> Mapping[str, Any]:
  value = files.parse_json(line, path, number)
  return value if isinstance(value, dict) else {}


def _not_an_item(path: str, number: int, fix: str) -> UserError:
  return UserError(
    "is not an item of the task",
    file=path,
    line=number,
    fix=fix,
    code="bad_task_item",
  )
