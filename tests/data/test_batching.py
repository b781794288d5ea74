"""Batches: each record once an epoch, exact positions, equal on all hosts."""

import json

import numpy as np
import pytest

from instructgpt_jax.data import batching, ranking_packing
from instructgpt_jax.data.batch_source import BatchSpec
from tests.data.ranked import rankings_of


def rows_of(count, length=4, first=100):
  tokens = np.repeat(np.arange(first, first + count)[:, None], length, axis=1)
  return dict(
    tokens=tokens.astype(np.int32),
    segments=np.ones((count, length), np.int32),
    positions=np.tile(np.arange(length, dtype=np.int32), (count, 1)),
    weights=np.ones((count, length), np.float32),
  )


def prompts_of(count):
  return [np.full(1 + i % 5, 10 + i, np.int32) for i in range(count)]


def language(padded_size=0, **kw):
  spec = BatchSpec(batch_size=4, **kw)
  return batching.language_batches(rows_of(7), spec, padded_size=padded_size)


def mixed(padded_size=0, **kw):
  spec = BatchSpec(batch_size=3, **kw)
  return batching.mixed_language_batches(
    rows_of(7), rows_of(5, first=500), 0.25, spec, padded_size=padded_size
  )


def ranking(epochs=1, **kw):
  layout = ranking_packing.Layout(rows_per_group=1, num_groups=2)
  spec = BatchSpec(batch_size=4, epochs=epochs, **kw)
  return ranking_packing.ranking_batches(
    rankings_of(7), spec, pad_id=0, layout=layout
  )


def prompt(**kw):
  spec = BatchSpec(batch_size=4, **kw)
  return batching.prompt_batches(prompts_of(7), spec, width=6, pad_id=0)


MAKERS = [language, mixed, ranking, prompt]


def leaves(batch):
  arrays = {
    k: v for k, v in vars(batch).items() if k != "span" and v is not None
  }
  return {k: np.asarray(v) for k, v in arrays.items()}


def assert_same(a, b):
  a, b = leaves(a), leaves(b)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize("make", MAKERS)
def test_position_is_restored_exactly(make):
  """INVARIANTS 30: the data order resumes where it stopped."""
  whole = make(seed=3, epochs=4)
  batches = list(whole)
  assert len(batches) >= 7
  for stop in (0, 1, 3, len(batches)):
    first = make(seed=3, epochs=4)
    for _ in range(stop):
      next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = make(seed=3, epochs=4)
    next(second)
    second.set_state(state)
    rest = list(second)
    assert len(rest) == len(batches) - stop
    for a, b in zip(rest, batches[stop:], strict=True):
      assert_same(a, b)


@pytest.mark.parametrize("make", MAKERS)
def test_hosts_read_shards_of_the_same_batches(make):
  whole = list(make(seed=1, epochs=3))
  shards = [
    list(make(seed=1, epochs=3, shard_index=i, shard_count=2)) for i in (0, 1)
  ]
  assert len(whole) == len(shards[0]) == len(shards[1])
  for full, left, right in zip(whole, *shards, strict=True):
    for name, value in leaves(full).items():
      joined = np.concatenate([leaves(left)[name], leaves(right)[name]])
      np.testing.assert_array_equal(joined, value)


@pytest.mark.parametrize("make", MAKERS)
def test_a_batch_that_process_shards_do_not_divide_is_refused(make):
  with pytest.raises(ValueError, match="shards"):
    make(shard_count=3)


def test_order_depends_on_seed_and_epoch():
  def order(seed, **kw):
    batches = language(seed=seed, epochs=2, **kw)
    return np.concatenate([b.tokens[:, 0] for b in batches])[:14].tolist()

  assert order(0) == order(0)
  assert order(0) != order(1)
  assert order(0)[:7] != order(0)[7:], "epochs differ"
  assert order(0, shuffle=False) == [*range(100, 107)] * 2
  assert order(2**40 + 1) != order(1), "large seeds count in full"


def test_each_record_once_an_epoch_and_none_dropped():
  batches = list(language(seed=0, epochs=3))
  assert len(batches) == 6 and all(b.tokens.shape == (4, 4) for b in batches)
  real = np.concatenate([b.tokens[b.segments[:, 0] > 0, 0] for b in batches])
  for e in range(3):
    assert sorted(real[7 * e : 7 * e + 7]) == [*range(100, 107)]
  last = batches[-1]
  empty = last.segments[:, 0] == 0
  assert empty.sum() == 3
  assert not last.weights[empty].any() and not last.tokens[empty].any()


def test_batches_without_end_are_full():
  batches = language(seed=0)
  assert all((next(batches).segments > 0).all() for _ in range(40))


def test_source_rows_are_not_written_to():
  rows = rows_of(3)
  before = rows["tokens"].copy()
  list(batching.language_batches(rows, BatchSpec(batch_size=4, epochs=1)))
  np.testing.assert_array_equal(rows["tokens"], before)


def test_mixed_batches_have_the_fraction_of_pretraining_rows():
  batches = list(mixed(seed=0, epochs=2))
  assert len(batches) == 5
  theirs = []
  for b in batches:
    assert (b.tokens[:, 0] >= 500).tolist() == [False, False, False, True]
    theirs.append(b.tokens[3, 0])
  assert sorted(theirs) == [*range(500, 505)], "a whole epoch of the others"
  mine = np.concatenate(
    [b.tokens[:3][b.segments[:3, 0] > 0, 0] for b in batches]
  )
  assert sorted(mine) == sorted([*range(100, 107)] * 2)


def counts(batch):
  """Counts rows of demonstrations, of pretraining and of padding."""
  first = np.asarray(batch.tokens)[:, 0]
  real = np.asarray(batch.segments)[:, 0] > 0
  assert not np.asarray(batch.weights)[~real].any()
  return (
    int((real & (first < 500)).sum()),
    int((real & (first >= 500)).sum()),
    int((~real).sum()),
  )


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 32])
def test_pretraining_rows_are_spread_evenly_over_the_steps(fraction, size):
  """After every step the share differs from the fraction by under one row."""
  batches = batching.mixed_language_batches(
    rows_of(40),
    rows_of(7, first=500),
    fraction,
    BatchSpec(batch_size=size, seed=2),
  )
  total, others = 0, 0
  for _ in range(60):
    mine, theirs, _ = counts(next(batches))
    assert mine == size
    total, others = total + mine + theirs, others + theirs
    assert abs(others - fraction * total) <= 1


def test_mixed_batches_without_pretraining_rows():
  args = rows_of(4), rows_of(4, first=500)
  plain = next(
    batching.mixed_language_batches(
      *args, 0.0, BatchSpec(batch_size=4, epochs=1)
    )
  )
  assert (plain.tokens < 500).all()
  with pytest.raises(ValueError, match="length"):
    batching.mixed_language_batches(
      rows_of(2, 4), rows_of(2, 8), 0.5, BatchSpec(batch_size=4)
    )


@pytest.mark.parametrize("make", [language, mixed])
def test_padded_size_changes_nothing_but_the_padding(make):
  """Rows and their positions do not depend on the mesh."""
  narrow, wide = (
    list(make(seed=4, epochs=3, padded_size=size)) for size in (4, 16)
  )
  assert len(narrow) == len(wide) > 4
  for a, b in zip(narrow, wide, strict=True):
    assert b.tokens.shape[0] == 16
    for name, value in leaves(a).items():
      np.testing.assert_array_equal(leaves(b)[name][:4], value)
    assert not np.asarray(b.weights)[4:].any()
    assert not np.asarray(b.segments)[4:].any()


def test_a_padded_size_below_the_batch_is_refused():
  with pytest.raises(ValueError, match="padded"):
    language(padded_size=2)


def test_shares_of_a_mixture_are_those_of_its_batches():
  rows, others = rows_of(7), rows_of(5, first=500)
  rows["weights"][:, :3] = 0
  others["weights"][2] = 0
  batches = batching.mixed_language_batches(
    rows, others, 0.4, BatchSpec(batch_size=2, seed=5)
  )
  shares = batching.mixed_shares(
    rows, others, 0.4, BatchSpec(batch_size=2, seed=5), steps=12
  )
  sums = np.zeros((2, 2))
  for step in range(12):
    batch = next(batches)
    theirs = np.asarray(batch.tokens)[:, 0] >= 500
    real = np.asarray(batch.segments)[:, 0] > 0
    tokens = np.asarray(batch.weights)[:, 1:].sum(axis=1)
    for kind, chosen in enumerate((real & ~theirs, real & theirs)):
      sums[kind] += chosen.sum(), tokens[chosen].sum()
    np.testing.assert_allclose(shares[step], sums[1] / sums.sum(axis=0))


def test_prompts_are_left_padded_and_have_ids():
  data = prompts_of(7)
  batches = list(prompt(seed=0, epochs=1))
  ids = np.concatenate([b.ids for b in batches])
  assert sorted(ids[:7]) == [*range(7)] and ids[7:].tolist() == [-1]
  for b in batches:
    assert b.mask[:, -1].all(), "the last position is a real token"
    for tokens, mask, i in zip(b.tokens, b.mask, b.ids, strict=True):
      assert not tokens[~mask].any()
      if i >= 0:
        assert tokens[mask].tolist() == data[i].tolist()


def test_no_records_are_refused():
  with pytest.raises(ValueError, match="at least one"):
    batching.language_batches(rows_of(0), BatchSpec(batch_size=2))
