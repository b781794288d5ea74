"""Prints the tables of docs/results.md from the reports of finished demos.

python -m benchmarks.demo_tables runs/demo runs/seed1 runs/seed2
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from instructgpt_jax.cli import launch
from instructgpt_jax.report import results
from instructgpt_jax.runs import files

Report = dict[str, Any]

MODELS = {
  **results.MODELS,
  "prompted": "prompted base",
  "best_of_n": "best of 8",
}
FAILURES = (
  "fails_instruction",
  "hallucination",
  "violates_constraint",
  "encourages_harm",
  "padded",
)


def text(interval: dict[str, Any] | None, digits: int) -> str:
  """Writes an interval as '0.12 [0.10, 0.14]', and a missing one as '–'."""
  if interval is None:
    return "–"
  numbers = [f"{interval[k]:.{digits}f}" for k in ("mean", "low", "high")]
  return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Writes a Markdown table."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_model(
  reports: Sequence[Report],
  value: Callable[[Report], dict[str, Any] | None],
  digits: int = 3,
) -> str:
  """Writes a table of one value, models by seeds."""
  rows = [
    [name, *(text(value(r["models"][key]), digits) for r in reports)]
    for key, name in MODELS.items()
  ]
  return table(["", *(f"seed {r['seed']}" for r in reports)], rows)


def by_seed(reports: Sequence[Report], group: str, names: Sequence[str]) -> str:
  """Writes a table of shares in per cent, their names by models."""
  rows = [
    [
      f"seed {r['seed']}: {name.replace('_', ' ')}",
      *(f"{100 * r['models'][m][group][name]['mean']:.1f}" for m in MODELS),
    ]
    for r in reports
    for name in names
  ]
  return table(["", *MODELS.values()], rows)


def pages(reports: Sequence[Report]) -> dict[str, str]:
  """Returns heading → table."""
  seeds = ["", *(f"seed {r['seed']}" for r in reports)]
  orders = {
    "accuracy": "its labelers",
    "held_out_labelers": "held-out labelers",
  }
  seconds = [
    [
      name.replace("_", " "),
      *(f"{r['seconds'].get(name, 0):.0f}" for r in reports),
    ]
    for name in reports[0]["seconds"]
  ]
  total = [f"{sum(r['seconds'].values()):.0f}" for r in reports]
  return {
    "Gold score, temperature 1": by_model(reports, lambda m: m["gold"]),
    "Gold score, temperature 0": by_model(
      reports, lambda m: m["greedy"]["gold"]
    ),
    "Win rate against SFT, temperature 1": by_model(
      reports, lambda m: m["win_rate"]
    ),
    "Win rate against SFT, temperature 0": by_model(
      reports, lambda m: m["greedy"]["win_rate"]
    ),
    "Reward model's score, temperature 1": by_model(
      reports, lambda m: m["rm_score"], 2
    ),
    "KL to the start of PPO, nats, temperature 1": by_model(
      reports, lambda m: m["kl"], 2
    ),
    "LM loss, nats a token": by_model(reports, lambda m: m["lm_loss"]),
    "Failures, per cent of answers, temperature 1": by_seed(
      reports, "failures", FAILURES
    ),
    "Public tasks, per cent right": by_seed(
      reports, "tasks", list(reports[0]["models"]["base"]["tasks"])
    ),
    "Reward model": table(
      seeds,
      [
        [name, *(text(r["reward_model"][key], 3) for r in reports)]
        for key, name in orders.items()
      ],
    ),
    "LM loss that PPO adds and PPO-ptx removes": table(
      seeds,
      [
        ["removed", *(f"{r['tax']['removed_by_ptx']:.1%}" for r in reports)],
      ],
    ),
    "Seconds": table(seeds, [*seconds, ["all", *total]]),
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the tables; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", nargs="+", help="of a finished `make demo`")
  arguments = parser.parse_args(argv)

  def run() -> None:
    reports = [
      files.read_json(
        pathlib.Path(workdir) / "report.json",
        fix="give the workdir of a finished pipeline",
      )
      for workdir in arguments.workdir
    ]
    for heading, lines in pages(reports).items():
      print(f"### {heading}\n\n{lines}\n")

  return launch.run_with_errors(run)


if __name__ == "__main__":
  sys.exit(main())
