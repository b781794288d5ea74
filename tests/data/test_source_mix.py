"""Weighted sources: even shares, whatever batch one looks at."""

import fractions
import itertools

import numpy as np
import pytest

from instructgpt_jax.data import batching, ranking_packing
from instructgpt_jax.data.batch_source import (
  BatchSpec,
  MixedIndices,
  ShuffledIndices,
  SourceMix,
)
from instructgpt_jax.data.encoding import EncodedRanking

MIXES = [
  SourceMix((5, 3), (0.7, 0.3)),
  SourceMix((4, 100, 7), (1, 1, 1)),
  SourceMix((2, 9, 5, 3), (50, 3, 0.001, 7)),
  SourceMix((6,), (2.0,)),
]


@pytest.mark.parametrize("mix", MIXES)
def test_order_is_that_of_times(mix):
  sources, uses = mix.order(0, 700)
  total = sum(fractions.Fraction(str(w)) for w in mix.weights)
  shares = [fractions.Fraction(str(w)) / total for w in mix.weights]
  order = list(zip(sources.tolist(), uses.tolist(), strict=True))
  # No record of a source is left out, and each time is at most the next one.
  for i in range(len(shares)):
    ks = [k for source, k in order if source == i]
    assert ks == list(range(len(ks)))
  times = [(k + fractions.Fraction(1, 2)) / shares[s] for s, k in order]
  assert all(a <= b + 1e-9 for a, b in itertools.pairwise(times))
  assert max(times) - 1e-9 <= min(
    (len([s for s in sources if s == i]) + 0.5) / share
    for i, share in enumerate(shares)
  )
  for start, stop in ((0, 1), (1, 2), (13, 14), (250, 700), (9, 9)):
    part = mix.order(start, stop)
    np.testing.assert_array_equal(part[0], sources[start:stop])
    np.testing.assert_array_equal(part[1], uses[start:stop])
    np.testing.assert_array_equal(
      mix.used(stop), np.bincount(sources[:stop], minlength=len(shares))
    )


@pytest.mark.parametrize("mix", MIXES)
def test_shares_hold_for_every_beginning_of_a_run(mix):
  for stop in (1, 7, 100, 12345, 10**7 + 3, 10**12 + 1):
    error = np.abs(mix.used(stop) - stop * mix.shares)
    assert error.max() <= len(mix.counts)
    assert mix.used(stop).sum() == stop


def test_each_source_has_its_own_permutations():
  mix = SourceMix((5, 3), (0.75, 0.25))
  indices = MixedIndices(mix, 3, True)
  taken = indices.take(0, 80)
  first = taken[taken < 5]
  second = taken[taken >= 5] - 5
  assert (len(first), len(second)) == (60, 20)
  for records, count, stream in ((first, 5, 0), (second, 3, 2)):
    single = ShuffledIndices(count, 3, True, stream)
    np.testing.assert_array_equal(records, single.take(0, len(records)))
  for start, stop in ((0, 3), (3, 17), (17, 18), (18, 80), (40, 40)):
    np.testing.assert_array_equal(indices.take(start, stop), taken[start:stop])
  np.testing.assert_array_equal(indices.epoch(2), taken[16:24])
  assert set(MixedIndices(mix, 4, True).take(0, 9)) != set(range(9))
  assert (MixedIndices(mix, 4, True).take(0, 80) != taken).any()


@pytest.mark.parametrize("stop", [0, 1, 8, 33, 400])
def test_uses_are_counted(stop):
  for indices in (
    ShuffledIndices(7, 1, True),
    MixedIndices(SourceMix((5, 3), (0.9, 0.1)), 1, True),
    MixedIndices(SourceMix((5, 3), (0.9, 0.1)), 1, False, stream=1),
  ):
    np.testing.assert_array_equal(
      indices.use_counts(stop),
      np.bincount(indices.take(0, stop), minlength=indices.count),
    )


def rows_of(count, length=4):
  ids = np.arange(count)[:, None] + np.zeros((1, length), int)
  return dict(
    tokens=ids.astype(np.int32),
    segments=np.ones((count, length), np.int32),
    positions=np.tile(np.arange(length), (count, 1)).astype(np.int32),
    weights=np.ones((count, length), np.float32),
  )


def first_tokens(batches, count):
  return [np.asarray(next(batches).tokens)[:, 0].tolist() for _ in range(count)]


def test_batches_resume_and_split_over_processes():
  mix = SourceMix((9, 3), (1, 3))
  rows = rows_of(12)
  spec = dict(batch_size=4, seed=5, mix=mix)
  batches = batching.language_batches(rows, BatchSpec(**spec))
  expected = first_tokens(batches, 30)
  for batch in expected:  # each has its share
    assert sum(i >= 9 for i in batch) == 3
  resumed = batching.language_batches(rows, BatchSpec(**spec))
  first_tokens(resumed, 11)
  state = resumed.get_state()
  again = batching.language_batches(rows, BatchSpec(**spec))
  again.set_state(state)
  assert first_tokens(again, 19) == expected[11:]
  parts = [
    first_tokens(
      batching.language_batches(
        rows, BatchSpec(**spec, shard_index=i, shard_count=2)
      ),
      30,
    )
    for i in range(2)
  ]
  assert [a + b for a, b in zip(*parts, strict=True)] == expected


def test_pretraining_rows_are_mixed_too():
  rows, others = rows_of(8), rows_of(12)
  others["tokens"] += 100
  mix = SourceMix((9, 3), (1, 1))
  spec = BatchSpec(batch_size=4, seed=5)
  batches = batching.mixed_language_batches(
    rows, others, 0.5, spec, pretraining_mix=mix
  )
  ids = np.array(first_tokens(batches, 40))
  mixed_in = ids[ids >= 100] - 100
  assert len(mixed_in) == 160 and (mixed_in >= 9).sum() == 80
  # The demonstrations are those of a run without weights.
  plain = first_tokens(batching.language_batches(rows, spec), 40)
  assert [row[:4] for row in ids.tolist()] == plain
  shares = batching.mixed_shares(
    rows, others, 0.5, spec, steps=40, pretraining_mix=mix
  )
  np.testing.assert_allclose(shares[-1], 0.5)


def test_prompts_are_mixed():
  prompts = [np.full(1 + i % 3, i) for i in range(10)]
  mix = SourceMix((2, 8), (4, 1))
  batches = batching.prompt_batches(
    prompts, BatchSpec(batch_size=5, mix=mix), width=3, pad_id=0
  )
  for _ in range(20):
    assert (np.asarray(next(batches).ids) < 2).sum() == 4


def test_rankings_are_mixed():
  rankings = [
    EncodedRanking(
      np.full(3, i), (np.full(1 + i % 4, i), np.full(2, i)), (1, 2)
    )
    for i in range(12)
  ]
  mix = SourceMix((2, 10), (1, 1))
  spec = BatchSpec(batch_size=4, epochs=3, mix=mix)
  batches = list(
    ranking_packing.ranking_batches(
      rankings, spec, layout=ranking_packing.Layout(1, 4), pad_id=0
    )
  )
  ids = np.concatenate([np.asarray(b.ids).reshape(-1) for b in batches])
  assert len(ids) == 36 and (ids < 2).sum() == 18
  np.testing.assert_array_equal(
    np.bincount(ids, minlength=12), MixedIndices(mix, 0, True).use_counts(36)
  )


def test_counts_that_do_not_fit_are_refused():
  with pytest.raises(ValueError):
    batching.language_batches(
      rows_of(4), BatchSpec(batch_size=2, mix=SourceMix((3,), (1,)))
    )
