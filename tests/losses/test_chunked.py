"""Losses in chunks against whole logits, and the chunks that they skip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.losses import chunked, language

TOKENS, WIDTH, SIZE = 200, 6, 11


@pytest.fixture(params=["chunks", "wide", "whole"], autouse=True)
def chunk(request, monkeypatch):
  """Sets eight chunks of 25 tokens, in either form, or one chunk."""
  least = 1 << 20 if request.param == "whole" else 1
  monkeypatch.setattr(chunked, "LEAST_TOKENS", least)
  if request.param == "wide":
    monkeypatch.setattr(chunked, "NARROW", 0)
  return request.param


@pytest.fixture
def data(rng):
  hidden = rng.normal(0, 1, (TOKENS, WIDTH)).astype(np.float32)
  matrix = rng.normal(0, 1, (SIZE, WIDTH)).astype(np.float32)
  targets = rng.integers(0, SIZE, TOKENS).astype(np.int32)
  weights = rng.random(TOKENS).astype(np.float32) * (rng.random(TOKENS) < 0.6)
  return hidden, matrix, targets, weights.astype(np.float32)


def cross_entropy(logits, rows, used):
  weights = jnp.where(used, rows["weights"], 0)
  loss, total, sums = language.weighted_cross_entropy(
    logits, rows["targets"], weights
  )
  return loss, sums | {"weight": total}


def in_chunks(hidden, matrix, targets, weights):
  rows = {"targets": targets, "weights": weights}
  return chunked.chunked_logits_loss(
    cross_entropy, hidden, matrix, rows, weights > 0
  )


def twin(hidden, matrix, targets, weights):
  """Computes loss, two gradients and the correct weight in float64."""
  h, m = hidden.astype(np.float64), matrix.astype(np.float64)
  logits = h @ m.T
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  p /= p.sum(axis=1, keepdims=True)
  picked = p[np.arange(len(h)), targets]
  slope = (p - np.eye(len(m))[targets]) * weights[:, None]
  right = weights[logits.argmax(axis=1) == targets].sum()
  return -(weights * np.log(picked)).sum(), slope @ m, slope.T @ h, right


def test_loss_and_gradients_equal_the_twin(data):
  (loss, sums), grads = jax.jit(
    jax.value_and_grad(in_chunks, argnums=(0, 1), has_aux=True)
  )(*data)
  expected, of_hidden, of_matrix, right = twin(*data)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(sums["correct"], right, rtol=1e-5)
  np.testing.assert_allclose(sums["weight"], data[3].sum(), rtol=1e-5)
  np.testing.assert_allclose(grads[0], of_hidden, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(grads[1], of_matrix, rtol=1e-4, atol=1e-5)
  assert (np.asarray(grads[0])[data[3] == 0] == 0).all()
  plain, _ = jax.jit(in_chunks)(*data)
  np.testing.assert_allclose(plain, loss, rtol=1e-6)


def test_gradients_are_scaled_by_the_incoming_gradient(data):
  def halved(hidden, matrix):
    return 0.5 * in_chunks(hidden, matrix, *data[2:])[0]

  actual = jax.grad(halved, argnums=(0, 1))(*data[:2])
  _, *expected, _ = twin(*data)
  for x, y in zip(actual, expected, strict=True):
    np.testing.assert_allclose(x, 0.5 * y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logp_equals_the_whole(data, temperature):
  hidden, matrix, targets, weights = data
  actual = jax.jit(chunked.token_logp, static_argnames="temperature")(
    hidden, matrix, targets, weights > 0, temperature=temperature
  )
  expected = language.token_logp(
    hidden @ matrix.T, targets, temperature=temperature
  )
  np.testing.assert_allclose(
    actual, np.where(weights > 0, expected, 0), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tokens_without_loss_have_no_gradient(data, bad):
  hidden, matrix, targets, weights = data
  spoiled = np.where(weights[:, None] > 0, hidden, np.float32(bad))
  loss = jax.value_and_grad(
    lambda *x: in_chunks(*x, targets, weights)[0], argnums=(0, 1)
  )
  for x, y in zip(
    jax.tree.leaves(loss(spoiled, matrix)),
    jax.tree.leaves(loss(hidden, matrix)),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)
  logp = chunked.token_logp(spoiled, matrix, targets, weights > 0)
  assert np.isfinite(logp).all()


def test_without_loss_everything_is_zero(data):
  none = np.zeros(TOKENS, np.float32)
  (loss, sums), grads = jax.value_and_grad(
    in_chunks, argnums=(0, 1), has_aux=True
  )(*data[:3], none)
  for x in jax.tree.leaves((loss, sums, grads)):
    assert not np.any(x)


def test_only_chunks_with_loss_are_computed(data, chunk):
  hidden, matrix, targets, weights = data
  counted = []

  def counting(logits, rows, used):
    jax.debug.callback(lambda: counted.append(1))
    return cross_entropy(logits, rows, used)

  for used, expected in ((1, 1), (25, 1), (26, 2), (TOKENS, 8)):
    counted.clear()
    mask = np.where(np.arange(TOKENS) >= TOKENS - used, 1, 0).astype(np.float32)
    rows = {"targets": targets, "weights": mask}
    jax.block_until_ready(
      chunked.chunked_logits_loss(counting, hidden, matrix, rows, mask > 0)
    )
    jax.effects_barrier()
    assert len(counted) == (1 if chunk == "whole" else expected)


def test_whole_logits_are_never_stored(chunk):
  """Measures temporary memory of the compiled loss and its gradients."""
  shapes = [
    jax.ShapeDtypeStruct(s, d)
    for s, d in (
      ((TOKENS * 50, WIDTH), jnp.float32),
      ((SIZE, WIDTH), jnp.float32),
      ((TOKENS * 50,), jnp.int32),
      ((TOKENS * 50,), jnp.float32),
    )
  ]
  loss = jax.value_and_grad(in_chunks, argnums=(0, 1), has_aux=True)
  compiled = jax.jit(loss).lower(*shapes).compile()
  memory = compiled.memory_analysis().temp_size_in_bytes
  logits = TOKENS * 50 * SIZE * 4
  if chunk == "whole":
    assert memory > 1.5 * logits
  else:
    assert memory < 1.5 * logits
