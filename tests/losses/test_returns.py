"""Token rewards and GAE against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.losses import masked, returns

LENGTHS = [6, 1, 4, 3]


@pytest.fixture
def mask():
  return np.arange(6) < np.array(LENGTHS)[:, None]


@pytest.fixture
def data(rng, mask):
  rewards = rng.normal(size=mask.shape).astype(np.float32)
  values = rng.normal(size=mask.shape).astype(np.float32)
  return rewards, values


def gae_loop(rewards, values, length, discount, lam, last_value=0.0):
  """Computes one row of GAE from its defining sum, without recursion."""
  rewards = [float(r) for r in rewards[:length]]
  values = [float(v) for v in values[:length]] + [float(last_value)]
  out = []
  for t in range(length):
    total = 0.0
    for k in range(t, length):
      delta = rewards[k] + discount * values[k + 1] - values[k]
      total += (discount * lam) ** (k - t) * delta
    out.append(total)
  return out


def run_gae(data, mask, discount, lam, **kwargs):
  function = jax.jit(returns.gae)
  return function(*data, mask, discount=discount, lam=lam, **kwargs)


@pytest.mark.parametrize(
  ("discount", "lam"), [(1, 0.95), (0.9, 0.8), (1, 1), (0.5, 0), (0, 0.5)]
)
def test_invariant_17_gae_scan_equals_loop(data, mask, discount, lam):
  advantages, actual_returns = run_gae(data, mask, discount, lam)
  assert advantages.dtype == actual_returns.dtype == jnp.float32
  for b, length in enumerate(LENGTHS):
    expected = gae_loop(data[0][b], data[1][b], length, discount, lam)
    np.testing.assert_allclose(
      advantages[b, :length], expected, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(advantages[b, length:], 0)
    np.testing.assert_array_equal(actual_returns[b, length:], 0)


def test_invariant_17_undiscounted_gae_equals_monte_carlo(data, mask):
  _, actual = run_gae(data, mask, 1.0, 1.0)
  for b, length in enumerate(LENGTHS):
    for t in range(length):
      expected = sum(float(r) for r in data[0][b, t:length])
      np.testing.assert_allclose(actual[b, t], expected, rtol=1e-5, atol=1e-5)


def test_invariant_17_returns_are_unwhitened_advantages_plus_values(data, mask):
  advantages, actual = run_gae(data, mask, 0.9, 0.95)
  np.testing.assert_array_equal(
    actual, np.asarray(advantages) + np.where(mask, data[1], 0)
  )
  mean = masked.masked_mean(advantages, mask)
  assert abs(mean) > 0.05  # nothing has centred them


def test_gae_known_answer_of_one_step_advantages():
  advantages, _ = returns.gae(
    [[0, 0, 5]], [[1, 2, 3]], [[1, 1, 1]], discount=1, lam=0
  )
  np.testing.assert_array_equal(advantages, [[1, 1, 2]])


def test_gae_known_answer_of_half_discount():
  advantages, actual = returns.gae(
    [[0, 0, 1, 0]], [[0, 1, 2, 3]], [[1, 1, 1, 1]], discount=0.5, lam=0
  )
  np.testing.assert_array_equal(advantages, [[0.5, 0, 0.5, -3]])
  np.testing.assert_array_equal(actual, [[0.5, 1, 2.5, 0]])


def test_invariant_16_value_after_the_last_token_is_zero(data, mask):
  """A padded row has the same returns as a row without padding."""
  padded, _ = run_gae(data, mask, 0.9, 0.7)
  for b, length in enumerate(LENGTHS):
    row = [x[b : b + 1, :length] for x in data]
    alone, _ = run_gae(row, np.ones((1, length), bool), 0.9, 0.7)
    np.testing.assert_allclose(padded[b, :length], alone[0], rtol=1e-6)


def test_invariant_16_bootstrapping_is_an_explicit_choice(data, mask):
  ends = np.array([0.0, 2.0, -1.5, 0.0], np.float32)
  plain, _ = run_gae(data, mask, 0.9, 0.7)
  actual, _ = run_gae(data, mask, 0.9, 0.7, last_value=ends)
  for b, length in enumerate(LENGTHS):
    expected = gae_loop(data[0][b], data[1][b], length, 0.9, 0.7, ends[b])
    np.testing.assert_allclose(
      actual[b, :length], expected, rtol=1e-5, atol=1e-5
    )
  np.testing.assert_array_equal(actual[0], plain[0])
  np.testing.assert_array_equal(np.asarray(actual)[~mask], 0)
  assert abs(actual[1, 0] - plain[1, 0] - 0.9 * 2.0) < 1e-5


def test_gae_skips_holes_in_the_mask(rng):
  rewards, values = rng.normal(size=(2, 1, 5)).astype(np.float32)
  mask = np.array([[0, 1, 0, 1, 1]], bool)
  actual, _ = run_gae((rewards, values), mask, 0.9, 0.7)
  compact = [np.asarray(x)[mask] for x in (rewards, values)]
  expected = gae_loop(*compact, 3, 0.9, 0.7)
  np.testing.assert_allclose(np.asarray(actual)[mask], expected, rtol=1e-5)
  np.testing.assert_array_equal(np.asarray(actual)[~mask], 0)


def test_invariant_11_integer_rewards_are_not_truncated():
  advantages, actual = returns.gae(
    np.array([[0, 1]]),
    np.array([[0, 0]]),
    np.ones((1, 2)),
    discount=0.5,
    lam=0.5,
  )
  assert advantages.dtype == jnp.float32
  np.testing.assert_array_equal(advantages, [[0.25, 1]])
  np.testing.assert_array_equal(actual, [[0.25, 1]])


def test_gae_is_differentiable_in_rewards_and_values(data, mask, rng):
  """The derivative with respect to a reward is (γλ)^(t' − t)."""
  slope = jax.jacobian(
    lambda r: returns.gae(r, data[1], mask, discount=0.9, lam=0.7)[0][0, 1]
  )(jnp.asarray(data[0]))
  expected = np.zeros(mask.shape)
  expected[0, 1:] = 0.63 ** np.arange(5)
  np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)


def test_last_token_marks_one_token_a_row(mask):
  both = np.concatenate([mask, [[False] * 6, [0, 1, 0, 1, 0, 0]]]).astype(bool)
  actual = jax.jit(returns.last_token)(both)
  expected = np.zeros((6, 6), bool)
  for b, t in enumerate([5, 0, 3, 2]):
    expected[b, t] = True
  expected[5, 3] = True
  np.testing.assert_array_equal(actual, expected)


def test_token_rewards_equal_loop(data, mask, rng):
  score = rng.normal(size=4)
  actual = jax.jit(returns.token_rewards)(score, *data, mask, 0.3)
  for b, length in enumerate(LENGTHS):
    for t in range(6):
      expected = 0.0
      if t < length:
        expected = -0.3 * (float(data[0][b, t]) - float(data[1][b, t]))
      if t == length - 1:
        expected += score[b]
      np.testing.assert_allclose(actual[b, t], expected, rtol=1e-5, atol=1e-6)


def test_invariant_11_rewards_add_up_to_score_minus_beta_kl(data, mask):
  score = np.array([0.37, -1.25, 2.0 / 3.0, 1e-3])
  actual = returns.token_rewards(score, *data, mask, 0.02)
  assert actual.dtype == jnp.float32
  for b, length in enumerate(LENGTHS):
    kl = sum(float(data[0][b, t]) - float(data[1][b, t]) for t in range(length))
    np.testing.assert_allclose(
      np.asarray(actual[b], np.float64).sum(),
      score[b] - 0.02 * kl,
      rtol=1e-5,
      atol=1e-6,
    )


def test_invariant_11_integer_scores_give_float_rewards(mask):
  ones = np.ones(mask.shape, np.int32)
  actual = returns.token_rewards(
    np.array([1, 2, 3, 4]), ones, 0 * ones, mask, 0.25
  )
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual[3], [-0.25, -0.25, 3.75, 0, 0, 0])


def test_invariant_12_score_lands_once_on_the_last_response_token(mask):
  """This holds for a response that fills all positions, too."""
  zeros, score = np.zeros(mask.shape), np.array([0.5, -1.5, 2.5, 3.5])
  actual = np.asarray(returns.token_rewards(score, zeros, zeros, mask, 0.1))
  assert (np.count_nonzero(actual, axis=1) == 1).all()
  for b, length in enumerate(LENGTHS):
    assert actual[b, length - 1] == score[b]


def test_a_row_without_any_token_has_no_reward():
  zeros = np.zeros((1, 3))
  actual = returns.token_rewards(np.array([7.0]), zeros, zeros, zeros, 0.1)
  np.testing.assert_array_equal(actual, 0)


def test_invariant_13_kl_reward_is_the_log_ratio_of_the_sampled_token(
  data, mask
):
  logp, ref = data
  actual = returns.token_rewards(np.zeros(4), logp, ref, mask, 1.0)
  np.testing.assert_allclose(
    actual, np.where(mask, -(logp - ref), 0), rtol=1e-6, atol=1e-7
  )
  assert (np.asarray(actual)[mask] > 0).any()  # k2 and k3 never give a reward


def test_invariant_14_tokens_after_the_end_never_matter(data, mask, spoil):
  def everything(a, b):
    rewards = returns.token_rewards(np.arange(4.0), a, b, mask, 0.1)
    return rewards, returns.gae(a, b, mask, discount=0.9, lam=0.95)

  clean = everything(*data)
  spoiled = [jnp.asarray(spoil(x, mask)) for x in data]
  dirty = everything(*spoiled)
  for x, y in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(x, y)

  def total(a, b):
    leaves = jax.tree.leaves(everything(a, b))
    return sum(jnp.sum(jnp.square(x)) for x in leaves)

  for slope in jax.grad(total, argnums=(0, 1))(*spoiled):
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(np.asarray(slope)[~mask], 0)
