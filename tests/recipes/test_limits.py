"""Token limits keep 95 % of the texts whole."""

import numpy as np
import pytest

from instructgpt_jax.recipes import limits


@pytest.mark.parametrize(
  "lengths, expected",
  [
    (range(1, 101), 96),  # 95 texts have at most 95 tokens
    (range(1, 21), 32),  # 19 of 20 have at most 19
    ([16] * 19 + [4000], 16),
    ([16] * 18 + [4000] * 2, 4000),
    ([5], 16),
    ([], 0),
  ],
)
def test_known_distributions(lengths, expected):
  assert limits.covering_limit([*lengths]) == expected


def test_any_sample_is_kept_and_no_smaller_limit_would_do():
  generator = np.random.default_rng(0)
  for count in (1, 7, 19, 20, 21, 1000):
    lengths = generator.geometric(0.01, count)
    limit = limits.covering_limit(lengths)
    assert limit % 16 == 0
    assert limits.share_whole(lengths, limit) >= 0.95
    assert limits.share_whole(lengths, limit - 16) < 0.95


def test_every_source_counts():
  assert limits.largest_limit([[10], [40], []]) == 48
  assert limits.largest_limit([]) == 0


@pytest.mark.parametrize(
  "prompt, response, expected",
  [
    (100, 50, (100, 50)),
    (900, 600, (512, 512)),  # half of the context each
    (1000, 100, (924, 100)),  # a short response stays whole
    (100, 1000, (100, 924)),
  ],
)
def test_limits_fit_the_context(prompt, response, expected):
  assert limits.cap_limits(prompt, response, 1024) == expected
