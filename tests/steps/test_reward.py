"""The reward model's step, up to a Bradley–Terry scale that is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax import config
from instructgpt_jax.models import transformer
from instructgpt_jax.models.transformer import ScalarModel
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import RankingBatch
from tests.models import twin


def make_batch(prompts=4, completions=3, length=9):
  """Rows of unequal length, ties, a filled-up place, a prompt of ties only."""
  rng = np.random.default_rng(5)
  shape = (prompts, completions)
  sizes = rng.integers(3, length + 1, shape)
  segments = np.arange(length) < sizes[..., None]
  tokens = np.where(segments, rng.integers(2, 13, (*shape, length)), 0)
  ranks = np.array([[1, 2, 3], [2, 1, 2], [1, 1, 1], [3, 1, 2]], np.int32)
  valid = np.ones(shape, bool)
  valid[3, 0] = False
  return RankingBatch(
    tokens=tokens.astype(np.int32),
    segments=segments.astype(np.int32),
    ranks=ranks,
    valid=valid,
  )


@pytest.fixture(scope="module")
def batch():
  return make_batch()


@pytest.fixture(scope="module")
def model():
  return ScalarModel(twin.make_config(layers=1))


@pytest.fixture(scope="module")
def params(model):
  return twin.make_params(model)


@pytest.fixture(scope="module")
def step(model):
  return make_step(model, optax.sgd(0.1))


def make_step(model, optimizer):
  return jax.jit(
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
  score = jax.jit(functools.partial(reward_step.score_rows, model))
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
    found = score(params, tokens, segments)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def scores_twin(params, batch):
  result = np.zeros(batch.ranks.shape)
  for b, k in np.ndindex(result.shape):
    row = batch.tokens[b, k][batch.segments[b, k] > 0]
    result[b, k] = twin.scalars(params, row[None], np.ones((1, len(row))))[
      0, -1
    ]
  return result


def test_step_equals_twin(step, params, batch):
  _, metrics = step(start(params), batch)
  scores = scores_twin(params, batch)
  losses, right = [], []
  for b in range(4):
    pairs = [
      scores[b, i] - scores[b, j]
      for i in range(3)
      for j in range(3)
      if batch.ranks[b, i] < batch.ranks[b, j]
      and batch.valid[b, i]
      and batch.valid[b, j]
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
  order = np.random.default_rng(1).permuted(
    np.tile(np.arange(3), (4, 1)), axis=1
  )
  assert (order != np.arange(3)).any()

  def take(x):
    return np.stack([row[i] for row, i in zip(x, order, strict=True)])

  shuffled = jax.tree.map(take, batch)
  same(step(start(params), batch), step(start(params), shuffled))


def test_completions_that_fill_up_change_nothing(step, params, batch):
  tokens = batch.tokens.copy()
  tokens[3, 0] = (tokens[3, 0] + 3) % 13
  other = RankingBatch(
    tokens=tokens,
    segments=batch.segments,
    ranks=batch.ranks,
    valid=batch.valid,
  )
  same(step(start(params), batch), step(start(params), other), 1e-7)


@pytest.mark.parametrize("microbatch", [0, 2])
def test_invariant_26_each_completion_runs_once(params, batch, microbatch):
  """Rows are counted as the compiled step runs, not as it is traced."""
  rows = []

  class Counted(ScalarModel):
    def __call__(self, tokens, segments, positions, *, deterministic=True):
      jax.debug.callback(lambda x: rows.append(x.shape[0]), tokens)
      return super().__call__(
        tokens, segments, positions, deterministic=deterministic
      )

  step = make_step(Counted(twin.make_config(layers=1)), optax.sgd(0.1))
  for done in (1, 2):
    step(start(params), batch, microbatch=microbatch)
    jax.effects_barrier()
    assert sum(rows) == done * 4 * 3
  assert len(rows) == 2 * (2 if microbatch else 1)


def test_invariant_07_scores_are_without_dropout(params, batch):
  model = ScalarModel(twin.make_config(layers=1, dropout=0.5))
  found = jax.jit(functools.partial(reward_step.score_rankings, model))(
    params, batch
  )
  np.testing.assert_allclose(
    found, scores_twin(params, batch), rtol=1e-4, atol=1e-4
  )


def test_training_drops_out_by_step_and_repeats(params, batch):
  step = make_step(
    ScalarModel(twin.make_config(layers=1, dropout=0.5)), optax.sgd(0.0)
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
  score = jax.jit(functools.partial(reward_step.score_rankings, model))
  before = score(params, batch)
  assert abs(before.mean()) > 0.1
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
  tokens = np.stack([np.full_like(shown, items), shown], axis=-1)
  rankings = RankingBatch(
    tokens=tokens.astype(np.int32),
    segments=np.ones_like(tokens, np.int32),
    ranks=ranks.astype(np.int32),
    valid=np.ones(shown.shape, bool),
  )
  model = ScalarModel(
    config.Model(vocab_size=items + 1, context=2, layers=1, width=16, heads=2)
  )
  batch, epochs = 1024, 8
  steps = epochs * count // batch
  optimizer = state_lib.make_optimizer(
    config.Optimizer(learning_rate=0.02, final_fraction=0.0), steps
  )
  params = jax.jit(lambda key: transformer.init_params(model, key))(
    jax.random.key(0)
  )
  state = state_lib.new_state(params, optimizer)
  step = make_step(model, optimizer)
  metrics = {}
  for i in range(steps):
    rows = np.arange(i * batch, (i + 1) * batch) % count
    state, metrics = step(state, jax.tree.map(lambda x, r=rows: x[r], rankings))
  every = np.stack([np.full(items, items), np.arange(items)], axis=1)
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
