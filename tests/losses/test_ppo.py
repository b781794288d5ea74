"""PPO's losses against float64 loops, hand-worked cases and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.losses import ppo


@pytest.fixture
def mask():
  return np.arange(5) < np.array([[5], [2], [4]])


@pytest.fixture
def data(rng, mask):
  old = rng.normal(-2, 0.5, mask.shape).astype(np.float32)
  new = old + rng.normal(0, 0.3, mask.shape).astype(np.float32)
  advantages = rng.normal(size=mask.shape).astype(np.float32)
  return new, old, advantages


@pytest.fixture
def value_data(rng, mask):
  old = rng.normal(size=mask.shape).astype(np.float32)
  new = old + rng.normal(0, 0.3, mask.shape).astype(np.float32)
  targets = old + rng.normal(0, 0.5, mask.shape).astype(np.float32)
  return new, old, targets


def policy_twin(new, old, advantages, mask, clip_ratio):
  """Computes loss and metrics by plain loops."""
  sums = dict.fromkeys(
    ("loss", "clip_fraction", "approx_kl", "ratio_mean", "ratio_variance"), 0.0
  )
  count = 0
  for index in zip(*np.nonzero(mask), strict=True):
    log_ratio = float(new[index]) - float(old[index])
    ratio, advantage = math.exp(log_ratio), float(advantages[index])
    bounded = min(max(ratio, 1 - clip_ratio), 1 + clip_ratio)
    sums["loss"] -= min(ratio * advantage, bounded * advantage)
    sums["clip_fraction"] += bounded * advantage < ratio * advantage
    sums["approx_kl"] += ratio - 1 - log_ratio
    sums["ratio_mean"] += ratio
    sums["ratio_variance"] += (ratio - 1) ** 2
    count += 1
  return {name: total / count for name, total in sums.items()}


def value_twin(new, old, targets, mask, clip_value):
  """Computes loss and metrics by plain loops."""
  loss = clipped = plain = 0.0
  for index in zip(*np.nonzero(mask), strict=True):
    v, v_old = float(new[index]), float(old[index])
    target = float(targets[index])
    error = (v - target) ** 2
    plain += error
    if clip_value:
      v_clipped = v_old + min(max(v - v_old, -clip_value), clip_value)
      clipped_error = (v_clipped - target) ** 2
      clipped += clipped_error > error
      error = max(error, clipped_error)
    loss += 0.5 * error
  count = mask.sum()
  return loss / count, clipped / count, plain / count


@pytest.mark.parametrize("clip_ratio", [0.05, 0.2, 1.0])
def test_policy_loss_equals_loop(data, mask, clip_ratio):
  loss, metrics = jax.jit(ppo.policy_loss)(*data, mask, clip_ratio=clip_ratio)
  expected = policy_twin(*data, mask, clip_ratio)
  np.testing.assert_allclose(loss, expected.pop("loss"), rtol=1e-5)
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-4, atol=1e-7, err_msg=name
    )


@pytest.mark.parametrize(
  ("ratio", "advantage", "loss", "slope", "clipped"),
  [
    (1.5, 1.0, -1.2, 0.0, 1),  # already far enough in the good direction
    (1.5, -1.0, 1.5, 1.5, 0),  # went the wrong way: pulled back
    (0.5, 1.0, -0.5, -0.5, 0),
    (0.5, -1.0, 0.8, 0.0, 1),
    (1.1, 2.0, -2.2, -2.2, 0),
  ],
)
def test_policy_loss_of_one_token(ratio, advantage, loss, slope, clipped):
  def run(logp):
    return ppo.policy_loss(
      logp, jnp.zeros((1, 1)), [[advantage]], [[True]], clip_ratio=0.2
    )

  logp = jnp.full((1, 1), math.log(ratio))
  (actual, metrics), grad = jax.value_and_grad(run, has_aux=True)(logp)
  np.testing.assert_allclose(actual, loss, rtol=1e-6)
  np.testing.assert_allclose(grad, [[slope]], rtol=1e-6)
  assert metrics["clip_fraction"] == clipped


def test_invariant_01_no_change_gives_ratio_one_and_the_policy_gradient(
  data, mask
):
  _, old, advantages = data
  (loss, metrics), slope = jax.value_and_grad(ppo.policy_loss, has_aux=True)(
    jnp.asarray(old), old, advantages, mask, clip_ratio=0.2
  )
  assert metrics == {
    "clip_fraction": 0,
    "approx_kl": 0,
    "ratio_mean": 1,
    "ratio_variance": 0,
  }
  mean = np.asarray(advantages, np.float64)[mask].mean()
  np.testing.assert_allclose(loss, -mean, rtol=1e-5)
  np.testing.assert_allclose(
    slope, np.where(mask, -advantages / mask.sum(), 0), rtol=1e-6
  )


def test_invariant_02_a_changed_policy_has_ratio_variance(data, mask):
  _, metrics = ppo.policy_loss(*data, mask, clip_ratio=0.2)
  assert metrics["ratio_variance"] > 0
  assert metrics["approx_kl"] > 0
  assert 0 < metrics["clip_fraction"] < 1


def test_policy_gradient_is_that_of_finite_differences(
  data, mask, check_gradient
):
  new, old, advantages = data
  slope = check_gradient(
    lambda x: ppo.policy_loss(x, old, advantages, mask, clip_ratio=0.2)[0], new
  )
  assert (slope[mask] == 0).any()  # tokens that were clipped


def test_rollout_values_are_constants(data, value_data, mask):
  slopes = jax.grad(
    lambda old, adv: ppo.policy_loss(data[0], old, adv, mask, clip_ratio=0.2)[
      0
    ],
    argnums=(0, 1),
  )(*map(jnp.asarray, data[1:]))
  slopes += jax.grad(
    lambda old, target: ppo.value_loss(
      value_data[0], old, target, mask, clip_value=0.2
    )[0],
    argnums=(0, 1),
  )(*map(jnp.asarray, value_data[1:]))
  for slope in slopes:
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("clip_value", [0.0, 0.1, 0.2, 10.0])
def test_invariant_19_value_loss_equals_loop(value_data, mask, clip_value):
  loss, metrics = jax.jit(ppo.value_loss, static_argnames="clip_value")(
    *value_data, mask, clip_value=clip_value
  )
  expected = value_twin(*value_data, mask, clip_value)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  np.testing.assert_allclose(metrics["value_clip_fraction"], expected[1])
  np.testing.assert_allclose(metrics["value_error"], expected[2], rtol=1e-5)
  if clip_value == 0.2:
    assert 0 < expected[1] < 1


@pytest.mark.parametrize(
  ("value", "target", "loss", "slope"),
  [
    (0.1, 1.0, 0.405, -0.9),  # within the interval
    (0.5, 1.0, 0.32, 0.0),  # held at 0.2, the larger error: ½ · 0.8²
    (0.5, 0.0, 0.125, 0.5),  # the plain error is the larger one
    (-0.5, 1.0, 1.125, -1.5),
  ],
)
def test_invariant_19_value_loss_of_one_token(value, target, loss, slope):
  """Values are clipped around the rollout's value, which is 0 here."""
  actual, grad = jax.value_and_grad(
    lambda v: ppo.value_loss(
      v, jnp.zeros((1, 1)), [[target]], [[True]], clip_value=0.2
    )[0]
  )(jnp.full((1, 1), value))
  np.testing.assert_allclose(actual, loss, rtol=1e-6)
  np.testing.assert_allclose(grad, [[slope]], rtol=1e-6)


def test_invariant_19_clipping_is_around_the_rollout_values(value_data, mask):
  new, old, targets = value_data
  moved = ppo.value_loss(new + 3, old + 3, targets + 3, mask, clip_value=0.2)
  same = ppo.value_loss(new, old, targets, mask, clip_value=0.2)
  np.testing.assert_allclose(moved[0], same[0], rtol=1e-5)


def test_value_gradient_before_any_update_is_that_of_the_plain_loss(
  value_data, mask
):
  _, old, targets = value_data
  slope = jax.grad(
    lambda v: ppo.value_loss(v, old, targets, mask, clip_value=0.2)[0]
  )(jnp.asarray(old))
  np.testing.assert_allclose(
    slope, np.where(mask, (old - targets) / mask.sum(), 0), rtol=1e-5
  )


@pytest.mark.parametrize("clip_value", [0.0, 0.2])
def test_value_gradient_is_that_of_finite_differences(
  value_data, mask, check_gradient, clip_value
):
  new, old, targets = value_data
  check_gradient(
    lambda v: ppo.value_loss(v, old, targets, mask, clip_value=clip_value)[0],
    new,
  )


def test_invariant_20_microbatches_add_up_to_the_minibatch(
  data, value_data, mask
):
  total = mask.sum()

  def run(rows, normalizer):
    keep = mask[rows]
    policy = jax.value_and_grad(ppo.policy_loss, has_aux=True)(
      *(jnp.asarray(x[rows]) for x in data),
      keep,
      clip_ratio=0.2,
      normalizer=normalizer,
    )
    value = jax.value_and_grad(ppo.value_loss, has_aux=True)(
      *(jnp.asarray(x[rows]) for x in value_data),
      keep,
      clip_value=0.2,
      normalizer=normalizer,
    )
    return (policy[0], value[0]), (policy[1], value[1])

  whole, slopes = run(slice(None), None)
  parts = [run(slice(i, i + 1), total) for i in range(3)]
  summed = jax.tree.map(lambda *x: sum(x), *[part[0] for part in parts])
  for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  for k in range(2):
    np.testing.assert_allclose(
      np.concatenate([part[1][k] for part in parts]),
      slopes[k],
      rtol=1e-5,
      atol=1e-8,
    )


def test_invariant_14_tokens_after_the_end_never_matter(
  data, value_data, mask, spoil
):
  def everything(arrays):
    policy, value = arrays[:3], arrays[3:]
    loss, metrics = ppo.policy_loss(*policy, mask, clip_ratio=0.2)
    value_loss, value_metrics = ppo.value_loss(*value, mask, clip_value=0.2)
    explained = ppo.explained_variance(value[0], value[2], mask)
    return loss + value_loss, (metrics, value_metrics, explained)

  run = jax.value_and_grad(everything, has_aux=True)
  arrays = [*data, *value_data]
  clean = run([jnp.asarray(x) for x in arrays])
  dirty = run([jnp.asarray(spoil(x, mask)) for x in arrays])
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  for slope in dirty[1]:
    np.testing.assert_array_equal(np.asarray(slope)[~mask], 0)


def test_an_empty_microbatch_adds_nothing(data, value_data):
  nothing = np.zeros((3, 5), bool)
  loss, metrics = ppo.policy_loss(*data, nothing, clip_ratio=0.2, normalizer=9)
  other, more = ppo.value_loss(
    *value_data, nothing, clip_value=0.2, normalizer=9
  )
  for leaf in jax.tree.leaves((loss, metrics, other, more)):
    assert leaf == 0


def test_explained_variance_equals_loop(value_data, mask):
  values, _, targets = value_data
  actual = jax.jit(ppo.explained_variance)(values, targets, mask)
  left = (targets.astype(float) - values)[mask]
  expected = 1 - left.var() / targets.astype(float)[mask].var()
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_explained_variance_known_answers():
  targets, mask = np.array([[1.0, 2.0, 4.0]]), np.ones((1, 3), bool)
  explained = ppo.explained_variance
  assert explained(targets, targets, mask) == 1
  np.testing.assert_allclose(explained(targets + 5, targets, mask), 1)
  np.testing.assert_allclose(explained(0 * targets, targets, mask), 0)
  np.testing.assert_allclose(explained(-targets, targets, mask), -3, rtol=1e-6)
  assert explained(targets, 0 * targets, mask) == 0
