"""A pipeline killed at random equals an uninterrupted one, bit for bit."""

import random

import pytest

from tests.training import soak


@pytest.mark.parametrize(
  "kills, until",
  [
    (5, "policy_init"),
    pytest.param(200, "", marks=pytest.mark.soak),
  ],
)
def test_a_pipeline_that_is_killed_again_and_again(
  kills, until, stages, tmp_path
):
  seed = random.SystemRandom().randrange(10**6)
  print(f"seed {seed}")
  compared = soak.soak(
    stages.server,
    [*soak.flags(stages.data), f"--until={until}"],
    tmp_path,
    kills,
    random.Random(seed),
  )
  assert compared >= 1
