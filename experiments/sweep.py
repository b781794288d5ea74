"""Runs one experiment many times: a grid, or a search.

  python -m experiments.sweep --experiment=ppo_ptx --preset=world \\
    --workdir=runs/sweep --sweep='ppo.kl_coef=0.01,0.02,0.05;seed=0..2'
  python -m experiments.sweep --experiment=ppo_ptx --preset=world \\
    --workdir=runs/search --search=tpe --trials=20 --objective=reward \\
    --sweep='optimizer.learning_rate=log:1e-4:1e-2;ppo.kl_coef=lin:0.01:0.3'

All other flags are the experiment's. If they name no start and no data, the
earlier stages are trained once for all runs, on the embedded world. A second
call runs only what is missing. Writes results.csv. See docs/sweeps.md.

Cost: the number of runs times the experiment's, plus the earlier stages.
"""

import importlib
import sys
from types import ModuleType

from instructgpt_jax.sweeps import command


def load(name: str) -> ModuleType | None:
  """Imports an experiment's module; returns None for an unknown name."""
  module = f"experiments.{name}"
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if f"{module}.".startswith(f"{error.name}."):
      return None
    raise


if __name__ == "__main__":
  sys.exit(command.main(sys.argv[1:], load, doc=__doc__))
