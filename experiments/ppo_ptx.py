"""PPO-ptx: PPO with γ · the pretraining gradient in every update (C.4).

  python -m experiments.ppo_ptx --preset=tiny --workdir=runs/ppo_ptx \\
    --init_from=runs/policy_init --ppo.reward_model=runs/reward \\
    --data.prompts=prompts.jsonl --data.pretraining='text/**'

γ = 27.8 and 8 pretraining rows an episode in the paper. Besides what `ppo`
logs: the gradient norms of both terms, and the angle between them.
"""

import functools
import sys

from instructgpt_jax import launch, presets
from instructgpt_jax.loops import ppo, workdir


def get_config(preset: str = "1.3b"):
  """C.4's learning rate by size, with the pretraining term."""
  return presets.ppo_ptx(preset)


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "ppo_ptx",
      get_config,
      functools.partial(ppo.train, name="ppo_ptx"),
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=workdir.inherit,
    )
  )
