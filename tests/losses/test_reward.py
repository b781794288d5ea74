"""The K-way ranking loss against loops, and its invariances."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.losses import reward


def twin(scores, ranks, valid, smoothing=0.0, grades=None):
  """Computes loss, accuracy, pairs and prompts in float64 by loops."""
  losses, accuracies, pairs = [], [], 0
  for b in range(len(scores)):
    prompt, right = [], []
    for i, j in itertools.combinations(range(len(scores[b])), 2):
      if not (valid[b][i] and valid[b][j]) or ranks[b][i] == ranks[b][j]:
        continue
      won, lost = (i, j) if ranks[b][i] < ranks[b][j] else (j, i)
      margin = float(scores[b][won]) - float(scores[b][lost])
      target = 0.0
      if grades is not None:
        target = max(0.0, float(grades[b][won]) - float(grades[b][lost]))
      right_label = 1 / (1 + math.exp(target - margin))
      prompt.append(
        -(1 - smoothing) * math.log(right_label)
        - smoothing * math.log(1 - right_label)
      )
      right.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
    if prompt:
      losses.append(sum(prompt) / len(prompt))
      accuracies.append(sum(right) / len(right))
      pairs += len(prompt)
  count = max(len(losses), 1)
  return sum(losses) / count, sum(accuracies) / count, pairs, len(losses)


@pytest.fixture
def data(rng):
  scores = rng.normal(0, 2, (6, 5)).astype(np.float32)
  ranks = rng.integers(1, 4, (6, 5))
  valid = np.arange(5) < np.array([[5], [4], [2], [3], [1], [5]])
  ranks[3] = 2  # only ties
  ranks[2, :2] = [2, 1]
  scores[0, 1] = scores[0, 0]  # equal scores
  ranks[0, :2] = [1, 2]
  return scores, ranks, valid


def test_ranking_loss_equals_loop(data):
  loss, metrics = jax.jit(reward.ranking_loss)(*data)
  expected, accuracy, pairs, prompts = twin(*data)
  assert 0 < prompts < 6  # some prompts have no pair
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)
  assert (metrics["pairs"], metrics["prompts"]) == (pairs, prompts)
  assert reward.count_prompts(*data[1:]) == prompts


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("graded", [False, True])
def test_smoothed_and_graded_losses_equal_loop(
  data, rng, check_gradient, smoothing, graded
):
  scores, ranks, valid = data
  # Some grades contradict the ranks.
  grades = rng.normal(-ranks, 2.0).astype(np.float32) if graded else None
  loss, metrics = jax.jit(
    functools.partial(reward.ranking_loss, label_smoothing=smoothing)
  )(*data, grades=grades)
  expected, accuracy, _, _ = twin(*data, smoothing, grades)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)
  assert ("target_margin" in metrics) == graded
  check_gradient(
    lambda s: reward.ranking_loss(
      s, ranks, valid, label_smoothing=smoothing, grades=grades
    )[0],
    scores,
  )


def test_the_optimum_of_a_smoothed_and_graded_pair():
  """The best r_w − r_l is the margin plus the log odds of a right label."""
  best = 0.7 + math.log(0.9 / 0.1)

  def loss(difference, grades):
    scores = jnp.stack([difference, jnp.zeros(())])[None]
    return reward.ranking_loss(
      scores,
      np.array([[1, 2]]),
      np.ones((1, 2), bool),
      label_smoothing=0.1,
      grades=np.array([grades]),
    )

  for grades, optimum in (([1.2, 0.5], best), ([0.5, 1.2], best - 0.7)):
    (_, metrics), slope = jax.value_and_grad(loss, has_aux=True)(
      jnp.float32(optimum), grades
    )
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(
      metrics["target_margin"], optimum - math.log(9), atol=1e-6
    )


def test_pair_accuracy_equals_loop(data):
  scores, ranks, valid = data
  correct, pairs = jax.jit(reward.pair_accuracy)(scores, ranks, valid)
  for b in range(6):
    _, accuracy, count, _ = twin(*(x[b : b + 1] for x in data))
    assert pairs[b] == count
    np.testing.assert_allclose(correct[b], accuracy * count, rtol=1e-6)


def test_margin_and_loss_are_averaged_alike():
  scores = np.array([[3.0, 2.0, 0.0], [5.0, 1.0, 7.0]])
  ranks = np.array([[1, 2, 3], [1, 2, 2]])
  valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
  _, metrics = reward.ranking_loss(scores, ranks, valid)
  np.testing.assert_allclose(metrics["margin"], (2 + 4) / 2, rtol=1e-6)


def test_known_answers():
  ranks, valid = np.array([[1, 2, 3, 4]]), np.ones((1, 4), bool)
  loss, metrics = reward.ranking_loss(np.zeros((1, 4)), ranks, valid)
  np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
  assert (metrics["pairs"], metrics["accuracy"]) == (6, 0.5)
  best = np.array([[4.0, 3.0, 2.0, 1.0]])
  assert reward.ranking_loss(best, ranks, valid)[1]["accuracy"] == 1
  assert reward.ranking_loss(-best, ranks, valid)[1]["accuracy"] == 0


def test_far_apart_scores_stay_finite():
  scores = np.array([[1e4, -1e4]])
  for ranks, expected in (([[1, 2]], 0.0), ([[2, 1]], 2e4)):
    loss, _ = reward.ranking_loss(
      scores, np.array(ranks), np.ones((1, 2), bool)
    )
    np.testing.assert_allclose(loss, expected)


def test_invariant_25_order_of_completions_does_not_matter(data, rng):
  loss, metrics = reward.ranking_loss(*data)
  for _ in range(5):
    order = rng.permuted(np.tile(np.arange(5), (6, 1)), axis=1)
    shuffled = [np.take_along_axis(x, order, axis=1) for x in data]
    again, same = reward.ranking_loss(*shuffled)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    for name in metrics:
      np.testing.assert_allclose(same[name], metrics[name], rtol=1e-5)


def test_invariant_25_two_completions_are_the_pairwise_loss(rng):
  scores = rng.normal(size=(8, 2))
  first_wins = rng.random(8) < 0.5
  ranks = np.where(first_wins[:, None], [1, 2], [2, 1])
  loss, _ = reward.ranking_loss(scores, ranks, np.ones((8, 2), bool))
  margin = np.where(first_wins, 1, -1) * (scores[:, 0] - scores[:, 1])
  expected = np.mean(-np.log(1 / (1 + np.exp(-margin))))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_invariant_25_ties_add_nothing():
  scores = np.array([[0.3, -0.2, 1.5]])
  everything = np.ones((1, 3), bool)

  def loss(values, ranks):
    return reward.ranking_loss(values, np.array([ranks]), everything)[0]

  # 1 against 2 and 1 against 3 remain when 2 and 3 tie.
  expected = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(1.2))) / 2
  np.testing.assert_allclose(loss(scores, [1, 2, 2]), expected, rtol=1e-5)
  value, slope = jax.value_and_grad(loss)(jnp.asarray(scores), [2, 2, 2])
  assert value == 0
  np.testing.assert_array_equal(slope, 0)


def test_invariant_25_a_prompt_of_ties_does_not_change_the_mean(data):
  scores, ranks, valid = data
  loss, _ = reward.ranking_loss(*data)
  rest = [0, 1, 2, 4, 5]
  fewer, _ = reward.ranking_loss(scores[rest], ranks[rest], valid[rest])
  np.testing.assert_allclose(loss, fewer, rtol=1e-6)


def test_invariant_25_every_prompt_weighs_the_same():
  """A prompt of ten pairs and a prompt of one pair count alike."""
  scores = np.zeros((2, 5))
  scores[1] = [4, 0, 0, 0, 0]
  ranks = np.array([[1, 2, 3, 4, 5], [1, 2, 9, 9, 9]])
  valid = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
  loss, _ = reward.ranking_loss(scores, ranks, valid)
  expected = (math.log(2) + math.log1p(math.exp(-4))) / 2
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_invariant_20_microbatches_add_up_to_the_batch(data):
  scores, ranks, valid = data
  total = reward.count_prompts(ranks, valid)

  def run(rows, normalizer):
    return jax.value_and_grad(reward.ranking_loss, has_aux=True)(
      jnp.asarray(scores[rows]),
      ranks[rows],
      valid[rows],
      normalizer=normalizer,
    )

  whole = run(slice(None), None)
  parts = [run(slice(i, i + 2), total) for i in (0, 2, 4)]
  summed = jax.tree.map(lambda *x: sum(x), *[part[0] for part in parts])
  for a, b in zip(
    jax.tree.leaves(summed), jax.tree.leaves(whole[0]), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(
    np.concatenate([part[1] for part in parts]), whole[1], rtol=1e-5, atol=1e-8
  )


def test_filling_completions_never_matter(data, spoil):
  scores, ranks, valid = data
  grad = jax.value_and_grad(reward.ranking_loss, has_aux=True)
  clean = grad(jnp.asarray(scores), ranks, valid)
  other = np.where(valid, ranks, 0)
  dirty = grad(jnp.asarray(spoil(scores, valid)), other, valid)
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(np.asarray(dirty[1])[~valid], 0)


def test_gradient_is_that_of_finite_differences(data, check_gradient):
  scores, ranks, valid = data
  gradient = check_gradient(
    lambda s: reward.ranking_loss(s, ranks, valid)[0], scores
  )
  # Only differences count, so the gradient of each prompt adds up to 0.
  np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-12)


def test_invariant_25_rankings_recover_their_bradley_terry_scores(rng):
  """Gradient descent on sampled rankings recovers their scores."""
  true = np.array([1.2, 0.4, -0.3, -1.3])
  rows = []
  for i, j in itertools.combinations(range(4), 2):
    share = 1 / (1 + math.exp(-(true[i] - true[j])))
    for k in range(200):  # exact shares: no sampling noise in the optimum
      won = k < round(200 * share)
      rows.append(
        [
          1 if c == (i if won else j) else 2 if c in (i, j) else 0
          for c in range(4)
        ]
      )
  ranks = np.array(rows)
  valid = ranks > 0

  @jax.jit
  def step(scores):
    def loss(s):
      batch = jnp.broadcast_to(s, ranks.shape)
      return reward.ranking_loss(batch, ranks, valid)[0]

    return scores - 4.0 * jax.grad(loss)(scores)

  scores = jnp.zeros(4)
  for _ in range(300):
    scores = step(scores)
  np.testing.assert_allclose(scores - scores.mean(), true, atol=0.03)


def test_pair_losses_equal_loop(data):
  scores, ranks, valid = data
  actual = jax.jit(reward.pair_losses)(scores, ranks, valid)
  for b in range(6):
    expected = sum(
      np.logaddexp(0, float(scores[b, j]) - float(scores[b, i]))
      for i in range(scores.shape[1])
      for j in range(scores.shape[1])
      if valid[b, i] and valid[b, j] and ranks[b, i] < ranks[b, j]
    )
    np.testing.assert_allclose(actual[b], expected, rtol=1e-5, atol=1e-6)
