"""The reward model's step, and a known Bradley–Terry scale."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, ranking_packing
from instructgpt_jax.data.batch_source import BatchSpec
from instructgpt_jax.models import heads
from instructgpt_jax.models.heads import ScalarModel
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import RankingBatch
from tests.models import twin


def pack(elements, ranks, width, pad=0, rows=1):
  """Packs (prompt, completions) into rows; None pads completions to K."""
  shape = (len(elements), rows, width)
  tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
  tokens += pad
  ends = np.zeros(np.shape(ranks), np.int32)
  valid = np.zeros(np.shape(ranks), bool)
  share = -(-np.shape(ranks)[1] // rows)
  for b, (prompt, completions) in enumerate(elements):
    for r in range(rows):
      row = [(t, -1, i) for i, t in enumerate(prompt)]
      for k in range(r * share, (r + 1) * share):
        completion = completions[k]
        if completion is not None:
          row += [(t, k + 1, len(prompt) + i) for i, t in enumerate(completion)]
          ends[b, k], valid[b, k] = r * width + len(row) - 1, True
      index = (b, r, slice(0, len(row)))
      tokens[index], segments[index], positions[index] = zip(*row, strict=True)
  return RankingBatch(
    tokens=tokens,
    segments=segments,
    positions=positions,
    ends=ends[:, None],
    ranks=np.asarray(ranks, np.int32)[:, None],
    valid=valid[:, None],
    ids=np.arange(len(elements), dtype=np.int32)[:, None],
  )


# Ties, a prompt with nothing but ties, and one with a completion less.
RANKS = [[1, 2, 3], [2, 1, 2], [1, 1, 1], [3, 1, 2]]


def make_elements():
  """Makes four prompts with three completions of different lengths."""
  rng = np.random.default_rng(5)

  def draw(low, high):
    return rng.integers(2, 13, rng.integers(low, high)).tolist()

  elements = [(draw(1, 5), [draw(1, 6) for _ in range(3)]) for _ in range(4)]
  elements[3][1][0] = None
  return elements


def make_batch():
  return pack(make_elements(), RANKS, 20)


@pytest.fixture(scope="module")
def batch():
  return make_batch()


@pytest.fixture(scope="module")
def model():
  return ScalarModel(twin.make_config(num_layers=1))


@pytest.fixture(scope="module")
def params(model):
  return twin.make_params(model)


@pytest.fixture(scope="module")
def step(model):
  return make_step(model, optax.sgd(0.1))


def make_step(model, optimizer):
  return twin.jit(
    functools.partial(
      reward_step.train_step, model=model, optimizer=optimizer, seed=0
    ),
    static_argnames="microbatch",
  )


def start(params):
  return state_lib.new_state(params, optax.sgd(0.1))


def test_invariant_05_the_last_real_token_is_scored_on_either_side(
  model, params
):
  score = twin.jit(functools.partial(reward_step.score_rows, model))
  rng = np.random.default_rng(0)
  rows = [rng.integers(2, 13, n) for n in (1, 4, 7)]
  expected = [
    twin.scalars(params, row[None], np.ones((1, len(row))))[0, -1]
    for row in rows
  ]
  for place in (
    lambda n: slice(0, n),
    lambda n: slice(7 - n, 7),
    lambda n: slice((7 - n) // 2, (7 - n) // 2 + n),
  ):
    tokens = np.full((3, 7), 11)  # padding is an ordinary id
    segments = np.zeros((3, 7), np.int32)
    for b, row in enumerate(rows):
      tokens[b, place(len(row))] = row
      segments[b, place(len(row))] = 1
    actual = score(params, tokens, segments)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def scores_twin(params):
  """Computes scores [B, 1, K] one completion at a time; NaN if absent."""
  result = np.full((4, 1, 3), np.nan)
  for b, (prompt, completions) in enumerate(make_elements()):
    for k, completion in enumerate(completions):
      if completion is not None:
        row = np.array([prompt + completion])
        result[b, 0, k] = twin.scalars(params, row, np.ones_like(row))[0, -1]
  return result


def test_completions_that_share_a_prompt_score_as_in_separate_rows(
  model, params, batch
):
  score = twin.jit(functools.partial(reward_step.score_rankings, model))
  actual, expected = score(params, batch), scores_twin(params)
  assert actual.shape == (4, 1, 3) and actual.dtype == jnp.float32
  np.testing.assert_allclose(
    actual[batch.valid], expected[batch.valid], rtol=1e-4, atol=1e-4
  )
  # What fills the row up is not seen.
  other = score(params, pack(make_elements(), RANKS, 20, pad=9))
  np.testing.assert_array_equal(actual[batch.valid], other[batch.valid])
  # Nor does it matter whether the prompt is shared.
  apart = score(params, pack(make_elements(), RANKS, 10, rows=3))
  np.testing.assert_allclose(
    actual[batch.valid], apart[batch.valid], rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  "changes",
  [{}, {"scan_layers": True, "remat": "full", "pos_emb": "rope"}],
)
@pytest.mark.parametrize("groups", [4, 2])
def test_a_batchs_span_changes_neither_scores_nor_gradients(changes, groups):
  rng = np.random.default_rng(8)

  def ids(most):
    return rng.integers(2, 13, rng.integers(1, most + 1)).astype(np.int32)

  batch = next(
    ranking_packing.ranking_batches(
      [
        encoding.EncodedRanking(ids(40), [ids(30) for _ in range(9)], [1] * 9)
        for _ in range(4)
      ],
      BatchSpec(batch_size=4, epochs=1),
      pad_id=0,
      layout=ranking_packing.Layout(rows_per_group=1, num_groups=groups),
    )
  )
  assert batch.span is not None
  model = ScalarModel(twin.make_config(num_layers=2, max_seq_len=70, **changes))

  @twin.jit
  def run(params, batch):
    def total(params):
      scores = reward_step.score_rankings(model, params, batch)
      return (scores * jnp.arange(1, 37).reshape(scores.shape)).sum(), scores

    return jax.grad(total, has_aux=True)(params)

  params = twin.make_params(model)
  actual, expected = (
    run(params, batch),
    run(params, dataclasses.replace(batch, span=None)),
  )
  for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


def encoded():
  """Returns the elements that have all their completions."""
  return [
    encoding.EncodedRanking(np.array(prompt), completions, ranks)
    for (prompt, completions), ranks in zip(make_elements(), RANKS, strict=True)
    if all(completions)
  ] * 3


def in_groups(groups, rows=1):
  rankings = encoded()[:8]
  return next(
    ranking_packing.ranking_batches(
      rankings,
      BatchSpec(batch_size=8, epochs=1, shuffle=False),
      pad_id=9,
      layout=ranking_packing.Layout(rows, groups),
    )
  )


def learned(result):
  """Splits a step's result into state with metrics, and padding share."""
  state, metrics = result
  rest = {k: v for k, v in metrics.items() if k != "padding"}
  return (state, rest), metrics["padding"]


@pytest.mark.parametrize(
  ("groups", "rows", "changes"),
  [
    (1, 1, {}),
    (2, 1, {}),
    (2, 3, {}),
    (4, 1, {"scan_layers": True}),
    (4, 3, {"scan_layers": True}),
  ],
)
def test_rankings_that_share_a_row_score_and_learn_as_in_separate_rows(
  groups, rows, changes
):
  model = ScalarModel(twin.make_config(num_layers=2, **changes))
  params = twin.make_params(model)
  score = twin.jit(functools.partial(reward_step.score_rankings, model))
  step = make_step(model, optax.sgd(0.1))
  alone, packed = in_groups(8), in_groups(groups, rows)
  assert packed.ids.shape == (groups, 8 // groups)

  def by_ranking(batch):
    actual = np.zeros((8, 3), np.float32)
    actual[batch.ids.ravel()] = np.asarray(score(params, batch)).reshape(8, 3)
    return actual

  expected = by_ranking(alone)
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(by_ranking(packed), expected, atol=1e-5, rtol=1e-5)
  expected, wasted = learned(step(start(params), alone))
  actual, saved = learned(step(start(params), packed))
  same(expected, actual)
  assert saved < wasted or rows > 1
  if groups > 1:
    parts = step(start(params), packed, microbatch=8 // groups)
    same(expected, learned(parts)[0])
  if groups < 8:
    with pytest.raises(ValueError, match="parts the"):
      step(start(params), packed, microbatch=1)


def test_pairs_are_counted_by_prompt(model, params, batch):
  correct, pairs, loss = (
    np.squeeze(x, axis=1)
    for x in twin.jit(functools.partial(reward_step.count_pairs, model))(
      params, batch
    )
  )
  scores, valid = scores_twin(params)[:, 0], batch.valid[:, 0]
  np.testing.assert_array_equal(pairs, [3, 2, 0, 1])
  for b, ranks in enumerate(RANKS):
    right = sum(
      ranks[i] < ranks[j] and scores[b, i] > scores[b, j]
      for i in range(3)
      for j in range(3)
    )
    assert correct[b] == right
    expected = sum(
      np.logaddexp(0, scores[b, j] - scores[b, i])
      for i in range(3)
      for j in range(3)
      if ranks[i] < ranks[j] and valid[b, i] and valid[b, j]
    )
    np.testing.assert_allclose(loss[b], expected, rtol=1e-4, atol=1e-6)
  assert 0 < correct.sum() < 6


def test_step_equals_twin(step, params, batch):
  _, metrics = step(start(params), batch)
  scores = scores_twin(params)[:, 0]
  ranks, valid = batch.ranks[:, 0], batch.valid[:, 0]
  losses, right = [], []
  for b in range(4):
    pairs = [
      scores[b, i] - scores[b, j]
      for i in range(3)
      for j in range(3)
      if ranks[b, i] < ranks[b, j] and valid[b, i] and valid[b, j]
    ]
    if pairs:
      losses.append(np.mean(np.log1p(np.exp(-np.array(pairs)))))
      right.append(np.mean(np.array(pairs) > 0))
  assert len(losses) == 3
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-5)
  assert metrics["pairs"] == 6 and metrics["prompts"] == 3


def same(a, b, tolerance=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance
    ),
    a,
    b,
  )


@pytest.mark.parametrize("microbatch", [1, 2])
def test_invariant_20_microbatches_are_one_batch(
  step, params, batch, microbatch
):
  """One prompt has no pair: the mean is over the other three."""
  whole = step(start(params), batch)
  parts = step(start(params), batch, microbatch=microbatch)
  same(whole, parts)
  with pytest.raises(ValueError, match="3 does not divide"):
    step(start(params), batch, microbatch=3)


def test_invariant_25_order_of_completions_does_not_matter(step, params, batch):
  rng = np.random.default_rng(1)
  elements, ranks = [], []
  for (prompt, completions), order in zip(make_elements(), RANKS, strict=True):
    places = rng.permutation(3)
    elements.append((prompt, [completions[i] for i in places]))
    ranks.append([order[i] for i in places])
  assert elements != make_elements() and ranks != RANKS
  shuffled = pack(elements, ranks, 20)
  same(step(start(params), batch), step(start(params), shuffled))


def test_options_of_the_loss_reach_it(model, params, batch):
  """The loss is that of the scores by hand; no option is on by default."""
  scores = scores_twin(params)[:, 0]
  grades = np.array([[3, 1, 0], [0, 2, 1], [5, 1, 1], [0, 9, 4]], np.float32)
  graded = dataclasses.replace(batch, grades=grades[:, None])
  ranks = np.array(RANKS)

  def expected(smoothing, heights):
    losses = []
    for row, rank, height in zip(scores, ranks, heights, strict=True):
      pairs = [
        row[i] - row[j] - max(0.0, height[i] - height[j])
        for i in range(3)
        for j in range(3)
        if rank[i] < rank[j] and not np.isnan(row[i] - row[j])
      ]
      if pairs:
        x = np.array(pairs)
        loss = np.logaddexp(0, -x) + smoothing * x
        losses.append(loss.mean())
    return np.mean(losses)

  for data, options, smoothing, heights in (
    (batch, {}, 0.0, np.zeros((4, 3))),
    (graded, {}, 0.0, np.zeros((4, 3))),
    (
      batch,
      {"label_smoothing": 0.1, "margin": "rank", "margin_coef": 0.5},
      0.1,
      -0.5 * ranks,
    ),
    (graded, {"margin": "grade", "margin_coef": 0.25}, 0.0, 0.25 * grades),
  ):
    step = twin.jit(
      functools.partial(
        reward_step.train_step,
        model=model,
        optimizer=optax.sgd(0.1),
        seed=0,
        microbatch=2,
        **options,
      )
    )
    loss = step(start(params), data)[1]["loss"]
    np.testing.assert_allclose(loss, expected(smoothing, heights), rtol=1e-4)
  with pytest.raises(ValueError, match="without grades"):
    reward_step.grades_of(batch, "grade", 1.0)


def test_the_state_at_the_last_token_is_what_a_head_reads(model, params, batch):
  language = heads.LanguageModel(model.config)
  head = params["head"]
  for tokens, place in (([3, 4, 5], 0), ([7, 2], 2)):
    row = np.full((1, 5), 11, np.int32)
    segments = np.zeros((1, 5), np.int32)
    row[0, place : place + len(tokens)] = tokens
    segments[0, place : place + len(tokens)] = 1
    state = reward_step.last_states(
      language, {"transformer": params["transformer"]}, row, segments
    )
    score = state @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(
      score[:, 0],
      reward_step.score_rows(model, params, row, segments),
      rtol=1e-5,
      atol=1e-5,
    )


def test_completions_that_fill_up_change_nothing(step, params, batch):
  ends = batch.ends.copy()
  assert not batch.valid[3, 0, 0]
  ends[3, 0, 0] = 3
  other = RankingBatch(**{**batch.__dict__, "ends": ends})
  same(step(start(params), batch), step(start(params), other), 1e-7)


@pytest.mark.parametrize("microbatch", [0, 2])
def test_invariant_26_each_completion_runs_once(params, batch, microbatch):
  """Tokens are counted as the compiled step runs, not as it is traced.

  A row holds a prompt and its completions once each, so no network sees more
  than the batch's own rows, whatever the number of pairs.
  """
  rows, tokens = [], []

  class Counted(ScalarModel):
    def __call__(self, tokens, segments, positions, **options):
      jax.debug.callback(count, segments)
      return super().__call__(tokens, segments, positions, **options)

  def count(segments):
    rows.append(segments.shape[0])
    tokens.append(int((segments != 0).sum()))

  real = sum(
    len(prompt) + sum(len(c) for c in completions if c)
    for prompt, completions in make_elements()
  )
  step = make_step(Counted(twin.make_config(num_layers=1)), optax.sgd(0.1))
  for done in (1, 2):
    step(start(params), batch, microbatch=microbatch)
    jax.effects_barrier()
    assert sum(rows) == done * 4
    assert sum(tokens) == done * real


def test_invariant_07_scores_are_without_dropout(params, batch):
  model = ScalarModel(twin.make_config(num_layers=1, dropout=0.5))
  actual = twin.jit(functools.partial(reward_step.score_rankings, model))(
    params, batch
  )
  expected = scores_twin(params)
  np.testing.assert_allclose(
    actual[batch.valid], expected[batch.valid], rtol=1e-4, atol=1e-4
  )


def test_training_drops_out_by_step_and_repeats(params, batch):
  step = make_step(
    ScalarModel(twin.make_config(num_layers=1, dropout=0.5)), optax.sgd(0.0)
  )
  states = [start(params)]
  for _ in range(2):
    states.append(
      state_lib.TrainState(
        step=states[-1].step + 1,
        params=params,
        opt_state=states[0].opt_state,
      )
    )
  losses = [float(step(s, batch)[1]["loss"]) for s in [*states, states[0]]]
  assert len(set(losses)) == 3 and losses[0] == losses[3]


def test_invariant_27_shifted_bias_makes_the_mean_reward_zero(
  model, params, batch
):
  score = twin.jit(functools.partial(reward_step.score_rankings, model))
  before = score(params, batch)
  assert abs(before.mean()) > 0.05
  shifted = reward_step.shift_bias(params, before.mean())
  after = score(shifted, batch)
  assert abs(after.mean()) < 1e-5
  np.testing.assert_allclose(after, before - before.mean(), atol=1e-5)
  assert shifted["transformer"] is params["transformer"]
  np.testing.assert_array_equal(
    shifted["head"]["kernel"], params["head"]["kernel"]
  )


def test_invariant_25_the_step_recovers_a_known_bradley_terry_scale():
  """Items of known utility, ranked by Plackett–Luce, are scored as known.

  By Luce's axiom each pair of a ranking is won with odds exp(u_i − u_j). 8,192
  rankings of 4 among 6 items leave a standard error of about 0.03 on a utility;
  0.15 on each, and 6 % on the slope, are the stated tolerances.
  """
  utilities = np.array([-1.5, -0.9, -0.2, 0.3, 0.9, 1.4])
  rng = np.random.default_rng(0)
  count, k, items = 8192, 4, len(utilities)
  shown = np.argsort(rng.random((count, items)), axis=1)[:, :k]
  noisy = utilities[shown] + rng.gumbel(size=shown.shape)
  ranks = 1 + np.argsort(np.argsort(-noisy, axis=1), axis=1)
  prompt = items  # one token, the same for all
  rankings = pack([([prompt], row[:, None]) for row in shown], ranks, k + 1)
  model = ScalarModel(
    configs.Model(
      vocab_size=items + 1, max_seq_len=2, num_layers=1, d_model=16, num_heads=2
    )
  )
  batch, epochs = 1024, 5
  steps = epochs * count // batch
  optimizer = optimizer_lib.make_optimizer(
    configs.Optimizer(learning_rate=0.03, final_fraction=0.0), steps
  )
  params = twin.jit(lambda key: heads.init_params(model, key))(
    jax.random.key(0)
  )
  state = state_lib.new_state(params, optimizer)
  step = make_step(model, optimizer)
  metrics = {}
  for i in range(steps):
    rows = np.arange(i * batch, (i + 1) * batch) % count
    state, metrics = step(state, jax.tree.map(lambda x, r=rows: x[r], rankings))
  every = np.stack([np.full(items, prompt), np.arange(items)], axis=1)
  scores = np.asarray(
    reward_step.score_rows(model, state.params, every, np.ones_like(every)),
    np.float64,
  )
  scores -= scores.mean()
  known = utilities - utilities.mean()
  slope = (scores @ known) / (known @ known)
  assert abs(slope - 1) < 0.06, slope
  assert np.abs(scores - known).max() < 0.15, scores - known
  assert state.step == steps and metrics["loss"] < np.log(2)
