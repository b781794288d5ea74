"""Writes the web's public comparisons: replies, ranked as readers voted."""

from __future__ import annotations

import random
from typing import Any

from instructgpt_jax.world import gold, replies
from instructgpt_jax.world.documents import GRADED, Web
from instructgpt_jax.world.labelers import to_ranks

REPLIES = 5  # to a question, at most
_DRAWS = 12  # after which a question has fewer different replies
# The readers' mean vote is the gold score, to a quarter of a point of the
# labelers' scale of 1 to 7: a crowd has little noise.
_STEPS = 4


def compare(web: Web, rng: random.Random) -> dict[str, Any]:
  """Draws a question of the web, and ranks replies of several people to it.

  Like votes on the real web, such rankings teach a model to distinguish good
  replies from bad ones before labelers rank any (arXiv:2112.00861, section 4).

  Returns:
    `prompt`, `completions`, all of them different, and `ranks`: 1 is best, and
    not all are equal.
  """
  while True:
    request, text = web.ask(rng)
    written: dict[str, None] = {}
    for _ in range(_DRAWS):
      persona = replies.draw_persona(GRADED, rng)
      written[replies.reply(request, persona, rng)] = None
      if len(written) == REPLIES:
        break
    votes = [
      round(_STEPS * gold.label(text, reply, world=web.world).likert)
      for reply in written
    ]
    if len(set(votes)) > 1:
      return {
        "prompt": text,
        "completions": list(written),
        "ranks": to_ranks(votes),
      }
