"""Runs `python -m instructgpt_jax.serve`; see `command.py`."""

import sys

from instructgpt_jax.serve import command

if __name__ == "__main__":
  sys.exit(command.main())
