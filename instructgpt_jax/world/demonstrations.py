"""Writes demonstrations as labelers do: mostly right, often too long."""

from __future__ import annotations

import random

from instructgpt_jax.world import replies
from instructgpt_jax.world.requests import Request

QUALITY = {"good": 0.26, "wrong": 0.06, "padded": 0.68}


def demonstrate(
  request: Request,
  rng: random.Random,
  *,
  quality: dict[str, float] | None = None,
) -> str:
  """Writes one labeler's completion.

  Args:
    request: the request of the prompt.
    rng: source of persona and wording.
    quality: shares of personas; `QUALITY` by default.
  """
  persona = replies.draw_persona(quality or QUALITY, rng)
  return replies.reply(request, persona, rng)
