"""Trains the policy that PPO starts from (paper, C.3).

  python -m experiments.policy_init --preset=tiny --workdir=runs/policy_init \\
    --init_from=runs/pretrain --data.demonstrations=demonstrations.jsonl \\
    --data.pretraining='text/**'

Trains for 2 epochs on demonstrations, with 10 % of the rows from pretraining.
The result is also the reference of PPO's KL penalty.

Cost: 8 s in `make demo` on two CPU cores (docs/results.md).
"""

import functools
import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.training import sft


def get_config(preset: str = "1.3b"):
  """Returns C.3's learning rate and batch by size."""
  return presets.policy_init(preset)


def sweep() -> dict[str, str]:
  """Returns E.8's grid: epochs × share of pretraining data."""
  return {
    "initialisation": "sft.epochs=1,2;sft.pretraining_fraction=0,0.1,0.5",
    "seeds": "seed=0..2",
  }


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "policy_init",
      get_config,
      functools.partial(
        validation.with_tasks(sft.train, "sft"), name="policy_init"
      ),
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
