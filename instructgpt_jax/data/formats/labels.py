"""Labels and weights: which completions may be learned."""

from __future__ import annotations

import re
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.json_values import as_number, is_blank

# What labels of completions mean, in lower case with "_" between words.
_GOOD = frozenset(
  ("true", "1", "1.0", "good", "desirable", "chosen", "yes", "positive")
  + ("like", "liked", "accept", "accepted", "approved", "preferred", "correct")
  + ("upvote", "upvoted", "thumbs_up", "thumbsup", "+1", "👍")
)
_BAD = frozenset(
  ("false", "0", "0.0", "-1", "-1.0", "bad", "undesirable", "no", "negative")
  + ("reject", "rejected", "dislike", "disliked", "disapproved", "incorrect")
  + ("wrong", "downvote", "downvoted", "thumbs_down", "thumbsdown", "👎")
)


def is_zero(value: Any) -> bool:
  """Returns whether a weight or flag excludes a record or reply.

  A negative weight does so too.
  """
  if isinstance(value, str) and value.strip().lower() in ("false", "no"):
    return True
  if isinstance(value, bool):
    return not value
  number = as_number(value)
  return number is not None and number <= 0


def reason_to_exclude(label: Any) -> str:
  """Returns why a completion with a label is not learned, or "".

  A label is a flag, a number or a word, or a list of just one of them. What is
  blank is no label.
  """
  while isinstance(label, list) and len(label) == 1:
    label = label[0]
  if is_blank(label):
    return ""
  word = re.sub(r"[\s-]+(?=\D)", "_", str(label).strip().lower())
  if not word or word in _GOOD:
    return ""
  return skips.BAD if word in _BAD else skips.UNKNOWN_LABEL
