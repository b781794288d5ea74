"""A killed and resumed run equals an uninterrupted one."""

import random

import pytest

from tests.training import results, toy


@pytest.mark.parametrize("name", toy.STAGES)
def test_invariant_30_killed_run_resumes_bit_for_bit(name, stages, tmp_path):
  straight = stages[name]
  total = results.lines(straight)
  seed = random.SystemRandom().randrange(10**6)
  rng = random.Random(seed)
  moments = [
    (int(total * rng.uniform(0.05, 0.5)), rng.uniform(0, 0.04)),
    rng.choice(
      [
        (int(total * rng.uniform(0.5, 0.9)), rng.uniform(0, 0.04)),
        (total, rng.uniform(0, 0.3)),  # while it saves what it has learned
      ]
    ),
  ]
  print(f"seed {seed}: lines of {total}, and seconds after: {moments}")
  command = [f"experiments.{name}", *stages.flags(name)]
  command.append(f"--workdir={tmp_path / 'run'}")
  for count, pause in moments:
    child = stages.server.start(*command)
    done = results.kill_after(child, tmp_path / "run", count, pause)
    assert done.status in (-9, 0 if count == total else -9), done.err
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path / "run", straight)
