"""Encoded rankings for tests."""

import numpy as np

from instructgpt_jax.data.encoding import EncodedRanking


def rankings_of(count):
  """Makes small rankings, distinguished by prompt tokens 10, 11, …"""
  return [
    EncodedRanking(
      np.full(1 + i % 4, 10 + i, np.int32),
      tuple(np.full(1 + j, 50 + j, np.int32) for j in range(2 + i % 3)),
      tuple(range(1, 3 + i % 3)),
    )
    for i in range(count)
  ]


def ragged(count, seed=0):
  """Makes rankings with prompts and completions of very different lengths."""
  rng = np.random.default_rng(seed)

  def ids(mean):
    return np.ones(int(np.clip(rng.lognormal(np.log(mean), 0.7), 1, 400)))

  return [
    EncodedRanking(ids(30), tuple(ids(12) for _ in range(k)), tuple(range(k)))
    for k in rng.integers(4, 10, count)
  ]
