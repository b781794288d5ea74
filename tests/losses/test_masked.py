"""Masked reductions against plain loops, and whitening's invariants."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.losses import masked
from tests.devices import pretended


def moments(x, mask):
  """Computes count, mean and population variance by plain loops."""
  values = [
    float(v) for v, m in zip(np.ravel(x), np.ravel(mask), strict=True) if m
  ]
  mean = sum(values) / len(values)
  return len(values), mean, sum((v - mean) ** 2 for v in values) / len(values)


@pytest.fixture
def data(rng):
  x = rng.normal(2.0, 3.0, (5, 7)).astype(np.float32)
  mask = rng.random((5, 7)) < 0.6
  mask[2] = False
  mask[3] = True
  return x, mask


def test_sum_mean_and_variance_equal_loops(data):
  x, mask = data
  count, mean, variance = moments(x, mask)
  np.testing.assert_allclose(
    jax.jit(masked.masked_sum)(x, mask), count * mean, rtol=1e-5
  )
  np.testing.assert_allclose(
    jax.jit(masked.masked_mean)(x, mask), mean, rtol=1e-5
  )
  np.testing.assert_allclose(
    jax.jit(masked.masked_variance)(x, mask), variance, rtol=1e-5
  )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_reductions_along_an_axis_equal_loops(data, axis):
  x, mask = data
  sums = masked.masked_sum(x, mask, axis)
  means = masked.masked_mean(x, mask, axis)
  variances = masked.masked_variance(x, mask, axis)
  rows = zip(
    np.moveaxis(x, axis, 0).T, np.moveaxis(mask, axis, 0).T, strict=True
  )
  for i, (row, row_mask) in enumerate(rows):
    if row_mask.any():
      count, mean, variance = moments(row, row_mask)
    else:
      count, mean, variance = 0, 0.0, 0.0
    np.testing.assert_allclose(sums[i], count * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(means[i], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variances[i], variance, rtol=1e-5, atol=1e-6)


def test_mask_of_one_column_counts_every_broadcast_entry():
  x = np.arange(6.0).reshape(2, 3)
  mask = np.array([[True], [False]])
  assert masked.masked_mean(x, mask) == 1.0
  np.testing.assert_allclose(masked.masked_variance(x, mask), 2 / 3, rtol=1e-6)


def test_variance_is_the_populations():
  assert masked.masked_variance(np.array([1.0, 3.0]), np.ones(2)) == 1.0


def test_variance_survives_a_large_mean():
  x = 10_000 + np.array([-1.0, 1.0, -1.0, 1.0])
  np.testing.assert_allclose(
    masked.masked_variance(x, np.ones(4)), 1.0, rtol=1e-3
  )


def test_empty_mask_gives_zero_and_no_gradient():
  x, mask = np.full((2, 3), 5.0), np.zeros((2, 3), bool)
  for function in (masked.masked_sum, masked.masked_mean):
    value, slope = jax.value_and_grad(function)(jnp.asarray(x), mask)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)
  assert masked.masked_variance(x, mask) == 0
  np.testing.assert_array_equal(masked.whiten(x, mask, shift_mean=True), 0)


@pytest.mark.parametrize("kind", [np.int32, np.bool_, np.float16, jnp.bfloat16])
def test_invariant_11_narrow_and_integer_inputs_become_float32(kind):
  x = jnp.asarray([0, 1, 1, 1]).astype(kind)
  mean = masked.masked_mean(x, np.ones(4))
  assert mean.dtype == jnp.float32
  assert mean == 0.75


def test_invariant_20_normalizer_makes_microbatch_means_add_up(data):
  x, mask = data
  total = mask.sum()
  parts = [
    masked.masked_mean(x[i : i + 1], mask[i : i + 1], normalizer=total)
    for i in range(5)
  ]
  np.testing.assert_allclose(sum(parts), moments(x, mask)[1], rtol=1e-5)


def test_invariant_18_whitening_with_shift_standardises(data):
  x, mask = data
  out = masked.whiten(x, mask, shift_mean=True)
  count, mean, variance = moments(x, mask)
  expected = np.where(mask, (x - mean) / np.sqrt(variance + 1e-8), 0)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
  _, new_mean, new_variance = moments(out, mask)
  assert abs(new_mean) < 1e-6
  assert abs(new_variance - 1) < 1e-5


def test_invariant_18_whitening_without_mean_shift_keeps_the_mean(data):
  x, mask = data
  out = masked.whiten(x, mask, shift_mean=False)
  _, mean, variance = moments(x, mask)
  expected = np.where(mask, (x - mean) / np.sqrt(variance + 1e-8) + mean, 0)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
  _, new_mean, new_variance = moments(out, mask)
  np.testing.assert_allclose(new_mean, mean, rtol=1e-5)
  np.testing.assert_allclose(new_variance, 1, rtol=1e-4)


def test_whitening_epsilon_is_added_to_the_variance():
  x = np.array([1.0, 3.0])  # variance 1
  out = masked.whiten(x, np.ones(2), shift_mean=True, eps=3.0)
  np.testing.assert_allclose(out, [-0.5, 0.5], rtol=1e-6)


def test_whitening_equal_values_is_finite():
  out = masked.whiten(np.full(4, 3.0), np.ones(4), shift_mean=False)
  np.testing.assert_allclose(out, 3.0, rtol=1e-6)


def test_invariant_14_masked_values_never_matter(data, spoil):
  x, mask = data
  spoiled = spoil(x, mask)
  assert not np.isfinite(spoiled).all()

  def functions(values):
    return (
      masked.masked_sum(values, mask),
      masked.masked_mean(values, mask, 1),
      masked.masked_variance(values, mask),
      masked.masked_variance(values, mask, 0),
      masked.whiten(values, mask, shift_mean=True),
      masked.whiten(values, mask, shift_mean=False),
    )

  for clean, dirty in zip(functions(x), functions(spoiled), strict=True):
    np.testing.assert_array_equal(clean, dirty)

  def total(values):
    return sum(jnp.sum(jnp.square(out)) for out in functions(values))

  clean, dirty = jax.grad(total)(x), jax.grad(total)(spoiled)
  np.testing.assert_array_equal(clean, dirty)
  np.testing.assert_array_equal(np.asarray(dirty)[~mask], 0)


def test_whitening_gradient_is_that_of_finite_differences(rng, check_gradient):
  x, weight = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
  mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
  check_gradient(
    lambda v: jnp.sum(masked.whiten(v, mask, shift_mean=False) * weight), x
  )


EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from instructgpt_jax.losses import masked, ppo, reward

assert jax.device_count() == 8
rng = np.random.default_rng(1)
x = rng.normal(3, 2, (16, 6)).astype(np.float32)
y = x + rng.normal(0, .3, x.shape).astype(np.float32)
mask = np.arange(6) < rng.integers(1, 7, (16, 1))
ranks = rng.integers(1, 4, (16, 6))

def everything(x, y, mask, ranks):
  return (
    masked.masked_mean(x, mask),
    masked.masked_variance(x, mask),
    masked.whiten(x, mask, shift_mean=True),
    masked.whiten(x, mask, shift_mean=False),
    ppo.policy_loss(y, x, x, mask, clip_ratio=.2),
    ppo.value_loss(y, x, x + 1, mask, clip_value=.2),
    ppo.explained_variance(y, x, mask),
    reward.ranking_loss(x, ranks, mask),
  )

mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec('data'))
one = jax.jit(everything)(x, y, mask, ranks)
sharded = [jax.device_put(a, rows) for a in (x, y, mask, ranks)]
assert len(sharded[0].addressable_shards) == 8
eight = jax.jit(everything)(*sharded)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
  np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
print('same on one and eight')
"""


def test_invariant_18_one_device_equals_eight():
  root = pathlib.Path(__file__).resolve().parents[2]
  environment = {
    **os.environ,
    **pretended(8),
    "PYTHONPATH": str(root),
  }
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert "same on one and eight" in done.stdout
