"""Argument parser of the commands that are not experiments."""

from __future__ import annotations

import argparse
from typing import NoReturn

from instructgpt_jax.errors import UserError


class CommandParser(argparse.ArgumentParser):
  """Argument parser that raises a UserError instead of exiting."""

  def error(self, message: str) -> NoReturn:
    """Raises a UserError with argparse's message."""
    raise UserError(message, fix="--help lists the flags", code="bad_flag")
