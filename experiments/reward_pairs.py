"""Measures what a model reads in pairs of replies, in the embedded world.

  python -m experiments.reward_pairs --preset=world --workdir=runs/read \\
    --init_from=runs/demo/reward --pairs.world=runs/demo/world \\
    --pairs.held_out=runs/demo/rankings/round_1.jsonl \\
    --data.comparisons=runs/demo/rankings/round_1.jsonl

Of held-out pairs and of those trained on it counts how many a reward model
orders as the labelers did, and how many a perfect reader of the gold score
would: by prompt family, by what the replies differ in, by how far their gold
scores are apart, and by file. A language model is measured by linear probes on
its states. pairs.json has the counts by prompt, complete.json the shares.

Cost: seconds to minutes on two CPU cores, by the number of rankings. Result:
make study STUDY=reward_limits shows it for many reward models.
"""

import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation import reward_pairs


def get_config(preset: str = "world"):
  """Returns the recipe by size; its reward section selects rankings."""
  return presets.reward_pairs(preset)


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "reward_pairs",
      get_config,
      reward_pairs.run,
      __doc__,
      default_preset="world",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
