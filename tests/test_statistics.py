"""The report's statistics against known numbers and brute force."""

import itertools
import math

import numpy as np
import pytest

from instructgpt_jax import statistics


def test_bootstrap_interval_has_the_normal_width_for_many_prompts():
  values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
  result = statistics.bootstrap_interval(values, resamples=4000, seed=1)
  half = statistics.Z_95 * values.std() / math.sqrt(1000)
  assert result.mean == pytest.approx(values.mean())
  assert result.low == pytest.approx(values.mean() - half, abs=0.1 * half)
  assert result.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_linearized_ratio_has_its_mean_and_its_deviation():
  generator = np.random.default_rng(0)
  pairs = generator.integers(1, 15, 400).astype(float)
  right = pairs * generator.uniform(0.4, 0.8, 400)
  values = statistics.linearize_ratio(right, pairs)
  assert values.mean() == pytest.approx(right.sum() / pairs.sum())
  draws = generator.integers(0, 400, (4000, 400))
  ratios = right[draws].sum(axis=1) / pairs[draws].sum(axis=1)
  assert values.std() / math.sqrt(400) == pytest.approx(ratios.std(), rel=0.05)


def test_interval_of_two_prompts_is_students():
  interval = statistics.bootstrap_interval([0.0, 1.0])
  assert interval.mean == 0.5 and interval.units == 2
  assert interval.high - 0.5 == pytest.approx(12.7062 * 0.5, rel=1e-4)
  assert 0.5 - interval.low == pytest.approx(12.7062 * 0.5, rel=1e-4)


@pytest.mark.parametrize("share", [False, True])
def test_one_prompt_has_no_interval(share):
  for interval in (
    statistics.bootstrap_interval([[0.25, 0.75]], share=share),
    statistics.ratio_interval([1.0, 0.0], [2.0, 0.0], share=share),
  ):
    assert interval.mean == 0.5 and interval.units == 1
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert interval.as_dict() == {
      "mean": 0.5, "low": None, "high": None, "units": 1
    }  # fmt: skip
    assert str(interval) == "0.500 [–]"
  seeds = statistics.pooled_interval([[0.3]])
  assert seeds.mean == 0.3 and math.isnan(seeds.low)


def test_few_proportions_have_wilsons_interval():
  """This holds if all are 1, where resamples do not vary."""
  for wins in ([1.0] * 9 + [0.0] * 2, [1.0] * 11, [0.0] * 11):
    interval = statistics.bootstrap_interval(wins, share=True)
    known = statistics.wilson_interval(sum(wins), 11)
    assert (interval.low, interval.high) == (known.low, known.high)
    assert 0 <= interval.low < interval.high <= 1 and interval.units == 11
  never = statistics.bootstrap_interval(np.zeros(500), share=True)
  assert never.low == 0 and 0 < never.high < 0.01
  with pytest.raises(ValueError, match="proportions"):
    statistics.bootstrap_interval([0.5, 1.5], share=True)
  with pytest.raises(ValueError, match="proportions"):
    statistics.ratio_interval([3.0, 1.0], [2.0, 2.0], share=True)


@pytest.mark.parametrize("count", [2, 3, 6, 7, 12, 15, 18, 29, 30, 31, 500])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -71.23])
def test_equal_values_have_no_interval(count, value):
  """This holds for any rounding of the mean and any count."""
  values = np.full(count, value)
  for interval in (
    statistics.bootstrap_interval(values),
    statistics.bootstrap_interval(np.full((count, 5), value)),
    statistics.bootstrap_interval(values + 1e3, paired=np.full(count, 1e3)),
    statistics.ratio_interval(3 * values, np.full(count, 3.0)),
    statistics.ratio_interval(
      value * np.arange(1.0, count + 1), np.arange(1.0, count + 1)
    ),
    statistics.pooled_interval([values]),
    statistics.pooled_interval([values, values[:1]]),
    statistics.pooled_interval([np.full((count, 3), value), values, values]),
  ):
    assert interval.mean == pytest.approx(value)
    assert math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [3, 29, 31, 500])
def test_equal_proportions_have_wilsons_interval(count, share):
  known = statistics.wilson_interval(share * count, count)
  for interval in (
    statistics.bootstrap_interval(np.full((count, 5), share), share=True),
    statistics.ratio_interval(
      np.full(count, 3 * share), np.full(count, 3.0), share=True
    ),
    statistics.pooled_interval([np.full(count, share)], share=True),
    # Seeds that agree add nothing to the one with the fewest prompts.
    statistics.pooled_interval(
      [np.full(count + 1, share), np.full((count, 2), share)], share=True
    ),
  ):
    assert interval.mean == pytest.approx(share)
    assert interval.units in (count, None)
    bounds = (interval.low, interval.high)
    assert bounds == pytest.approx((known.low, known.high))


def test_nearly_equal_values_have_an_interval():
  """Float32 distinguishes them, so they are not rounding errors."""
  for count in (5, 40):
    values = 1 + 1e-6 * np.arange(count)
    for interval in (
      statistics.bootstrap_interval(values),
      statistics.ratio_interval(values, np.ones(count)),
      statistics.pooled_interval([values, values]),
    ):
      assert interval.low < interval.mean < interval.high


def test_wilsons_interval_of_a_ratio_uses_the_effective_number_of_units():
  equal = statistics.ratio_interval([3.0] * 4, [5.0] * 4, share=True)
  known = statistics.wilson_interval(0.6 * 4, 4)
  assert (equal.low, equal.high) == pytest.approx((known.low, known.high))
  pairs = [36.0, 1.0, 1.0, 1.0]
  unequal = statistics.ratio_interval(0.6 * np.array(pairs), pairs, share=True)
  assert unequal.mean == pytest.approx(0.6) and unequal.units == 4
  assert unequal.high - unequal.low > equal.high - equal.low


@pytest.mark.parametrize("units", [2, 3, 5, 11, 29])
def test_intervals_of_few_units_cover_the_truth(units):
  rng = np.random.default_rng(units)
  trials, inside = 600, dict.fromkeys(("mean", "share", "ratio"), 0)
  for _ in range(trials):
    estimates = {
      "mean": (statistics.bootstrap_interval(rng.normal(2, 1, units)), 2),
      "share": (
        statistics.bootstrap_interval(rng.random(units) < 0.7, share=True),
        0.7,
      ),
    }
    weight = rng.uniform(1, 3, units)
    estimates["ratio"] = (
      statistics.ratio_interval(weight * rng.normal(2, 1, units), weight),
      2,
    )
    for name, (interval, truth) in estimates.items():
      inside[name] += interval.low <= truth <= interval.high
  assert inside["mean"] / trials > 0.92
  assert inside["ratio"] / trials > 0.91
  assert inside["share"] / trials > (0.89 if units < 5 else 0.92)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03, 0.1])
def test_interval_over_seeds_covers_the_truth(seeds, spread):
  """Coverage holds for any ratio of seed and prompt variance."""
  rng = np.random.default_rng(int(1000 * spread) + seeds)
  trials, inside = 800, 0
  for _ in range(trials):
    groups = rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.4, (seeds, 50))
    interval = statistics.pooled_interval(list(groups))
    inside += interval.low <= 0 <= interval.high
  assert inside / trials > 0.93


def test_student_t_known_answers():
  for freedom, known in (
    (1, 12.706), (2, 4.303), (10, 2.228), (29, 2.045), (30, 2.042),
    (60, 2.000), (120, 1.980), (10**6, statistics.Z_95),
  ):  # fmt: skip
    assert statistics.student_t(freedom) == pytest.approx(known, abs=6e-4)
  with pytest.raises(ValueError):
    statistics.student_t(0)


def test_bootstrap_interval_covers_the_truth_about_95_percent_of_the_time():
  rng = np.random.default_rng(0)
  inside = 0
  for trial in range(200):
    result = statistics.bootstrap_interval(
      rng.normal(size=60), resamples=400, seed=trial
    )
    inside += result.low <= 0 <= result.high
  assert 0.89 <= inside / 200 <= 0.98


def test_bootstrap_resamples_prompts_not_samples():
  """Many samples of a prompt do not make the interval narrower."""
  one = np.random.default_rng(0).normal(size=200)
  many = np.repeat(one[:, None], 16, axis=1)
  assert statistics.bootstrap_interval(
    many, resamples=500, seed=3
  ).high == pytest.approx(
    statistics.bootstrap_interval(one, resamples=500, seed=3).high
  )


def test_bootstrap_is_determined_by_its_seed():
  values = np.arange(40.0)
  first = statistics.bootstrap_interval(values, resamples=200, seed=1)
  assert first == statistics.bootstrap_interval(values, resamples=200, seed=1)
  assert first != statistics.bootstrap_interval(values, resamples=200, seed=2)


def test_bootstrap_in_chunks_draws_every_resample(monkeypatch):
  values = np.random.default_rng(0).normal(size=50)
  monkeypatch.setattr(statistics, "_CHUNK", 350)  # 7 resamples at once
  result = statistics.bootstrap_interval(values, resamples=1000, seed=0)
  half = statistics.Z_95 * values.std() / math.sqrt(50)
  assert result.high - result.low == pytest.approx(2 * half, rel=0.15)


def test_paired_bootstrap_removes_variation_between_prompts():
  rng = np.random.default_rng(0)
  difficulty = rng.normal(0, 5, 300)
  a = difficulty[:, None] + 0.5 + rng.normal(0, 0.1, (300, 2))
  b = difficulty[:, None] + rng.normal(0, 0.1, (300, 3))
  result = statistics.bootstrap_interval(a, resamples=500, seed=0, paired=b)
  assert result.mean == pytest.approx(a.mean() - b.mean())
  assert 0.47 < result.low < result.mean < result.high < 0.53


def test_win_rate_counts_a_tie_one_half():
  result = statistics.win_rate([3, 1, 2], [1, 3, 2])
  np.testing.assert_array_equal(result, [1, 0, 0.5])


def test_win_rate_compares_every_pair_of_samples():
  a, b = [[1.0, 4.0], [0.0, 0.0]], [[1.0, 2.0, 5.0], [0.0, 0.0, 0.0]]
  # 1 against 1, 2, 5: ½ + 0 + 0; 4 against them: 1 + 1 + 0.
  np.testing.assert_allclose(statistics.win_rate(a, b), [2.5 / 6, 0.5])
  np.testing.assert_allclose(
    statistics.win_rate(a, b) + statistics.win_rate(b, a), 1
  )


@pytest.mark.parametrize(
  ("successes", "n", "low", "high"),
  [
    (81, 263, 0.255, 0.366),  # Newcombe 1998, table I, method 3
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_interval_equals_published_numbers(successes, n, low, high):
  result = statistics.wilson_interval(successes, n)
  assert result.mean == successes / n
  assert result.low == pytest.approx(low, abs=6e-4)
  assert result.high == pytest.approx(high, abs=6e-4)


def test_wilson_interval_solves_its_equation():
  """Its ends are the p at which the score statistic is exactly z."""
  result = statistics.wilson_interval(7, 12)
  for p in (result.low, result.high):
    score = abs(7 / 12 - p) / math.sqrt(p * (1 - p) / 12)
    assert score == pytest.approx(statistics.Z_95)


def test_wilson_interval_mirrors_and_stays_within_zero_and_one():
  for successes in (0, 1, 2.5, 5):
    result = statistics.wilson_interval(successes, 5)
    mirror = statistics.wilson_interval(5 - successes, 5)
    assert result.low == pytest.approx(1 - mirror.high)
    assert 0 <= result.low <= result.mean <= result.high <= 1


def test_best_of_n_kl_known_answers():
  assert statistics.best_of_n_kl(1) == 0
  assert statistics.best_of_n_kl(2) == pytest.approx(0.19314718055994531)
  assert statistics.best_of_n_kl(16) == pytest.approx(1.8350887222397811)


def test_best_of_n_kl_is_that_of_the_order_statistic():
  """KL of the density n u^(n − 1) from the uniform one, by quadrature."""
  u = (np.arange(200_000) + 0.5) / 200_000
  for n in (3, 8):
    density = n * u ** (n - 1)
    expected = np.mean(density * np.log(density))
    assert statistics.best_of_n_kl(n) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_unbiased_best_of_n_is_the_mean_over_all_subsets(n):
  rng = np.random.default_rng(n)
  proxy, gold = rng.normal(size=(2, 5))
  subsets = list(itertools.combinations(range(5), n))
  expected = np.mean([gold[max(s, key=lambda i: proxy[i])] for s in subsets])
  result = statistics.unbiased_best_of_n(proxy, gold, n)
  assert result == pytest.approx(expected)


def test_unbiased_best_of_n_breaks_ties_at_random():
  proxy, gold = np.array([2, 1, 2, 1, 1]), np.array([5.0, 1.0, 9.0, 3.0, 7.0])
  expected = []
  for order in itertools.permutations(range(5)):  # the first of equals wins
    for subset in itertools.combinations(order, 2):
      expected.append(gold[max(subset, key=lambda i: proxy[i])])
  result = statistics.unbiased_best_of_n(proxy, gold, 2)
  assert result == pytest.approx(np.mean(expected))


def test_unbiased_best_of_n_takes_many_prompts_at_once():
  rng = np.random.default_rng(0)
  proxy, gold = rng.normal(size=(2, 3, 6))
  result = statistics.unbiased_best_of_n(proxy, gold, 4)
  for row, p, g in zip(np.asarray(result), proxy, gold, strict=True):
    assert row == pytest.approx(statistics.unbiased_best_of_n(p, g, 4))
  best = statistics.unbiased_best_of_n(proxy, gold, 6)
  np.testing.assert_allclose(best, gold[range(3), proxy.argmax(axis=1)])


def test_unbiased_best_of_n_stays_finite_for_many_samples():
  samples = np.arange(5000.0)
  result = statistics.unbiased_best_of_n(samples, samples, 2000)
  # The expected maximum of n out of 1 … N is n (N + 1) / (n + 1).
  assert result + 1 == pytest.approx(2000 * 5001 / 2001)


def test_bias_entropy_of_a_fair_two_way_choice_is_one_bit():
  assert statistics.bias_entropy([0.5, 0.5]) == 1
  assert statistics.bias_entropy([0.02, 0.02]) == 1  # normalised here


def test_bias_entropy_known_answers():
  assert statistics.bias_entropy([1.0, 0.0]) == 0
  assert statistics.bias_entropy([1, 3]) == pytest.approx(0.8112781244591328)
  assert statistics.bias_entropy(np.ones(8)) == pytest.approx(3)
  np.testing.assert_allclose(
    statistics.bias_entropy([[1, 1], [1, 3]]), [1, 0.8112781244591328]
  )


@pytest.mark.parametrize(
  "call",
  [
    lambda: statistics.bootstrap_interval([]),
    lambda: statistics.bootstrap_interval([1.0, float("nan")]),
    lambda: statistics.bootstrap_interval([1.0, 2.0], paired=[1.0]),
    lambda: statistics.bootstrap_interval([1.0], resamples=0),
    lambda: statistics.win_rate([1.0], [1.0, 2.0]),
    lambda: statistics.win_rate([float("nan")], [1.0]),
    lambda: statistics.wilson_interval(1, 0),
    lambda: statistics.wilson_interval(3, 2),
    lambda: statistics.best_of_n_kl(0),
    lambda: statistics.unbiased_best_of_n([1.0, 2.0], [1.0, 2.0], 3),
    lambda: statistics.unbiased_best_of_n([1.0, 2.0], [1.0], 1),
    lambda: statistics.bias_entropy([0.0, 0.0]),
    lambda: statistics.bias_entropy([-1.0, 2.0]),
  ],
)
def test_invalid_arguments_are_refused(call):
  with pytest.raises(ValueError):
    call()


def test_interval_as_dict_for_the_report():
  interval = statistics.Interval(0.5, 0.25, 0.75)
  assert interval.as_dict() == {"mean": 0.5, "low": 0.25, "high": 0.75}
  assert str(interval) == "0.500 [0.250, 0.750]"


def test_pooled_interval_covers_seeds_and_prompts():
  """The interval of three differing seeds has its nominal coverage."""
  rng = np.random.default_rng(0)
  inside = 0
  for trial in range(150):
    centres = rng.normal(0.0, 0.5, 5)
    groups = [rng.normal(c, 1.0, 30) for c in centres]
    result = statistics.pooled_interval(groups, resamples=400, seed=trial)
    inside += result.low <= 0 <= result.high
  assert 0.83 <= inside / 150 <= 0.99


def test_pooled_interval_of_like_seeds_is_that_of_all_prompts():
  rng = np.random.default_rng(1)
  values = rng.normal(size=500)
  groups = [values, values, values]
  result = statistics.pooled_interval(groups)
  assert result.mean == pytest.approx(values.mean())
  half = (result.high - result.low) / 2
  # Three seeds of 500 prompts each, independent: 1 / √1500.
  assert half == pytest.approx(
    statistics.Z_95 * values.std(ddof=1) / math.sqrt(1500)
  )


def test_pooled_interval_of_one_prompt_a_seed_is_over_seeds():
  result = statistics.pooled_interval([[0.0], [1.0], [2.0]])
  assert result.mean == 1.0
  assert result.high - 1 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
  with pytest.raises(ValueError, match="no seeds"):
    statistics.pooled_interval([])


def test_doublings():
  assert statistics.doublings(1) == [1]
  assert statistics.doublings(32) == [1, 2, 4, 8, 16, 32]
  assert statistics.doublings(12) == [1, 2, 4, 8]
