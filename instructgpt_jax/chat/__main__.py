"""Runs `python -m instructgpt_jax.chat`; see `command.py`."""

import sys

from instructgpt_jax.chat import command

if __name__ == "__main__":
  sys.exit(command.main())
