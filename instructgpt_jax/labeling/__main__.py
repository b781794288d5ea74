"""Runs `python -m instructgpt_jax.labeling`; see `commands/main.py`."""

import sys

from instructgpt_jax.labeling.commands import main

if __name__ == "__main__":
  sys.exit(main.main())
