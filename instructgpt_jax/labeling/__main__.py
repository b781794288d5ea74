"""Runs `python -m instructgpt_jax.labeling`; see `commands.py`."""

import sys

from instructgpt_jax.labeling import commands

if __name__ == "__main__":
  sys.exit(commands.main())
