"""Gathers what a run of `experiments.real` has measured.

`results.json` has, for every model, its values with 95 % intervals over prompts
and their differences from policy_init on the same prompts. `results.md` has the
same as tables, and the answers to the example prompts.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.evaluation import evaluate
from instructgpt_jax.evaluation.tasks import registry
from instructgpt_jax.instructions import items as items_lib
from instructgpt_jax.instructions import kinds
from instructgpt_jax.instructions.items import Item
from instructgpt_jax.real import example_prompts, figures, steps
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.statistics import Interval

START = "policy_init"  # the model that all differences are from
RESULTS, TABLES, PICTURE = "results.json", "results.md", "results.svg"
_FULFILLED = "fulfilled"

Values = dict[str, np.ndarray]  # measure → one value per prompt or item


def write(plan: steps.Plan) -> None:
  """Writes results.json, results.md and results.svg into the workdir."""
  items = items_lib.read_items(str(plan.path("instructions") / "test.jsonl"))
  values = {model: _read_values(plan, model, items) for model in plan.models}
  results = {
    "models": {
      model: _summarize(values[model], values[START]) for model in plan.models
    },
    "kinds": {model: _by_kind(plan, model, items) for model in plan.models},
    "reward_models": {
      name: files.read_complete(plan.path(name)) for name in ("reward", "judge")
    },
    "curves": {name: _curve(plan.path(name)) for name in plan.policies},
    "examples": _examples(plan),
    "seconds": files.read_json(plan.path(steps.SECONDS)),
  }
  files.write_json_atomic(plan.path(RESULTS), results)
  files.write_text_atomic(plan.path(TABLES), tables(results))
  files.write_text_atomic(plan.path(PICTURE), figures.draw(results))
  log_line(f"results: {plan.path(TABLES)}, {plan.path(PICTURE)}")


def _answers(
  plan: steps.Plan, model: str, name: str, prompts: Sequence[str]
) -> list[str]:
  path = plan.path("answers") / f"{model}_{name}.jsonl"
  answers = items_lib.read_answers(str(path), prompts)
  return [answers[prompt][0] for prompt in prompts]


def _read_values(plan: steps.Plan, model: str, items: Sequence[Item]) -> Values:
  """Reads everything that was measured of a model, per prompt."""
  prompts = [item.prompt for item in items]
  values: Values = {}
  for name in steps.TEMPERATURES:
    answers = _answers(plan, model, name, prompts)
    values[f"{_FULFILLED}_{name}"] = np.array(
      [
        float(item.is_fulfilled(text))
        for item, text in zip(items, answers, strict=True)
      ]
    )
  measured = files.read_json(plan.path("measured") / model / evaluate.ANSWERS)
  for name in steps.TEMPERATURES:
    table = measured[name]
    for measure, key in (
      ("judge", "gold"),
      ("reward", "rm"),
      ("kl", "kl"),
      ("length", "length"),
      ("ended", "ended"),
    ):
      if key in table:
        values[f"{measure}_{name}"] = np.mean(table[key], axis=1)
  lm = measured["lm"]
  # Rows have nearly the same number of tokens; their mean is then per token.
  values["lm_loss"] = np.array(lm["nll"]) / np.mean(lm["weight"])
  for task, scores in measured.get("tasks", {}).items():
    values[task] = np.array(scores, np.float64)
  return values


def _summarize(values: Values, start: Values) -> dict[str, Any]:
  """Returns each measure's interval, and that of its difference from START."""
  summary: dict[str, Any] = {}
  for name, per_prompt in values.items():
    is_share = name.startswith(_FULFILLED) or name in registry.COLUMNS
    interval = statistics.bootstrap_interval(
      per_prompt, share=is_share and set(per_prompt) <= {0.0, 1.0}
    )
    summary[name] = interval.as_dict()
    if per_prompt is not start[name]:
      summary[f"{name}_change"] = statistics.bootstrap_interval(
        per_prompt, paired=start[name]
      ).as_dict()
  for name in steps.TEMPERATURES:
    wins = statistics.win_rate(values[f"judge_{name}"], start[f"judge_{name}"])
    summary[f"win_rate_{name}"] = statistics.bootstrap_interval(
      wins, share=True
    ).as_dict()
  return summary


def _by_kind(
  plan: steps.Plan, model: str, items: Sequence[Item]
) -> dict[str, dict[str, float]]:
  """Returns temperature → kind → share of fulfilled instructions."""
  prompts = [item.prompt for item in items]
  shares: dict[str, dict[str, float]] = {}
  for name in steps.TEMPERATURES:
    answers = _answers(plan, model, name, prompts)
    fulfilled: dict[str, list[bool]] = {kind: [] for kind in kinds.KINDS}
    for item, text in zip(items, answers, strict=True):
      fulfilled[item.kind].append(item.is_fulfilled(text))
    shares[name] = {
      kind: float(np.mean(done)) for kind, done in fulfilled.items() if done
    }
  return shares


def _curve(directory: pathlib.Path) -> dict[str, list[Any]]:
  """Returns metric → [(updates so far, value)] of a PPO run."""
  curve: dict[str, list[Any]] = {}
  lines = files.read_text(directory / "metrics.jsonl").splitlines()
  for number, line in enumerate(lines, 1):
    record = files.parse_json(line, directory / "metrics.jsonl", number)
    for name in ("reward", "kl", "entropy", "response_length", "ptx_loss"):
      if name in record:
        curve.setdefault(name, []).append((record["step"], record[name]))
  return curve


def _examples(plan: steps.Plan) -> list[dict[str, Any]]:
  """Returns each example prompt with every model's greedy answer."""
  prompts = list(example_prompts.PROMPTS)
  by_model = {
    model: _answers(plan, model, "examples", prompts) for model in plan.models
  }
  return [
    {
      "prompt": prompt,
      "answers": {model: texts[i] for model, texts in by_model.items()},
    }
    for i, prompt in enumerate(prompts)
  ]


def _cell(summary: Mapping[str, Any], name: str) -> str:
  if name not in summary:
    return "–"
  leaf = {k: math.nan if v is None else v for k, v in summary[name].items()}
  return str(Interval(leaf["mean"], leaf["low"], leaf["high"]))


def _table(results: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
  lines = [
    "| model | " + " | ".join(columns.values()) + " |",
    "|---|" + "---|" * len(columns),
  ]
  for model, summary in results["models"].items():
    cells = (_cell(summary, name) for name in columns)
    lines.append(f"| {model} | " + " | ".join(cells) + " |")
  return [*lines, ""]


def tables(results: Mapping[str, Any]) -> str:
  """Returns results.md."""
  first = next(iter(results["models"].values()))
  tasks = [name for name in registry.COLUMNS if name in first]
  lines = ["# Results", "", "## Instructions that a program checks", ""]
  lines += _table(
    results,
    {
      "fulfilled_sampled": "temperature 1",
      "fulfilled_sampled_change": f"less {START}",
      "fulfilled_greedy": "temperature 0",
      "fulfilled_greedy_change": f"less {START}",
    },
  )
  for name in steps.TEMPERATURES:
    shares = {model: by[name] for model, by in results["kinds"].items()}
    names = list(next(iter(shares.values())))
    lines += [f"By kind, {name}:", "", "| model | " + " | ".join(names) + " |"]
    lines.append("|---|" + "---|" * len(names))
    lines += [
      f"| {model} | " + " | ".join(f"{by[k]:.2f}" for k in names) + " |"
      for model, by in shares.items()
    ]
    lines.append("")
  lines += ["## Held-out prompts of people", ""]
  lines += _table(
    results,
    {
      "win_rate_sampled": f"preferred to {START}, temperature 1",
      "win_rate_greedy": "temperature 0",
      "reward_sampled": "reward model",
      "kl_sampled": "KL (nats)",
      "length_sampled": "tokens",
    },
  )
  lines += ["## Alignment tax", ""]
  lines += _table(
    results,
    {"lm_loss": "LM loss", "lm_loss_change": f"less {START}"}
    | {name: name for name in tasks},
  )
  lines += ["## Reward models", ""]
  for name, summary in results["reward_models"].items():
    lines.append(f"- {name}: {summary}")
  lines += ["", "## Seconds", "", "| step | seconds |", "|---|---|"]
  lines += [f"| {name} | {s:.0f} |" for name, s in results["seconds"].items()]
  lines += ["", "## Examples, temperature 0", ""]
  for example in results["examples"]:
    lines += [f"### {example['prompt']}", ""]
    for model, text in example["answers"].items():
      quoted = text.strip().replace("\n", "\n  > ") or "(nothing)"
      lines += [f"- {model}", f"  > {quoted}"]
    lines.append("")
  return "\n".join(lines)
