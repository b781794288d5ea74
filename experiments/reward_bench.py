"""Tests reward models on RewardBench 1 and 2, or on comparisons.

  python -m experiments.reward_bench --reward_model=runs/reward \\
    --data=filtered.parquet --output=runs/reward_bench
  python -m experiments.reward_bench --reward_model=runs/reward,runs/judge \\
    --data=comparisons.jsonl --output=runs/both

Writes report.md, reward_bench.json, scores.jsonl and calibration.svg: accuracy
by subset with the published averages, calibration, and accuracy by length. For
several models the page also has their ensembles (docs/judges.md).
"""

import sys
from collections.abc import Sequence

from instructgpt_jax.cli import launch
from instructgpt_jax.evaluation import reward_bench_command
from instructgpt_jax.report import calibration


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns the exit status; 2 for a user error."""
  return launch.run_with_errors(
    lambda: reward_bench_command.run(
      reward_bench_command.parse(argv, __doc__ or ""), calibration.draw
    )
  )


if __name__ == "__main__":
  sys.exit(main())
