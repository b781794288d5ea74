"""Trains PPO-ptx: PPO with γ · the pretraining gradient in every update (C.4).

  python -m experiments.ppo_ptx --preset=tiny --workdir=runs/ppo_ptx \\
    --init_from=runs/policy_init --ppo.reward_model=runs/reward \\
    --data.prompts=prompts.jsonl --data.pretraining='text/**'

The paper has γ = 27.8 and 8 pretraining rows an episode. Logs what `ppo` logs,
the gradient norms of both terms, and the angle between them.

Cost: 62 s in `make demo` on two CPU cores. Result there: gold score 0.56
to 0.59 at temperature 1; 92 to 96 % of the language-model loss that PPO adds is
removed (docs/results.md).
"""

import functools
import sys

from instructgpt_jax import recipes
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.training import ppo


def get_config(preset: str = "1.3b"):
  """Returns C.4's settings by size, with the pretraining term."""
  return presets.ppo_ptx(preset)


def sweep() -> dict[str, str]:
  """Returns E.6's γ and episodes, E.7's β, E.9's rates and E.11's grids."""
  return {
    "ptx_coef": "ppo.ptx_coef=log:0.464159:129.155:12",
    "kl_coef": "ppo.kl_coef=0,7.5e-4,0.0104,0.02,0.03,0.144,2",
    "learning_rate": "optimizer.learning_rate=log:2.55e-6:2.55e-5:7",
    "episodes": "ppo.episodes=256000,512000",
    "ptx_ratio": "ppo.ptx_ratio=4,8,32",
    "rollout_batch": "ppo.rollout_batch=64,128,256,512,1024",
    "minibatch": "ppo.minibatch=8,16,32,64",
    "seeds": "seed=0..2",
  }


if __name__ == "__main__":
  sys.exit(
    launch.main(
      "ppo_ptx",
      get_config,
      functools.partial(
        validation.with_tasks(ppo.train, "ppo"), name="ppo_ptx"
      ),
      __doc__,
      default_preset="1.3b",
      presets=presets.NAMES,
      resolve=recipes.resolve,
    )
  )
