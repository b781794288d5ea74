"""Rankings in rows: each complete, masked, and with little padding."""

import math

import numpy as np
import pytest

from instructgpt_jax.configs.presets import model as model_preset
from instructgpt_jax.data import ranking_balance, ranking_packing
from instructgpt_jax.data.batch_source import BatchSpec
from instructgpt_jax.data.encoding import EncodedRanking
from instructgpt_jax.data.ranking_packing import Layout
from instructgpt_jax.models import attention
from instructgpt_jax.models.kernels import attention as attention_kernels
from tests.data.ranked import ragged, rankings_of


def in_batches(data, rows, groups, batch_size=4, epochs=1, **kw):
  return list(
    ranking_packing.ranking_batches(
      data,
      BatchSpec(batch_size=batch_size, epochs=epochs, **kw),
      pad_id=0,
      layout=Layout(rows, groups),
    )
  )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_hold_each_ranking_completely(rows, groups):
  data = rankings_of(7)
  ids = []
  for batch in in_batches(data, rows, groups, seed=0):
    length = batch.tokens.shape[2]
    assert batch.tokens.shape[:2] == (groups, rows) and length % 8 == 0
    assert batch.ends.shape == (groups, 4 // groups, 4)
    real = 0
    for (g, e), i in np.ndenumerate(batch.ids):
      if i < 0:
        assert not batch.valid[g, e].any()
        continue
      ids.append(i)
      prompt, completions, ranks = data[i][:3]
      k = len(ranks)
      assert batch.valid[g, e].tolist() == [j < k for j in range(4)]
      assert batch.ranks[g, e, :k].tolist() == list(ranks)
      used = set()
      for j in range(k):
        row, end = divmod(batch.ends[g, e, j], length)
        used.add(row)
        segments = batch.segments[g, row]
        mine = np.flatnonzero(segments == segments[end])
        before = np.flatnonzero(segments == -e - 1)
        assert mine[-1] == end and before[-1] < mine[0]
        for positions, expected in ((before, prompt), (mine, completions[j])):
          assert (np.diff(positions) == 1).all()
          assert batch.tokens[g, row, positions].tolist() == expected.tolist()
        alone = np.concatenate([before, mine])
        assert batch.positions[g, row, alone].tolist() == [*range(len(alone))]
        real += len(mine)
      assert len(used) == math.ceil(k / math.ceil(k / rows))
      real += len(used) * len(prompt)
    assert (batch.segments != 0).sum() == real
    assert not batch.tokens[batch.segments == 0].any()
  assert sorted(ids) == [*range(7)]


def test_grades_stand_beside_ranks():
  data = [r._replace(grades=[i + 0.5 * rank for rank in r.ranks])
          for i, r in enumerate(rankings_of(7))]  # fmt: skip
  for batch in ranking_packing.ranking_batches(
    data,
    BatchSpec(batch_size=4, epochs=1, seed=0),
    pad_id=0,
    layout=Layout(1, 2),
    with_grades=True,
  ):
    expected = batch.ids[..., None] + 0.5 * batch.ranks
    np.testing.assert_array_equal(
      batch.grades, np.where(batch.valid, expected, 0)
    )
  assert in_batches(data, 1, 2)[0].grades is None


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2])
def test_tokens_see_their_prompt_and_their_completion(rows, groups):
  for batch in in_batches(rankings_of(7), rows, groups):
    length = batch.tokens.shape[2]
    segments = batch.segments.reshape(-1, length)
    mask = np.asarray(attention.attention_mask(segments))
    prompts = np.zeros_like(segments)  # segment of each token's prompt
    for row, prompt in zip(segments, prompts, strict=True):
      for t in range(length):
        prompt[t] = row[t] if row[t] < 0 else prompt[t - 1] if t else 0
    for b, q in np.argwhere(segments):
      expected = [
        k <= q and segments[b, k] in (segments[b, q], prompts[b, q])
        for k in range(length)
      ]
      assert mask[b, q].tolist() == expected


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2])
def test_no_token_attends_beyond_the_attention_span(rows, groups):
  rng = np.random.default_rng(3)

  def ids(most):
    return np.ones(rng.integers(1, most + 1), np.int32)

  data = [
    EncodedRanking(ids(70), [ids(45) for _ in range(k)], [*range(k)])
    for k in (1, 2, 4, 6)
  ]
  (batch,) = in_batches(data, rows, groups)
  first, last = batch.span
  if groups == 4:
    longest = max(len(r.prompt) for r in data)
    assert longest <= first < longest + 32
  else:
    longest = max(ranking_packing.row_length(r, rows) for r in data)
    assert first == 0 and longest <= last < longest + 32
  segments = batch.segments.reshape(-1, batch.segments.shape[2])
  _, query, key = np.nonzero(
    np.asarray(attention.attention_mask(segments)) & (segments != 0)[..., None]
  )
  assert ((key < first) | (query - key < last)).all()
  assert (query - key >= last - 64).any()


def of(prompt, completion, k):
  return EncodedRanking(
    np.ones(prompt, np.int32), [np.ones(completion, np.int32)] * k, [1] * k
  )


def test_a_prompt_is_shared_when_that_is_cheaper():
  def rows(prompt, completion, d_model, num_scores):
    return ranking_packing.choose_layout(
      [of(prompt, completion, 9)],
      BatchSpec(batch_size=1, epochs=1),
      d_model=d_model,
      num_scores=num_scores,
    ).rows_per_group

  def reaching(length, span):
    return length * min(length, span.prefix + span.local)

  def whole(length, span):
    del span
    return length * length

  assert rows(128, 64, 256, reaching) == 1
  assert rows(40, 200, 64, reaching) == 1
  assert rows(1, 200, 64, reaching) == 9, "a span is rounded up"
  # Where whole rows are read, those of many completions are expensive,
  assert rows(40, 200, 64, whole) == 9
  # but the wider the model, the less attention counts.
  assert rows(40, 200, 8192, whole) == 1


def chosen(data, batch_size=32, platform="cpu", **kw):
  model = model_preset("350m")
  return ranking_packing.choose_layout(
    data,
    BatchSpec(batch_size=batch_size, epochs=1),
    d_model=model.d_model,
    num_scores=lambda *row: attention_kernels.num_scores(platform, model, *row),
    **kw,
  )


def test_rankings_share_rows_when_that_is_cheaper():
  same = [of(48, 20, 4)] * 64
  assert chosen(same) == Layout(1, 32), "there is no padding to save"
  assert chosen(ragged(400)).num_groups < 32
  assert chosen([of(300, 400, 9)] * 63 + [of(1, 1, 2)]).num_groups == 32, (
    "long rows hold a single ranking"
  )


def test_groups_split_over_devices_and_microbatches():
  data = ragged(400)
  for num_shards in (2, 4, 16, 32):
    assert chosen(data, num_shards=num_shards).num_groups % num_shards == 0
  assert chosen(data, num_shards=5).num_groups == 32


@pytest.mark.parametrize("batch_size", [7, 8, 32])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_less_than_a_tenth_is_padding(batch_size, platform):
  """With one row each, ragged rankings would leave rows half empty."""
  data = ragged(1024)

  def padding(layout):
    real = total = 0
    lengths = set()
    for batch in in_batches(data, *layout, batch_size):
      real += (batch.segments != 0).sum()
      total += batch.segments.size
      lengths.add(batch.segments.shape[2])
    return 1 - real / total, lengths

  share, lengths = padding(chosen(data, batch_size, platform))
  assert share < 0.1
  assert len(lengths) <= 4, "each length costs a compilation"
  alone, _ = padding(Layout(1, batch_size))
  assert alone > 0.3


def test_batches_are_the_same_in_any_layout():
  data = ragged(50)

  def ids_of_batches(rows, groups, **kw):
    return [
      sorted(batch.ids.ravel().tolist())
      for batch in in_batches(data, rows, groups, epochs=3, seed=1, **kw)
    ]

  expected = ids_of_batches(1, 4)
  for rows, groups in [(1, 1), (1, 2), (9, 4), (9, 1)]:
    assert ids_of_batches(rows, groups) == expected
  ids = [i for batch in expected for i in batch if i >= 0]
  assert sorted(ids) == sorted([*range(50)] * 3)
  assert ids_of_batches(1, 4, shuffle=False) != expected


def test_groups_of_one_ranking_keep_their_order():
  for rows in (1, 3):
    (batch,) = in_batches(ragged(4), rows, 4, shuffle=False)
    assert batch.ids.tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize("batch_size", [4, 5, 9])
def test_batches_differ_between_epochs(batch_size):
  data = ragged(16 * batch_size)
  batches = [
    tuple(sorted(batch.ids.ravel().tolist()))
    for batch in in_batches(data, 1, 1, batch_size, epochs=2, seed=0)
  ]
  first, second = set(batches[:16]), set(batches[16:])
  for epoch in (first, second):
    assert sorted(i for batch in epoch for i in batch) == [*range(len(data))]
  assert len(first & second) <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_small_batches_have_each_ranking_once(batch_size):
  data = ragged(10)
  batches = in_batches(data, 1, 1, batch_size, epochs=2, seed=0)
  ids = [i for batch in batches for i in batch.ids.ravel().tolist() if i >= 0]
  assert sorted(ids) == sorted([*range(10)] * 2)
  assert ids[:10] != ids[10:]


def test_layouts_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="groups"):
    in_batches(rankings_of(3), 1, 3)
  with pytest.raises(ValueError, match="groups"):
    in_batches(rankings_of(3), 1, 1, shard_count=2)


def partition_by_heap(lengths, num_groups):
  """Gives each sequence, longest first, to the smallest group with room."""
  capacity = len(lengths) // num_groups
  groups = [[] for _ in range(num_groups)]
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    open_groups = [g for g in range(num_groups) if len(groups[g]) < capacity]
    sums = {g: sum(lengths[j] for j in groups[g]) for g in open_groups}
    groups[min(open_groups, key=lambda g: (sums[g], g))].append(i)
  return sorted(map(sorted, groups))


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_the_longest_sequence_goes_to_the_smallest_group(capacity):
  rng = np.random.RandomState(capacity)
  for least in (0, 1) * 100:
    num_groups = rng.randint(1, 9)
    lengths = rng.randint(least, 6, num_groups * capacity)
    actual = ranking_balance.greedy_partition(lengths, num_groups)
    expected = partition_by_heap(lengths.tolist(), num_groups)
    assert actual.tolist() == expected
