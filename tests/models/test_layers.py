"""Dense layers against numpy in float64, and their residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from instructgpt_jax.models import layers
from instructgpt_jax.models.kernels.dense import dense

ROWS = 24


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def plain(before, x, weights, kernel, bias):
  """Computes the same layer for JAX to differentiate."""
  outputs = before(x, *weights) @ kernel
  return outputs if bias is None else outputs + bias


def arguments(rng, inputs, outputs, normed):
  x, kernel = (
    rng.normal(0, 1, (ROWS, inputs)),
    rng.normal(0, 0.3, (inputs, outputs)),
  )
  weights = tuple(rng.normal(1, 0.2, (2, inputs))) if normed else ()
  arrays = (x, weights, kernel, rng.normal(0, 1, outputs))
  return jax.tree.map(lambda a: np.asarray(a, np.float32), arrays)


def test_a_norm_has_mean_bias_and_deviation_scale(rng):
  x = rng.normal(300, 2, (5, 64))
  scale, bias = rng.normal(1, 0.3, (2, 64))
  centred = x - x.mean(axis=1, keepdims=True)
  expected = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5)
  expected = expected * scale + bias
  actual = layers.layer_norm(
    *(jnp.asarray(a, jnp.float32) for a in (x, scale, bias))
  )
  np.testing.assert_allclose(actual, expected, atol=2e-4)
  flax_norm = nn.LayerNorm(epsilon=layers.EPSILON, use_fast_variance=False)
  params = {"params": {"scale": scale, "bias": bias}}
  np.testing.assert_allclose(
    actual, flax_norm.apply(params, x.astype(np.float32)), atol=2e-4
  )


@pytest.mark.parametrize("normed", [True, False], ids=["norm", "gelu"])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 40), (40, 12), (16, 16)])
def test_gradients_are_those_of_the_plain_layer(rng, inputs, outputs, normed):
  before = layers.layer_norm if normed else layers.gelu
  arrays = arguments(rng, inputs, outputs, normed)

  def loss(layer):
    return lambda *x: jnp.sum(jnp.sin(layer(before, *x)))

  which = (0, 1, 2, 3)
  actual = jax.jit(jax.value_and_grad(loss(dense), which))(*arrays)
  expected = jax.jit(jax.value_and_grad(loss(plain), which))(*arrays)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
  "before, weights",
  [
    (layers.norm_function("rms", 1e-3), 1),
    (layers.norm_function("gemma_rms", 1e-3), 1),
    (layers.activation("silu", True), 0),
  ],
  ids=["rms", "gemma_rms", "gated_mlp"],
)
def test_other_layers_before_a_matmul_without_a_bias(rng, before, weights):
  x, _, kernel, _ = arguments(rng, 12, 40, False)
  scale = tuple(rng.normal(0.5, 0.2, (weights, 12)).astype(np.float32))
  inputs = x.shape[1] if weights else x.shape[1] // 2
  arrays = (x, scale, kernel[:inputs], None)

  def loss(layer):
    return lambda *a: jnp.sum(jnp.sin(layer(before, *a, None)))

  actual = jax.jit(jax.value_and_grad(loss(dense), (0, 1, 2)))(*arrays[:3])
  expected = jax.jit(jax.value_and_grad(loss(plain), (0, 1, 2)))(*arrays[:3])
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4)


def test_rms_norms_equal_their_formulas(rng):
  x, scale = rng.normal(2, 3, (5, 64)), rng.normal(0, 0.3, 64)
  root = np.sqrt((x**2).mean(axis=1, keepdims=True) + 0.1)
  for kind, factor in (("rms", scale), ("gemma_rms", 1 + scale)):
    actual = layers.norm_function(kind, 0.1)(jnp.asarray(x), jnp.asarray(scale))
    np.testing.assert_allclose(actual, x / root * factor, atol=1e-5)


def test_a_layer_in_bfloat16_gives_float32_gradients_to_its_weights(rng):
  x, weights, kernel, bias = arguments(rng, 12, 40, True)

  def loss(x, kernel, bias):
    outputs = dense(layers.layer_norm, x, weights, kernel, bias)
    assert outputs.dtype == jnp.bfloat16
    return outputs.astype(jnp.float32).sum()

  grads = jax.grad(loss, (0, 1, 2))(jnp.asarray(x, jnp.bfloat16), kernel, bias)
  assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_inputs_of_a_matmul_are_not_stored(rng):
  """Measures temporary memory of a compiled chain of layers."""
  depth, width, rows = 6, 32, 4096
  kernels = np.asarray(rng.normal(0, 0.2, (depth, width, width)), np.float32)
  bias = np.zeros(width, np.float32)
  x = jnp.ones((rows, width))

  def memory(layer):
    def loss(kernels):
      hidden = x
      for kernel in kernels:
        hidden = layer(layers.gelu, hidden, (), kernel, bias)
      return hidden.sum()

    compiled = jax.jit(jax.grad(loss)).lower(kernels).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert memory(dense) < 0.7 * memory(plain)
