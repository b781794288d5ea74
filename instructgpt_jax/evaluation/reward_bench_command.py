"""Command that tests reward models on RewardBench or comparisons."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.configs import checks
from instructgpt_jax.data import encoding
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  reward_bench_files,
  reward_bench_scores,
  reward_calibration,
)
from instructgpt_jax.evaluation.reward_bench_files import Benchmark, Item
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps import reward_ensemble
from instructgpt_jax.training import held_out, scoring, stage_model
from instructgpt_jax.training.stage_model import Stage

REPORT, SCORES, PAGE, PICTURE = (
  "reward_bench.json", "scores.jsonl", "report.md", "calibration.svg",
)  # fmt: skip
Draw = Callable[[Mapping[str, Mapping[str, Any]]], str]


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
  """Parses the command line."""
  parser = CommandParser(
    prog="python -m experiments.reward_bench", description=description
  )
  add = parser.add_argument
  add(
    "--reward_model",
    required=True,
    help="workdir or Hugging Face directory of a reward model, or a comma list",
  )
  add("--data", required=True, help="RewardBench 1 or 2, or comparisons")
  add("--output", required=True, help="directory of the report")
  add("--overwrite", action="store_true", help="replace a report")
  add(
    "--deviation_coef",
    type=float,
    default=1.0,
    help="weight of the deviation in mean_minus_deviation",
  )
  add(
    "--allow_left_out",
    action="store_true",
    help="accept a model whose context is too short for most items",
  )
  for name in encoding.TAG_FIELDS:
    field = configs.options(configs.Data)[name]
    add(f"--{name}", help=f"of a Hugging Face directory. {field.help}")
  add("--seed", type=int, default=0, help="seed of the intervals")
  arguments = parser.parse_args(argv)
  if not 0 < arguments.deviation_coef < float("inf"):
    raise UserError(
      f"is {arguments.deviation_coef}",
      field="--deviation_coef",
      fix="give a number above 0",
      code="not_allowed",
    )
  return arguments


def run(arguments: argparse.Namespace, draw: Draw) -> None:
  """Scores all answers by each model, and writes and prints the report.

  Several models also make the ensembles of PPO and best-of-n.

  Args:
    arguments: parsed flags.
    draw: draws the calibration curves: name of a model → result of
      `reward_calibration.calibrate`.

  Raises:
    UserError: a file or a model cannot be used; or `left_out`, more than half
      of the items do not fit the context of a model.
  """
  output = pathlib.Path(arguments.output)
  for name in (REPORT, SCORES, PAGE, PICTURE):
    files.check_output(
      output / name, field="--output", overwrite=arguments.overwrite
    )
  paths = arguments.reward_model.split(",")
  checks.check_model_names(paths, "--reward_model")
  benchmark = reward_bench_files.read_benchmark(arguments.data)
  stages = _open_stages(paths, arguments)
  items, examples, notes, warnings = _encode_all(stages, benchmark, arguments)
  scores = score_answers(stages, items, examples)
  by_model = dict(zip(paths, scores, strict=True))
  if len(paths) > 1:
    by_model |= _ensembles(scores, arguments.deviation_coef)
  report = {
    "data": arguments.data,
    "format": benchmark.kind,
    "items": len(items),
    "left_out": [*benchmark.notes, *notes],
    "warnings": [*benchmark.warnings, *warnings],
    "models": {
      name: measure(benchmark.kind, items, values, seed=arguments.seed)
      for name, values in by_model.items()
    },
  }
  page = to_markdown(report)
  files.write_jsonl_atomic(output / SCORES, _score_rows(items, by_model))
  files.write_text_atomic(
    output / PICTURE,
    draw({n: m["calibration"] for n, m in report["models"].items()}),
  )
  files.write_text_atomic(output / PAGE, page)
  files.write_json_atomic(output / REPORT, report)
  sys.stdout.write(page)
  log_line(f"report: {output / PAGE}")


def _open_stages(
  paths: Sequence[str], arguments: argparse.Namespace
) -> list[Stage]:
  """Opens reward models; a Hugging Face directory takes the tags of the flags.

  Raises:
    UserError: one cannot be opened; or `unused_tag`, a tag is set, and all
      models are workdirs, which have their own.
  """
  stages = [
    stage_model.open_stage(p, kind=stage_model.SCALAR, field="--reward_model")
    for p in paths
  ]
  tags = {
    name: value
    for name in encoding.TAG_FIELDS
    if (value := getattr(arguments, name)) is not None
  }
  if tags and all(stage.source is None for stage in stages):
    raise UserError(
      "is set, and a workdir has its own",
      field=f"--{next(iter(tags))}",
      fix="leave it out",
      code="unused_tag",
    )
  return [
    stage
    if stage.source is None
    else dataclasses.replace(
      stage, data=dataclasses.replace(stage.data, **tags)
    )
    for stage in stages
  ]


def measure(
  kind: reward_bench_files.Kind,
  items: Sequence[Item],
  scores: Sequence[np.ndarray],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """Computes all figures of a model from the scores of each item's answers."""
  pairs = reward_calibration.gather_pairs(items, scores)
  return {
    **reward_bench_scores.summarize(kind, items, scores, seed=seed),
    "calibration": reward_calibration.calibrate(pairs),
    "length": reward_calibration.by_length(pairs),
  }


Examples = list[list[scoring.Example]]  # of each item's answers


def encode_items(
  stage: Stage, items: Sequence[Item]
) -> list[list[scoring.Example] | None]:
  """Encodes the answers of items as a reward model reads them.

  An answer is read after its prompt, with its end-of-text token, and is not
  cut. The result is None for an item that is longer than the model's context.
  """
  tokenizer, data = stage.tokenizer, stage.data
  prompts = encoding.encode_prompts(
    [item.turns for item in items], tokenizer, data
  )
  answers = iter(
    encoding.encode_untruncated(
      [answer for item in items for answer in item.answers], tokenizer, data
    )
  )
  encoded: list[list[scoring.Example] | None] = []
  for prompt, item in zip(prompts, items, strict=True):
    examples = [
      scoring.Example(ids, np.ones(len(ids), np.float32))
      for ids in (np.concatenate([prompt, next(answers)]) for _ in item.answers)
    ]
    longest = max(len(example.ids) for example in examples)
    fits = longest <= stage.model_config.max_seq_len
    encoded.append(examples if fits else None)
  return encoded


class _Encoded(NamedTuple):
  """The items that fit the contexts of all models.

  Attributes:
    items: the items.
    examples: their answers, for each model.
    notes: lines about the other items.
    warnings: those about more than a tenth of the items.
  """

  items: list[Item]
  examples: list[Examples]
  notes: list[str]
  warnings: list[str]


def _encode_all(
  stages: Sequence[Stage], benchmark: Benchmark, arguments: argparse.Namespace
) -> _Encoded:
  """Encodes the items that fit the contexts of all models.

  Raises:
    UserError: `left_out`, no item does, or too few of one model.
  """
  items, notes, warnings = benchmark.items, [], []
  encoded = [encode_items(stage, items) for stage in stages]
  for stage, examples in zip(stages, encoded, strict=True):
    long = sum(example is None for example in examples)
    if not long:
      continue
    text = (
      f"{long} of {len(items)} items are longer than the"
      f" {stage.model_config.max_seq_len} positions of {stage.path}"
    )
    notes.append(f"left out: {text}")
    if 10 * long > len(items):
      warnings.append(f"Figures are of shorter items: {text}.")
    if long == len(items) or (
      2 * long > len(items) and not arguments.allow_left_out
    ):
      raise UserError(
        text,
        file=arguments.data,
        field="--reward_model",
        fix="give a model with a longer context, or add --allow_left_out",
        code="left_out",
      )
  rows = [
    i for i in range(len(items)) if all(e[i] is not None for e in encoded)
  ]
  if not rows:
    raise UserError(
      "no item fits the contexts of all models",
      file=arguments.data,
      field="--reward_model",
      fix="give models with longer contexts",
      code="left_out",
    )
  chosen: list[Examples] = [[e[i] or [] for i in rows] for e in encoded]
  return _Encoded([items[i] for i in rows], chosen, notes, warnings)


def score_answers(
  stages: Sequence[Stage], items: Sequence[Item], examples: Sequence[Examples]
) -> list[list[np.ndarray]]:
  """Scores the answers of each item by each model, one model at a time.

  Raises:
    UserError: `not_finite`, a score is infinite or NaN.
  """
  mesh = mesh_lib.make_mesh(configs.Mesh())
  ends = np.cumsum([len(item.answers) for item in items])[:-1]
  results = []
  for stage, of_model in zip(stages, examples, strict=True):
    scorer = held_out.load_scorer([stage], mesh)
    flat = [example for item in of_model for example in item]
    scores = scorer.score(flat, mesh).astype(np.float64)
    _require_finite(scores, stage.path)
    results.append(np.split(scores, ends))
    log_line(f"scored {len(flat)} answers by {stage.path}")
  return results


def _require_finite(scores: np.ndarray, path: str) -> None:
  """Refuses scores that are no numbers: an order by them means nothing.

  Raises:
    UserError: `not_finite`.
  """
  bad = np.count_nonzero(~np.isfinite(scores))
  if bad:
    raise UserError(
      f"gives {bad} of {len(scores)} answers a score that is not finite",
      file=path,
      field="--reward_model",
      fix="give a model whose training did not diverge",
      code="not_finite",
    )


def _ensembles(
  scores: Sequence[Sequence[np.ndarray]], deviation_coef: float
) -> dict[str, list[np.ndarray]]:
  """Returns the scores of each kind of ensemble."""
  combined = [
    reward_ensemble.combine_in_each_way(np.stack(item), deviation_coef)
    for item in zip(*scores, strict=True)
  ]
  return {
    f"ensemble: {kind}": [
      np.asarray(item[kind], np.float64) for item in combined
    ]
    for kind in reward_ensemble.KINDS
  }


def _score_rows(
  items: Sequence[Item], scores: Mapping[str, Sequence[np.ndarray]]
) -> Iterator[dict[str, Any]]:
  for i, item in enumerate(items):
    yield {
      "id": item.number,
      "subset": item.subset,
      "ranks": item.ranks,
      "scores": {name: values[i] for name, values in scores.items()},
    }


def to_markdown(report: Mapping[str, Any]) -> str:
  """Writes the report as a page."""
  models = report["models"]
  lines = [f"# Reward models on {report['data']}", ""]
  if report["warnings"]:
    lines += [*(f"- **{text}**" for text in report["warnings"]), ""]
  lines += [f"{report['items']} items, read as {report['format']}.", ""]
  lines += [f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
  for label, get in _rows(next(iter(models.values()))):
    cells = " | ".join(_cell(get(model)) for model in models.values())
    lines.append(f"| {label} | {cells} |")
  missing = next(iter(models.values())).get("missing")
  if missing:
    lines += ["", f"Averages are without {', '.join(missing)}."]
  if report["left_out"]:
    lines += ["", "## Left out", ""]
    lines += [f"- {line}" for line in report["left_out"]]
  return "\n".join(lines) + "\n"


def _rows(
  model: Mapping[str, Any],
) -> Iterator[tuple[str, Callable[[Mapping[str, Any]], Any]]]:
  """Yields label and getter of each row of the table."""
  if "score" in model:
    yield "**score**", lambda m: m["score"]
  for name in model.get("sections", {}):
    yield f"**{name}**", lambda m, name=name: m["sections"][name]
  for name, figure in model["subsets"].items():
    label = f"{name} ({figure['items']})"
    yield label, lambda m, name=name: m["subsets"][name]
  yield "expected calibration error", lambda m: m["calibration"]["ece"]
  for key, label in (
    ("longer", "accuracy, the better answer is longer"),
    ("shorter", "accuracy, the better answer is shorter"),
    ("prefers_longer", "longer answer has the higher score"),
    ("longer_is_better", "longer answer is better"),
  ):
    yield label, lambda m, key=key: m["length"][key]
  for i, group in enumerate(model["length"]["groups"]):
    yield (
      f"accuracy, better answer {group['low']:+.0f} to {group['high']:+.0f}"
      " characters longer",
      lambda m, i=i: m["length"]["groups"][i]["accuracy"],
    )


def _cell(value: Any) -> str:
  if value is None:
    return "–"
  if not isinstance(value, Mapping):
    return f"{value:.3f}"
  if value["low"] is None:
    return f"{value['mean']:.3f}"
  return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
