"""Angles between gradients and checksums of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.steps import diagnostics


def test_angle_between_gradients():
  def tree(*values):
    return {"a": jnp.asarray(values[:1]), "b": jnp.asarray(values[1:])}

  for a, b, degrees in (
    (tree(3.0, 0.0), tree(5.0, 0.0), 0),
    (tree(1.0, 0.0), tree(1.0, 1.0), 45),
    (tree(0.0, 2.0), tree(7.0, 0.0), 90),
    (tree(1.0, 1.0), tree(-2.0, -2.0), 180),
    (tree(0.0, 0.0), tree(1.0, 0.0), 90),  # one vanishes
    (tree(1e-12, 0.0), tree(1e-12, 1e-12), 45),
  ):
    np.testing.assert_allclose(diagnostics.angle(a, b), degrees, atol=0.05)
  # Rounding must not push the cosine beyond 1.
  rng = np.random.default_rng(0)
  for _ in range(20):
    x = jnp.asarray(rng.normal(size=1000), jnp.float32)
    assert np.isfinite(diagnostics.angle(x, 3 * x))


@pytest.fixture(scope="module")
def checksum():
  return jax.jit(diagnostics.params_checksum)


def test_invariant_29_any_bit_changes_the_checksum(checksum):
  rng = np.random.default_rng(0)
  tree = {
    "a": rng.normal(size=(3, 4)),
    "b": rng.normal(size=5),
    "c": np.zeros(1),
  }
  tree = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
  clean = checksum(tree)
  assert clean.dtype == jnp.uint32 and clean == checksum(tree)
  checksums = {int(clean)}
  for name, leaf in tree.items():
    for index in np.ndindex(leaf.shape):
      for bit in range(32):
        bits = leaf.copy().view(np.uint32)
        bits[index] ^= np.uint32(1) << np.uint32(bit)
        spoiled = {**tree, name: bits.view(np.float32)}
        checksums.add(int(checksum(spoiled)))
  assert len(checksums) == 1 + 32 * 18


@pytest.mark.parametrize(
  "a, b", [(1.5, -1.5), (0.0, -0.0), (1.0, 2.0), (0.1, 0.2)]
)
def test_invariant_29_moved_values_change_the_checksum(checksum, a, b):
  """Swapped values that differ only in their highest bits count, too."""
  x = np.zeros((8, 256), np.float32)
  x[0, 0] = a
  for index in (1, 2, 7, 8, 256, 512, 513, 1024, 2047):
    one, other = x.copy(), x.copy()
    one.flat[index] = b
    other[0, 0], other.flat[index] = b, a
    assert checksum(one) != checksum(other), index
  transposed = np.arange(2048, dtype=np.float32).reshape(8, 256)
  assert checksum(transposed) != checksum(transposed.reshape(256, 8).T.copy())
  assert checksum([x, x + 1]) != checksum([x + 1, x])
