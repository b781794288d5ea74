"""Supervised fine-tuning on demonstrations (paper, C.1): the baseline.

  python -m experiments.sft --preset=tiny --workdir=runs/sft \\
    --init_from=runs/pretrain --data.demonstrations=demonstrations.jsonl

16 epochs, cosine to 10 %, dropout 0.2. With --sft.reward_model=DIR the
checkpoint is chosen by that model's score of answers to validation prompts, as
in the paper; by validation loss otherwise.
"""

import sys

from instructgpt_jax import launch, presets
from instructgpt_jax.loops import language, workdir


def get_config(preset: str = "1.3b"):
  """C.1's learning rate and batch by size."""
  return presets.sft(preset)


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "sft",
      get_config,
      language.sft,
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=workdir.inherit,
    )
  )
