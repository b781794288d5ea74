"""Limits on prompts and responses that keep most of them whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

SHARE = 0.95
_MULTIPLE = 16


class Lengths(NamedTuple):
  """Lengths of a source's training records, in tokens.

  Attributes:
    name: the source, such as "demonstrations".
    records: number of its training records.
    prompts: lengths of prompts.
    responses: lengths of responses; empty where there are none.
    completions: most completions of a ranking; 0 of another source.
  """

  name: str
  records: int
  prompts: Sequence[int]
  responses: Sequence[int]
  completions: int = 0


def covering_limit(lengths: Sequence[int]) -> int:
  """Returns the smallest limit that keeps `SHARE` of the texts whole.

  It is rounded up to a multiple of 16. Without texts it is 0.
  """
  if not len(lengths):
    return 0
  ordered = np.sort(np.asarray(lengths))
  # Rounding keeps 0.95 · 20 at 19.
  index = int(np.ceil(np.round(SHARE * len(ordered), 6))) - 1
  return _round_up(int(ordered[max(index, 0)]))


def largest_limit(sources: Iterable[Sequence[int]]) -> int:
  """Returns the limit that keeps `SHARE` of each source's texts whole."""
  return max((covering_limit(lengths) for lengths in sources), default=0)


def share_whole(lengths: Sequence[int], limit: int) -> float:
  """Returns the share of texts that a limit keeps whole."""
  return float(np.mean(np.asarray(lengths) <= limit))


def cap_limits(prompt: int, response: int, context: int) -> tuple[int, int]:
  """Returns limits whose sum fits the context.

  Where it does not, the response keeps what the prompt leaves, and at least
  half of the context.

  Args:
    prompt: limit of prompts.
    response: limit of responses.
    context: positions of the model.
  """
  response = min(response, max(context - prompt, context // 2))
  return max(1, min(prompt, context - response)), response


def _round_up(length: int) -> int:
  return -(-length // _MULTIPLE) * _MULTIPLE
