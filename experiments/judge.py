"""Compares the answers of two models by a third, and judges that judge.

  python -m experiments.judge --judge=DIR --answers=a.jsonl \\
    --against=b.jsonl --output=runs/judged
  python -m experiments.judge --judge=DIR --output=runs/agreement \\
    --human=llmbar=llmbar/Natural/dataset.json,pandalm=testset-v1.json
  python -m experiments.judge --judge=http://localhost:8000/v1 \\
    --judge_model=NAME --answers=a.jsonl --against=b.jsonl --output=runs/judged

Answers are JSON lines with `prompt` and `completion`, as `instructgpt_jax.chat
--output` writes them. Writes report.md, judge.json and verdicts.jsonl: win rate
with ties, both orders, length-controlled; and how far the judge agrees with
people's labels, and depends on order and length (docs/judges.md).
"""

import sys
from collections.abc import Sequence

from instructgpt_jax.cli import launch
from instructgpt_jax.evaluation import judge_command


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns the exit status; 2 for a user error."""
  return launch.run_with_errors(
    lambda: judge_command.run(judge_command.parse(argv, __doc__ or ""))
  )


if __name__ == "__main__":
  sys.exit(main())
