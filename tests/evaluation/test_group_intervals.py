"""Intervals over groups of items, and of measures that are no means."""

import functools

import numpy as np
import pytest

from instructgpt_jax import statistics
from instructgpt_jax.evaluation import (
  group_intervals,
  ngram_scorer,
  text_metrics,
)
from tests.interop.tiny import library


def test_items_of_a_group_are_one_unit():
  rng = np.random.default_rng(0)
  values, others = rng.uniform(size=(2, 40))
  names = [f"p{i}" for i in range(40)]
  alone = statistics.bootstrap_interval(values)
  assert group_intervals.grouped_interval(values, names) == alone
  # Items that repeat others add nothing.
  three = group_intervals.grouped_interval(np.tile(values, 3), 3 * names)
  assert three.mean == pytest.approx(alone.mean) and three.units == 40
  assert (three.low, three.high) == pytest.approx((alone.low, alone.high))
  difference = statistics.bootstrap_interval(values, paired=others)
  pairs = group_intervals.grouped_interval(
    np.tile(values, 3), 3 * names, paired=np.tile(others, 3)
  )
  assert pairs.low == pytest.approx(difference.low)
  shares = group_intervals.grouped_interval(
    [1, 1, 0, 0], list("aabb"), share=True
  )
  known = statistics.wilson_interval(1, 2)
  assert (shares.low, shares.high) == pytest.approx((known.low, known.high))


def test_intervals_resample_groups():
  """Copies of a text within a group do not narrow the interval."""
  draw = np.random.default_rng(2)
  x, y = draw.normal(size=(2, 40))
  groups = [f"g{i}" for i in range(40)]
  one = group_intervals.statistic_interval(ngram_scorer.pearson, x, y, groups)
  many = group_intervals.statistic_interval(
    ngram_scorer.pearson, np.tile(x, 9), np.tile(y, 9), groups * 9
  )
  assert many.units == 40
  assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_bleu_intervals_resample_texts():
  library("sacrebleu")
  answers = [f"the cat number {i} sat on a mat" for i in range(40)]
  references = [f"the cat number {i} sat on the mat" for i in range(40)]
  counts = text_metrics.bleu_counts(answers, references)
  interval_of = functools.partial(
    group_intervals.corpus_interval, text_metrics.bleu_of_counts, resamples=50
  )
  interval = interval_of(counts)
  assert interval.mean == pytest.approx(text_metrics.bleu(answers, references))
  assert interval.low <= interval.mean <= interval.high
  same = interval_of(counts, paired=counts)
  assert (same.mean, same.low, same.high) == (0, 0, 0)
  perfect = text_metrics.bleu_counts(references, references)
  paired = interval_of(counts, paired=perfect)
  assert paired.mean == pytest.approx(interval.mean - 100)
  assert np.isnan(interval_of(counts[:5]).low)
