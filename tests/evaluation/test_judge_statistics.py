"""Win rates, length control and agreement of judges of known preference."""

import numpy as np
import pytest

from instructgpt_jax.evaluation import judge_statistics, pair_judges
from instructgpt_jax.evaluation.judge_pairs import Pair
from tests.evaluation.made_judges import TEMPLATE, RuleJudge, longer


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
  monkeypatch.setattr(judge_statistics, "RESAMPLES", 100)


def make_pairs(count, shift=0.0, seed=0, labels=()):
  """Makes pairs; the first answer is longer by `shift` deviations."""
  random = np.random.default_rng(seed)
  difference = np.rint(random.normal(shift, 1, count) * 300).astype(int)
  return [
    Pair(
      f"prompt {i}", "x" * (2000 + d), "y" * 2000,
      labels[i] if len(labels) else (),
    )
    for i, d in enumerate(difference)
  ]  # fmt: skip


def judged(rule, pairs):
  verdicts = pair_judges.judge_pairs(RuleJudge(rule), pairs, TEMPLATE)
  return judge_statistics.gather_verdicts(pairs, verdicts)


def summary(rule, pairs):
  return judge_statistics.summarize(judged(rule, pairs)[0])


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_a_judge_of_length_alone_is_even_at_equal_lengths(shift):
  pairs = make_pairs(400, shift)
  figures = summary(longer, pairs)
  share = np.mean([len(p.first) > len(p.second) for p in pairs])
  assert figures["win_rate"]["mean"] == pytest.approx(share, abs=0.01)
  rate = figures["length_controlled"]
  assert rate["mean"] == pytest.approx(0.5, abs=0.1)
  assert rate["low"] < rate["mean"] < rate["high"]
  assert figures["longer_preferred"]["mean"] == 1
  assert figures["longer_preferred"]["low"] > 0.9
  assert figures["length_correlation"]["low"] > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_noisy_judge_of_length_is_even_at_equal_lengths(seed):
  """It chooses by the sigmoid of the difference; both models are as good."""
  random = np.random.default_rng(seed)
  length = random.normal(250, 300, 2000)
  probability = 1 / (1 + np.exp(-length / 100))
  preference = (random.random(2000) < probability) * 1.0
  assert preference.mean() > 0.7
  rate = judge_statistics.length_controlled_rate(preference, length)
  assert rate == pytest.approx(0.5, abs=0.06)


def test_a_judge_of_quality_keeps_its_rate_at_equal_lengths():
  """Quality is independent of the length, so both rates are the same."""
  random = np.random.default_rng(1)
  better = {f"{i}": random.random() < 0.7 for i in range(800)}
  pairs = [
    Pair(i, "x" * random.integers(1, 999), "y" * random.integers(1, 999))
    for i in better
  ]

  def judge(questions):
    values = []
    for question in questions:
      prompt, a, _ = question.split("\x1f")
      values.append(float((a[0] == "x") == better[prompt]))
    return [pair_judges.Verdict(v) for v in values]

  verdicts, _ = judge_statistics.gather_verdicts(
    pairs, pair_judges.judge_pairs(judge, pairs, TEMPLATE)
  )
  figures = judge_statistics.summarize(verdicts)
  share = np.mean(list(better.values()))
  assert figures["win_rate"]["mean"] == pytest.approx(share)
  assert figures["length_controlled"]["mean"] == pytest.approx(share, abs=0.02)
  assert figures["length_controlled"]["low"] < share
  assert figures["length_controlled"]["high"] > share
  correlation = figures["length_correlation"]
  assert correlation["low"] < 0 < correlation["high"]


def test_the_fit_recovers_the_logistic_model_that_made_the_verdicts():
  random = np.random.default_rng(2)
  length = random.normal(100, 300, 40_000)
  logits = 0.8 + 1.5 * np.tanh(length / length.std())
  preference = (random.random(40_000) < 1 / (1 + np.exp(-logits))) * 1.0
  rate = judge_statistics.length_controlled_rate(preference, length)
  assert rate == pytest.approx(1 / (1 + np.exp(-0.8)), abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_fit_ends_where_one_model_always_wins(value):
  length = np.random.default_rng(3).normal(size=300)
  rate = judge_statistics.length_controlled_rate(np.full(300, value), length)
  assert rate == pytest.approx(value, abs=0.02)


def test_lengths_of_one_sign_determine_no_controlled_rate():
  pairs = [Pair(str(i), "x" * (5 + i), "y") for i in range(40)]
  assert summary(longer, pairs)["length_controlled"] is None


def test_a_judge_of_the_position_is_exposed():
  figures = summary(lambda a, b: 1.0, make_pairs(60))
  assert figures["position_consistency"]["mean"] == 0
  assert figures["first_position"]["mean"] == 1
  assert figures["win_rate"]["mean"] == 0.5 and figures["ties"] == 1
  assert figures["longer_preferred"] is None
  assert figures["length_correlation"] is None


def test_a_judge_of_ties_has_no_decided_verdict():
  figures = summary(lambda a, b: 0.5, make_pairs(60))
  assert figures["position_consistency"]["mean"] == 1
  assert figures["first_position"] is None


def test_few_prompts_have_no_bootstrap():
  figures = summary(longer, make_pairs(12, 0.2))
  assert figures["length_controlled"]["low"] is None
  assert figures["win_rate"]["units"] == 12


def test_spearman_shares_ranks_of_equal_values():
  stats = pytest.importorskip("scipy.stats")
  a = np.array([1.0, 2, 2, 3, 0, 2])
  b = np.array([3.0, 1, 4, 4, 0, 4])
  assert judge_statistics.spearman(a, b) == pytest.approx(
    stats.spearmanr(a, b).statistic
  )


def test_agreement_with_labels():
  """Three annotators of four pairs; the judge prefers the longer answer."""
  labels = [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.5, 0.0), (0.5, 0.5, 1.0)]
  pairs = [
    Pair("a", "xx", "y", labels[0]),
    Pair("b", "xx", "y", labels[1]),
    Pair("c", "xx", "y", labels[2]),
    Pair("d", "x", "y", labels[3]),
  ]
  verdicts, usable = judged(longer, pairs)
  figures = judge_statistics.measure_agreement(usable, verdicts)
  assert (figures["pairs"], figures["decided"]) == (4, 2)
  assert figures["accuracy"]["mean"] == 0.5
  # 2/3, 0, 1/3 and 2/3 of the annotators agree with the judge.
  assert figures["agreement"]["mean"] == pytest.approx(5 / 12)
  # 1/3, 1, 0 and 1/3 of the pairs of annotators agree.
  assert figures["annotators"]["mean"] == pytest.approx(5 / 12)
  # Judge 1, 1, 1, ½; majority 1, 0, ½, ½: chance is 3/4 · 1/4 + 1/4 · 1/2.
  kappa = figures["kappa"]
  assert kappa["mean"] == pytest.approx((0.5 - 0.3125) / (1 - 0.3125))
  assert kappa["low"] is None and kappa["units"] == 4
  assert figures["labels_longer_preferred"]["mean"] == 0.5


def test_kappa_has_an_interval_over_prompts():
  """Of two balanced verdicts it is 2 p − 1, with p the share of agreement."""
  random = np.random.default_rng(4)
  agrees = random.random(400) < 0.75
  pairs = [
    Pair(p.prompt, p.first, p.second, (float(
      (len(p.first) > len(p.second)) == same),))
    for p, same in zip(make_pairs(400), agrees, strict=True)
  ]  # fmt: skip
  verdicts, usable = judged(longer, pairs)
  kappa = judge_statistics.measure_agreement(usable, verdicts)["kappa"]
  share = agrees.mean()
  assert kappa["mean"] == pytest.approx(2 * share - 1, abs=0.02)
  error = 2 * np.sqrt(share * (1 - share) / 400)
  width = kappa["high"] - kappa["low"]
  assert width == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_verdicts_of_one_order_do_not_count():
  pairs = make_pairs(4)
  verdicts, usable = judged(lambda a, b: None if a[0] == "x" else 1.0, pairs)
  assert len(verdicts.preference) == 0 and usable == []
