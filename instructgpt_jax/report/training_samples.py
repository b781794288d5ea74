"""Reads answers that stages wrote to `samples.jsonl` while they trained.

`training.samples` describes the lines. A page groups them by prompt, and a
reader filters them by stop reason, length and reward. The filters are CSS: the
page has no script.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import step_lines
from instructgpt_jax.training import samples

SETS = 20  # sets of answers of a stage in a pipeline's report
_STAGES = ("policy_init", "sft", "ppo", "ppo_ptx")
# Columns of numbers; a stage has some of them.
NUMBERS = ("step", "iteration", "index", "reward", "judge", "kl", "length")
_REQUIRED = ("step", "index", "prompt", "response", "length", "stop_reason")
_THIRDS = ("low", "middle", "high")

Rows = Sequence[Mapping[str, Any]]


class Choice(NamedTuple):
  """Which lines are shown, and in which order; None does not choose."""

  sort: str = ""  # column; with a minus before it, the highest value first
  step: int | None = None
  iteration: int | None = None
  prompt: int | None = None  # index of the prompt
  stop_reason: str | None = None


def read_stages(
  directory: str | pathlib.Path, *, sets: int | None = None
) -> dict[str, list[dict[str, Any]]]:
  """Reads the samples of a stage's workdir, or of all stages in a directory.

  Args:
    directory: workdir of a stage, or of a pipeline.
    sets: largest number of sets of a stage. Of more, sets at equal distances
      are read, with the first and the last.

  Returns:
    {stage: lines}; stages without samples are absent.

  Raises:
    UserError: `bad_sample`, a line lacks a field.
  """
  directory = pathlib.Path(directory)
  paths = [directory / samples.SAMPLES]
  if not paths[0].exists():
    paths = sorted(directory.glob(f"*/{samples.SAMPLES}"), key=_order)
  stages = {}
  for path in paths:
    rows = step_lines.read_lines(path)
    _require_fields(rows, path)
    if rows:
      stages[path.resolve().parent.name] = _thin(rows, sets)
  return stages


def _require_fields(rows: Rows, path: pathlib.Path) -> None:
  """Refuses lines without the fields that every sample has."""
  for number, row in enumerate(rows, start=1):
    missing = [name for name in _REQUIRED if name not in row]
    if missing:
      raise UserError(
        f"is no sample: {', '.join(missing)} is missing",
        file=str(path),
        line=number,
        fix="delete the line, or put back what the run wrote",
        code="bad_sample",
      )


def require_stages(
  directory: str | pathlib.Path,
) -> dict[str, list[dict[str, Any]]]:
  """Reads all samples of a directory.

  Raises:
    UserError: `no_samples`, there are none.
  """
  stages = read_stages(directory)
  if not stages:
    raise UserError(
      f"has no {samples.SAMPLES}, and no directory in it has one",
      file=str(directory),
      fix="give the workdir of a run with --sft.samples_every or"
      " --ppo.samples_every",
      code="no_samples",
    )
  return stages


def choose(rows: Rows, choice: Choice, stage: str) -> list[Mapping[str, Any]]:
  """Returns the chosen lines of a stage, in the chosen order.

  Args:
    rows: lines of the stage.
    choice: says which lines, and in which order.
    stage: name of the stage, for errors.

  Raises:
    UserError: `unknown_column`, or `no_such_sample`.
  """
  conditions = {
    "step": choice.step,
    "iteration": choice.iteration,
    "index": choice.prompt,
    "stop_reason": choice.stop_reason,
  }
  chosen = [
    row
    for row in rows
    if all(row.get(k) == v for k, v in conditions.items() if v is not None)
  ]
  if not chosen:
    column = "iteration" if "iteration" in rows[0] else "step"
    values = sorted({row[column] for row in rows})
    raise UserError(
      f"no sample of {stage} is as asked for",
      fix=f"its samples are of {column} {', '.join(map(str, values))}",
      code="no_such_sample",
    )
  if not choice.sort:
    return chosen
  name, falls = choice.sort.removeprefix("-"), choice.sort.startswith("-")
  columns = [n for n in NUMBERS if n in rows[0]]
  if name not in columns:
    raise UserError(
      f"{stage} has no column {name!r}",
      field="--sort",
      fix=f"give one of {', '.join(columns)}",
      code="unknown_column",
    )
  return sorted(chosen, key=lambda row: _number(row[name]), reverse=falls)


def to_page(stages: Mapping[str, Rows]) -> list[dict[str, Any]]:
  """Returns what the template of the samples shows, for each stage."""
  return [_stage_page(name, rows) for name, rows in stages.items() if rows]


def _stage_page(name: str, rows: Rows) -> dict[str, Any]:
  """Groups the lines of a stage by prompt, with the classes of its filters."""
  measures = ["length", *(n for n in ("reward",) if n in rows[0])]
  bounds = {m: _thirds([_number(row[m]) for row in rows]) for m in measures}
  prompts: dict[int, dict[str, Any]] = {}
  columns = [n for n in NUMBERS if n in rows[0] and n != "index"]
  for row in sorted(rows, key=lambda row: row["step"]):
    group = prompts.setdefault(
      row["index"], {"text": row["prompt"], "answers": []}
    )
    classes = [f"stop-{row['stop_reason']}"] + [
      f"{m}-{_third(_number(row[m]), bounds[m])}" for m in measures
    ]
    group["answers"].append(
      {
        "classes": " ".join(classes),
        "cells": [cell(row[n]) for n in columns],
        "stop_reason": row["stop_reason"],
        "response": row["response"],
      }
    )
  filters = [("stop", [("end", "ended"), ("limit", "at the limit")])]
  for m in measures:
    low, high = (cell(x) for x in bounds[m])
    labels = (f"at most {low}", f"to {high}", f"above {high}")
    filters.append((m, list(zip(_THIRDS, labels, strict=True))))
  return {
    "name": name,
    "columns": columns,
    "filters": filters,
    "prompts": [prompts[index] for index in sorted(prompts)],
  }


def _thirds(values: list[float]) -> tuple[float, float]:
  """Returns the values that divide sorted values into thirds."""
  ordered = sorted(values)
  return ordered[(len(ordered) - 1) // 3], ordered[2 * (len(ordered) - 1) // 3]


def _third(value: float, bounds: tuple[float, float]) -> str:
  return _THIRDS[(value > bounds[0]) + (value > bounds[1])]


def _thin(rows: list[dict[str, Any]], sets: int | None) -> list[dict[str, Any]]:
  """Returns the lines of at most `sets` steps."""
  steps = sorted({row["step"] for row in rows})
  if sets is None or len(steps) <= sets:
    return rows
  last = len(steps) - 1
  chosen = {steps[round(i * last / (sets - 1))] for i in range(sets)}
  return [row for row in rows if row["step"] in chosen]


def _order(path: pathlib.Path) -> tuple[int, str]:
  name = path.parent.name
  return (_STAGES.index(name) if name in _STAGES else len(_STAGES), name)


def _number(value: Any) -> float:
  return float(value)  # also of the texts "nan", "inf" and "-inf"


def cell(value: Any) -> str:
  """Formats a value of a line."""
  return f"{value:.3g}" if isinstance(value, float) else str(value)
