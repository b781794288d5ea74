"""Trains the base model: language modelling on raw text (GPT-3's recipe).

  python -m experiments.pretrain --preset=tiny --workdir=runs/pretrain \\
    --data.pretraining='text/**'

Trains a tokenizer on the text unless --tokenizer.path names one. Writes
metrics.jsonl, checkpoints/, tokenizer/ and model/ into the workdir.

Cost: 133 s in `make demo` on two CPU cores. Result there: 0.82 to 0.83
nats a token on held-out text (docs/results.md).
"""

import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.training import pretrain


def get_config(preset: str = "1.3b"):
  """Returns GPT-3's batch and learning rate by size."""
  return presets.pretrain(preset)


def sweep() -> dict[str, str]:
  """Returns seeds alone: the paper takes GPT-3 unchanged."""
  return {"seeds": "seed=0..2"}


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "pretrain",
      get_config,
      validation.with_tasks(pretrain.train, "pretrain"),
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
