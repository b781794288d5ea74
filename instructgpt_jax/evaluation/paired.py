"""Compares two models that `evaluate` measured, paired by prompt and item."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.evaluate import ANSWERS
from instructgpt_jax.evaluation.group_intervals import group_index
from instructgpt_jax.runs import files
from instructgpt_jax.statistics import Interval

WIN_RATE = "win_rate"
_TASK_ANSWERS = "task_answers"
_BY_ANSWER = ("gold", "rm", "kl", "length", "ended")


class Difference(NamedTuple):
  """A measure of two models.

  Attributes:
    first: mean of the first model; None for a win rate.
    second: mean of the second model; None for a win rate.
    difference: second − first with its interval; or the win rate of the second.
  """

  first: float | None
  second: float | None
  difference: Interval

  def as_dict(self) -> dict[str, Any]:
    """Returns the values for a JSON file."""
    return self._asdict() | {"difference": self.difference.as_dict()}


class Comparison(NamedTuple):
  """The measures of two models.

  Attributes:
    measures: name, as in complete.json → the measure.
    left_out: lines about measures that cannot be paired.
  """

  measures: dict[str, Difference]
  left_out: list[str]


def read_answers(workdir: str) -> dict[str, Any]:
  """Reads what `experiments.evaluate` wrote into a workdir.

  Raises:
    UserError: it has no such file.
  """
  return files.read_json(
    pathlib.Path(os.path.expanduser(workdir)) / ANSWERS,
    fix="give workdirs of finished runs of experiments.evaluate",
  )


def compare(
  first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> Comparison:
  """Compares two models on the same prompts, items and rows.

  Samples of a prompt are averaged. Intervals are a bootstrap over prompts,
  items (or the texts that several are about), pairs of a bias set, or packed
  rows of the LM loss.

  Args:
    first: answers.json of a model.
    second: that of another.
    names: their workdirs, for errors.

  Raises:
    UserError: `other_prompts`, they answered different prompts.
  """
  if first["prompts"] != second["prompts"]:
    raise UserError(
      f"has other prompts than {names[0]}",
      file=names[1],
      fix="measure both with the same --data.prompts, --evaluation.prompts,"
      " --evaluation.split and --seed",
      code="other_prompts",
    )
  values = [_values(result) for result in (first, second)]
  measures = {WIN_RATE: _win_rate(first, second)}
  # Older versions kept no answers to a task's items.
  old = {
    name: workdir
    for workdir, result in zip(names, (first, second), strict=True)
    for name in result.get("tasks", {})
    if name not in result.get(_TASK_ANSWERS, {})
  }
  left_out = []
  for name in dict.fromkeys([*values[0], *values[1], *old]):
    if name in old:
      left_out.append(f"{name}: {old[name]} has no answers to its items")
    elif not all(name in of_model for of_model in values):
      missing = names[name in values[0]]
      left_out.append(f"{name}: {missing} does not have it")
    elif not _are_paired(name, first, second):
      left_out.append(f"{name}: the models have other items")
    else:
      measures[name] = _difference(*(of_model[name] for of_model in values))
  return Comparison(measures, left_out)


def _values(result: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Returns each measure's values by unit, with their weights or None."""
  values: dict[str, tuple[Any, Any]] = {}
  for part, prefix in (("sampled", ""), ("greedy", "greedy_")):
    for name in _BY_ANSWER:
      if name in result[part]:
        values[prefix + name] = result[part][name], None
    for field, of_prompts in result[part]["failures"].items():
      values[f"{prefix}failures.{field}"] = of_prompts, None
  if "lm" in result:
    values["lm_loss"] = result["lm"]["nll"], result["lm"]["weight"]
  for name, scores in result.get("tasks", {}).items():
    if name not in result.get(_TASK_ANSWERS, {}):
      continue
    rows = result[_TASK_ANSWERS][name]
    # Items about one text are one unit.
    index = group_index([row.get("group", row["id"]) for row in rows])
    values[name] = np.bincount(index, scores), np.bincount(index)
  if "bias" in result:
    values["bias_entropy"] = result["bias"], None
  return values


def _are_paired(
  name: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> bool:
  """Returns whether a measure's values of two models are of the same units."""
  if name == "lm_loss":
    return first["lm"]["weight"] == second["lm"]["weight"]
  if name == "bias_entropy":
    return len(first["bias"]) == len(second["bias"])
  if name in first.get("tasks", {}):
    one, other = (
      [(row["id"], row["prompt"]) for row in result[_TASK_ANSWERS][name]]
      for result in (first, second)
    )
    return one == other
  return True


def _win_rate(
  first: Mapping[str, Any], second: Mapping[str, Any]
) -> Difference:
  """Returns the share of pairs of answers in which the judge prefers ours."""
  rates = statistics.win_rate(
    second["sampled"]["gold"], first["sampled"]["gold"]
  )
  return Difference(
    None, None, statistics.bootstrap_interval(rates, share=True)
  )


def _difference(first: tuple[Any, Any], second: tuple[Any, Any]) -> Difference:
  (one, weights), (other, _) = first, second
  if weights is None:
    interval = statistics.bootstrap_interval(other, paired=one)
    one, other = (statistics.per_prompt(values) for values in (one, other))
    return Difference(float(one.mean()), float(other.mean()), interval)
  one, other, total = np.asarray(one), np.asarray(other), np.sum(weights)
  return Difference(
    float(one.sum() / total),
    float(other.sum() / total),
    statistics.ratio_interval(other - one, weights),
  )


def to_markdown(comparison: Comparison, names: tuple[str, str]) -> str:
  """Writes a comparison as a table."""
  lines = [
    f"| measure | {names[0]} | {names[1]} | difference [95 %] | units |",
    "|---|---|---|---|---|",
  ]
  for name, (first, second, interval) in comparison.measures.items():
    cells = ["–" if x is None else f"{x:.3f}" for x in (first, second)]
    lines.append(
      f"| {name} | {' | '.join(cells)} | {interval} | {interval.units} |"
    )
  if comparison.left_out:
    lines += ["", *(f"- left out: {line}" for line in comparison.left_out)]
  return "\n".join(lines) + "\n"
