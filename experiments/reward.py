"""Trains the reward model on ranked completions (paper, 3.5 and C.2).

  python -m experiments.reward --preset=tiny --workdir=runs/reward \\
    --init_from=runs/policy_init --data.comparisons=rankings.jsonl \\
    --data.demonstrations=demonstrations.jsonl

Trains for one epoch; a prompt with its K completions is one batch element. At
the end a bias makes demonstrations score 0 on average. Prints the accuracy on
held-out rankings with its 95 % interval.

Cost: 26 s for the last reward model of `make demo` on two CPU cores.
Result there: 0.657 to 0.682 of held-out pairs in the labelers' order
(docs/results.md).
"""

import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.training import reward


def get_config(preset: str = "6b"):
  """Returns C.2's recipe; one 6B reward model scores every policy."""
  return presets.reward(preset)


def sweep() -> dict[str, str]:
  """Returns C.2's learning rates, schedules and epochs."""
  return {
    "learning_rate": "optimizer.learning_rate=4.5e-6,9e-6,1.35e-5",
    "schedule": "optimizer.schedule=cosine,constant",
    "epochs": "reward.epochs=1,2,4",
    "seeds": "seed=0..2",
  }


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "reward",
      get_config,
      reward.train,
      __doc__,
      default_preset="6b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
