"""The share of a chip's memory that a run can use."""

from __future__ import annotations

import os
from collections.abc import Mapping

from instructgpt_jax.errors import UserError
from instructgpt_jax.planner.hardware import Chip

# JAX's variable: the share of a GPU's memory that it reserves at its start; and
# its newer name.
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_NEWER = "XLA_CLIENT_MEM_FRACTION"
_DEFAULT = 0.75  # JAX's own
# What arithmetic may miss of a peak, with room to spare (docs/planning.md).
MARGIN = 0.1


def fraction(chip: Chip, env: Mapping[str, str] = os.environ) -> float:
  """Returns the share of a chip's memory that JAX reserves; 1 on TPUs.

  Raises:
    UserError: the environment variable does not hold a share.
  """
  if chip.platform != "cuda":
    return 1.0
  text = env.get(_NEWER) or env.get(FRACTION) or str(_DEFAULT)
  try:
    share = float(text)
  except ValueError:
    share = 0.0
  if not 0 < share <= 1:
    raise UserError(
      f"{text!r} is not a share of a GPU's memory",
      field=FRACTION,
      fix="give a number above 0, at most 1, or unset the variable",
      code="bad_memory_fraction",
    )
  return share
