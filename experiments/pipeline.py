"""All stages in order, then a report.

  python -m experiments.pipeline --workdir=runs/demo
  python -m experiments.pipeline --preset=tiny --workdir=runs/real \\
    --data.pretraining='text/**' --data.demonstrations=alpaca.json \\
    --data.comparisons=rankings.jsonl.gz --data.prompts=prompts.jsonl

Without data it writes the embedded world's files and uses those. What is
complete in the workdir is skipped. Ends in report.html, report.json and the
same table on the terminal.
"""

import sys

from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.pipeline import stages
from instructgpt_jax.training import inheritance


def get_config(preset: str = "world"):
  """Every stage's recipe at one size."""
  return presets.pipeline(preset)


def sweep() -> dict[str, str]:
  """Seeds alone; stages are swept one by one."""
  return {"seeds": "seed=0..2"}


def default_preset(arguments: list[str]) -> str:
  """`world` where no data are named, else the smallest general one."""
  named = any("data." in a or "flagfile" in a for a in arguments)
  return "tiny" if named else "world"


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "pipeline",
      get_config,
      stages.run,
      __doc__,
      default_preset=default_preset(sys.argv[1:]),
      presets=presets.NAMES,
      resolve=inheritance.inherit_architecture,
    )
  )
