"""Measures one model on held-out prompts: gold, RM score, KL, tax, bias.

  python -m experiments.evaluate --preset=world --workdir=runs/measured \\
    --init_from=runs/demo/ppo_ptx --measure.start=runs/demo/policy_init \\
    --measure.reward_model=runs/demo/reward --measure.world=runs/demo/world \\
    --data.prompts=runs/demo/world/prompts.jsonl \\
    --data.pretraining=runs/demo/world/pretraining.jsonl

Writes every number by prompt to answers.json, so that models can be compared in
pairs, and the means to complete.json. Outside the embedded world a reward model
is the judge: --measure.judge=DIR.

Cost: at --preset=world, `make demo` measures all models in 57 s on two CPU
cores. Result: the gold score of the demo's PPO-ptx is 0.56 to 0.59 at
temperature 1 (docs/results.md).
"""

import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation import evaluate


def get_config(preset: str = "1.3b"):
  """Returns how much to measure, by size."""
  return presets.evaluate(preset)


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "evaluate",
      get_config,
      evaluate.run,
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
