"""Argument parser of the commands that are not experiments."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError


class CommandParser(argparse.ArgumentParser):
  """Argument parser that raises a UserError instead of exiting.

  The description is printed as it is written, and flags are not abbreviated.
  """

  def __init__(self, **options: Any):
    super().__init__(
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
      **options,
    )

  def error(self, message: str) -> NoReturn:
    """Raises a UserError with argparse's message, and the nearest flag."""
    fix = "--help lists the flags"
    names = [n for a in self._actions for n in a.option_strings if n[1] == "-"]
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown != message:
      flag = unknown.split("=")[0].split()[0]
      message = f"there is no flag {flag}"
      fix = configs.nearest(flag, names) or fix
    raise UserError(message, fix=fix, code="bad_flag")
