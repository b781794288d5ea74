"""Supervised fine-tuning on demonstrations (paper, C.1): the baseline.

  python -m experiments.sft --preset=tiny --workdir=runs/sft \\
    --init_from=runs/pretrain --data.demonstrations=demonstrations.jsonl

16 epochs, cosine to 10 %, dropout 0.2. With --sft.reward_model=DIR the
checkpoint is chosen by that model's score of answers to validation prompts, as
in the paper; by validation loss otherwise.
"""

import sys

from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.training import inheritance, language


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
      language.sft,
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=inheritance.inherit_architecture,
    )
  )
