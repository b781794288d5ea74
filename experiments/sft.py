"""Fine-tunes on demonstrations (paper, C.1); the result is the baseline.

  python -m experiments.sft --preset=tiny --workdir=runs/sft \\
    --init_from=runs/pretrain --data.demonstrations=demonstrations.jsonl

Trains for 16 epochs with a cosine schedule to 10 % and dropout 0.2. With
--sft.reward_model=DIR the checkpoint is chosen by that model's score of answers
to validation prompts, as in the paper; by validation loss otherwise.

Cost: 9 s in `make demo` on two CPU cores. Result there: gold score 0.41
to 0.45 at temperature 1, against 0.27 to 0.29 of the base model
(docs/results.md).
"""

import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.training import sft


def get_config(preset: str = "1.3b"):
  """Returns C.1's learning rate and batch by size."""
  return presets.sft(preset)


def sweep() -> dict[str, str]:
  """Returns C.1's 7 learning rates, both chosen ones included, and epochs."""
  return {
    "learning_rate": "optimizer.learning_rate=log:1.36662e-6:6.81405e-5:7",
    "epochs": "sft.epochs=1,2,4,8,16",
    "seeds": "seed=0..2",
  }


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "sft",
      get_config,
      validation.with_tasks(sft.train, "sft"),
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
