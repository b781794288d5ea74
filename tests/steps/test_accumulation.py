"""Gradient accumulation: sums over microbatches, and their indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.steps import accumulation


@pytest.mark.parametrize("microbatch", [0, 1, 2, 3, 6, 9])
def test_invariant_20_microbatches_add_up_and_each_row_counts_once(microbatch):
  batch = {"x": np.arange(1.0, 7.0, dtype=np.float32), "row": np.arange(6)}

  def loss_fn(params, part, index):
    assert index.dtype == jnp.int32
    counts = jnp.zeros(6).at[part["row"]].add(1.0)
    # A loss that is not linear in its parameters.
    loss = jnp.sum(jnp.square(params * part["x"] - 1)) / 6
    return loss, {"counts": counts, "parts": jnp.ones(())}

  loss, grads, metrics = jax.jit(
    lambda p: accumulation.accumulate(loss_fn, p, batch, microbatch)
  )(jnp.float32(0.5))
  x = np.arange(1.0, 7.0)
  np.testing.assert_allclose(loss, np.mean((0.5 * x - 1) ** 2), rtol=1e-6)
  np.testing.assert_allclose(grads, np.mean(2 * x * (0.5 * x - 1)), rtol=1e-6)
  np.testing.assert_array_equal(metrics["counts"], np.ones(6))
  parts = 1 if microbatch in (0, 9) else 6 // microbatch
  assert metrics["parts"] == parts


def test_microbatches_have_their_index():
  def loss_fn(params, part, index):
    return params * 0, {"indices": jnp.zeros(3).at[index].add(part.sum())}

  batch = jnp.asarray([1.0, 10, 100, 1000, 10_000, 100_000])
  _, _, metrics = accumulation.accumulate(loss_fn, jnp.float32(1), batch, 2)
  # Strided: microbatch i holds rows i and i + 3, so each spans the devices.
  np.testing.assert_array_equal(metrics["indices"], [1001, 10_010, 100_100])


def test_a_microbatch_must_divide_the_batch():
  with pytest.raises(ValueError, match="4 does not divide batch 6"):
    accumulation.accumulate(
      lambda p, b, i: (p, {}), jnp.float32(1), jnp.ones(6), 4
    )
