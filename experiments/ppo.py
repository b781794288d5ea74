"""Trains a policy by PPO against a reward model, γ = 0 (paper, C.4).

  python -m experiments.ppo --preset=tiny --workdir=runs/ppo \\
    --init_from=runs/policy_init --ppo.reward_model=runs/reward \\
    --data.prompts=prompts.jsonl

The resulting model has the averaged weights. Watch reward, kl, entropy,
clip_fraction, explained_variance, response_length and ended in metrics.jsonl.

Cost: 26 s in `make demo` on two CPU cores. Result there: gold score 0.55
to 0.59 at temperature 1, against 0.41 to 0.45 of SFT (docs/results.md).
"""

import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.training import ppo


def get_config(preset: str = "1.3b"):
  """Returns C.4's settings by size, without the pretraining term."""
  return presets.ppo(preset)


def sweep() -> dict[str, str]:
  """Returns E.6's 9 values of β (Fig. 34) and E.9's learning rates."""
  return {
    "kl_coef": "ppo.kl_coef=log:5.36539e-5:2:9",
    "learning_rate": "optimizer.learning_rate=log:2.55e-6:2.55e-5:7",
    "seeds": "seed=0..2",
  }


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "ppo",
      get_config,
      validation.with_tasks(ppo.train, "ppo"),
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
