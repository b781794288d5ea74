"""Choices are tested on other data, and one seed has no interval."""

import dataclasses
import math

import numpy as np
import pytest

from instructgpt_jax.studies import analysis

STEPS = range(7)
PROMPTS = 60


@dataclasses.dataclass
class Seed:
  """Fake family: step counts and their gold scores."""

  gold: np.ndarray  # [steps, prompts]

  def measurements(self, job):
    return self.gold[job]


def run(step):
  return lambda family: step


def whole(array):
  return array


OPTIONS = {step: run(step) for step in STEPS}


def seeds(rng, count, spread=0.1):
  """Makes seeds whose steps differ by chance alone."""
  return [
    Seed(
      0.02 * rng.standard_normal((len(STEPS), 1))
      + spread * rng.standard_normal((len(STEPS), PROMPTS))
    )
    for _ in range(count)
  ]


@pytest.fixture
def few_resamples(monkeypatch):
  pooled = analysis.statistics.pooled_interval
  monkeypatch.setattr(
    analysis.statistics,
    "pooled_interval",
    lambda groups: pooled(groups, resamples=200),
  )


def bootstrapped(gaps, rng, resamples=200):
  """Computes the 97.5 % quantile over resampled seeds and prompts."""
  drawn = [
    np.mean(
      [
        rng.choice(gaps[i], PROMPTS)
        for i in rng.integers(len(gaps), size=len(gaps))
      ]
    )
    for _ in range(resamples)
  ]
  return np.quantile(drawn, 0.975)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_fall_is_found_where_there_is_none(few_resamples, count):
  """A peak that is chosen and tested on the same data falls far too often."""
  rng, trials = np.random.default_rng(0), 300
  same, other = 0, 0
  for _ in range(trials):
    families = seeds(rng, count, 0.1 if count > 1 else 0.3)
    means = [np.mean([f.gold[step].mean() for f in families]) for step in STEPS]
    peak = int(np.argmax(means))
    last = run(STEPS[-1])
    gaps = [f.gold[STEPS[-1]] - f.gold[peak] for f in families]
    chosen = analysis.choose_options(families, OPTIONS, whole)
    new = analysis.difference_from_chosen(
      families, last, OPTIONS, chosen, whole
    )
    same += bootstrapped(gaps, rng) < 0
    other += analysis.is_below(new)
  assert same / trials > 0.09
  assert other / trials < 0.06 and other < same


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_a_real_fall_is_found(few_resamples, count):
  rng = np.random.default_rng(1)
  families = seeds(rng, count)
  for family in families:
    family.gold[3] += 0.5
  chosen = analysis.choose_options(families, OPTIONS, whole)
  assert chosen == [3] * count
  share = analysis.difference_from_chosen(
    families, run(STEPS[-1]), OPTIONS, chosen, whole
  )
  assert analysis.is_below(share) and share.mean == pytest.approx(
    -0.5, abs=0.15
  )


def test_a_seeds_choice_excludes_that_seed():
  rng = np.random.default_rng(2)
  families = seeds(rng, 3)
  before = analysis.choose_options(families, OPTIONS, whole)
  families[1].gold[6] += 100.0
  after = analysis.choose_options(families, OPTIONS, whole)
  assert after == [6, before[1], 6]
  # With one seed, prompts that are tested have none.
  (only,) = seeds(rng, 1)
  (before,) = analysis.choose_options([only], OPTIONS, whole)
  only.gold[(before + 1) % 7, 1::2] += 100.0
  assert analysis.choose_options([only], OPTIONS, whole) == [before]
  (remaining,) = analysis.held_out_values([only], lambda unused: run(0), whole)
  np.testing.assert_array_equal(remaining, only.gold[0, 1::2])


def test_one_seed_has_no_interval():
  assert analysis.seeds_interval([1e-9]) is None


@pytest.mark.parametrize(
  "numbers, half",
  [([0.0, 2.0], 12.7062), ([0, 1, 2], 4.3027 / 3**0.5)],
)
def test_intervals_over_seeds_are_students(numbers, half):
  interval = analysis.seeds_interval(numbers)
  assert interval is not None and interval.mean == 1.0
  assert (interval.low, interval.high) == pytest.approx((1 - half, 1 + half))


def test_seeds_that_agree_exactly_conclude_nothing():
  families = [Seed(np.full((len(STEPS), PROMPTS), 0.1)) for _ in range(3)]
  families[0].gold[1] = families[1].gold[1] = families[2].gold[1] = 0.3
  intervals = [
    analysis.seeds_interval([1.0, 1.0]),
    analysis.mean_interval(families, run(1), whole),
    analysis.difference(families, run(1), run(0), whole),
    analysis.difference(families[:1], run(1), run(0), whole),
  ]
  for interval in intervals:
    assert interval is not None and interval.mean > 0
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert not analysis.is_above(interval) and not analysis.is_below(
      interval, 2.0
    )
    assert analysis.format_interval(interval).endswith(" [–]")


def test_intervals_over_seeds_have_their_nominal_coverage():
  rng = np.random.default_rng(3)
  for count in (2, 3, 12, 25):
    covered = 0
    for _ in range(2000):
      interval = analysis.seeds_interval(rng.standard_normal(count))
      assert interval is not None
      covered += interval.low < 0 < interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)
