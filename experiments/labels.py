"""Has the embedded world's labelers rank more answers of a pipeline's models.

  python -m experiments.labels --preset=world --workdir=runs/labels \\
    --pipeline=runs/demo --labeling.prompts=32000 --labeling.noise=1

Ranks the first `--labeling.rounds` rounds of the pipeline again: answers of the
base model, of policy_init and of the round's policy. Writes round_1.jsonl and
so on, whose training and validation rankings `--data.comparisons` takes, and
rankings by held-out labelers in round_1_held_out.jsonl.

Cost: 14 to 15 s a round for 3,300 prompts at --preset=world on two CPU cores
(docs/results.md, labels). Result: with the pipeline's own settings the rankings
equal the pipeline's.
"""

import sys

from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.pipeline import labels


def get_config(preset: str = "world"):
  """Returns how many answers are ranked, by size."""
  return presets.labels(preset)


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "labels",
      get_config,
      labels.run,
      __doc__,
      default_preset="world",
      presets=presets.NAMES,
    )
  )
