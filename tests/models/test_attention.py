"""Attention in blocks against a float64 softmax, and skipped blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax import configs, types
from instructgpt_jax.models import attention
from instructgpt_jax.models.kernels import attention as attention_kernels
from instructgpt_jax.models.kernels import blocked, cudnn

HEADS, SIZE = 2, 4


def make(length, rows=2, seed=0):
  """Makes queries, keys, values, cotangents and the mask of packed rows."""
  rng = np.random.default_rng(seed)
  q, k, v, g = rng.normal(0, 1, (4, rows, HEADS, length, SIZE))
  segments = np.cumsum(rng.random((rows, length)) < 0.05, axis=1) + 1
  segments[0, : length // 3] = -1  # a prefix that all later tokens see
  segments[1, -length // 5 :] = 0  # padding
  mask = np.asarray(attention.attention_mask(jnp.asarray(segments)))
  return *(x.astype(np.float32) for x in (q, k, v, g)), mask


def twin(q, k, v, mask):
  """Returns the outputs [B, H, T, D] and the probabilities in float64."""
  scores = np.einsum("bhtd,bhsd->bhts", q.astype(np.float64), k) / SIZE**0.5
  scores = np.where(mask[:, None], scores, -np.inf)
  p = np.exp(scores - scores.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  return np.einsum("bhts,bhsd->bhtd", p, v), p


def gradients_twin(q, k, v, g, mask):
  output, p = twin(q, k, v, mask)
  dp = np.einsum("bhtd,bhsd->bhts", g, v)
  ds = p * (dp - (g * output).sum(-1, keepdims=True)) / SIZE**0.5
  return (
    np.einsum("bhts,bhsd->bhtd", ds, k),
    np.einsum("bhts,bhtd->bhsd", ds, q),
    np.einsum("bhts,bhtd->bhsd", p, g),
  )


# One block, two, four, and four with a short last one.
@pytest.mark.parametrize("length", [1, 17, 100, 256, 301])
def test_attention_and_its_gradient_equal_the_twin(length):
  q, k, v, g, mask = make(length)
  actual, pull = jax.vjp(lambda *x: attention_kernels.attend(*x, mask), q, k, v)
  np.testing.assert_allclose(actual, twin(q, k, v, mask)[0], atol=1e-5)
  for x, y in zip(pull(g), gradients_twin(q, k, v, g, mask), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


def far(length, first, last, seed=0):
  """Makes rows of a shared prefix and segments of at most `last` tokens."""
  q, k, v, g, _ = make(length, seed=seed)
  rng = np.random.default_rng(seed)
  segments = np.full((2, length), -1)
  for row, begin in zip(segments, (first, first - 7), strict=True):
    at, number = begin, 1
    while at < length:
      size = int(rng.integers(1, last + 1))
      row[at : at + size] = number
      at, number = at + size, number + 1
  mask = np.asarray(attention.attention_mask(jnp.asarray(segments)))
  return q, k, v, g, mask


@pytest.mark.parametrize(
  "length, first, last", [(301, 20, 30), (256, 70, 100), (150, 140, 3)]
)
def test_keys_outside_the_span_change_nothing(length, first, last):
  q, k, v, g, mask = far(length, first, last)
  span = types.AttentionSpan(first, last)
  actual, pull = jax.vjp(
    lambda *x: attention_kernels.attend(*x, mask, 0.0, span), q, k, v
  )
  np.testing.assert_allclose(actual, twin(q, k, v, mask)[0], atol=1e-5)
  for x, y in zip(pull(g), gradients_twin(q, k, v, g, mask), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


def test_keys_outside_the_span_are_not_read():
  q, k, v, g, mask = far(400, 20, 30)
  span = types.AttentionSpan(20, 30)
  v[:, :, 100:200] = np.nan
  actual, pull = jax.vjp(
    lambda q, k: attention_kernels.attend(q, k, v, mask, 0.0, span), q, k
  )
  assert np.isnan(actual[:, :, 150]).all()
  assert np.isfinite(actual[:, :, 320:]).all()
  of_query, _ = pull(g)
  assert np.isfinite(of_query[:, :, 320:]).all()
  read = [sum(s.stop - s.start for s in keys)
          for _, keys in blocked.key_blocks(7000, span)]  # fmt: skip
  assert max(read) == 20 + 30 + 64


def test_pairs_that_are_computed():
  half = configs.Model(d_model=64, num_heads=1, dtype="bfloat16")
  span = types.AttentionSpan(20, 30)
  # Four blocks of 64. Each reads the keys up to its end.
  blocks = 64 * 64 * (1 + 2 + 3 + 4)
  for platform in ("cuda", "gpu"):
    assert attention_kernels.num_scores(platform, half, 700, span) == 700 * 700
    # Without a cuDNN kernel, keys are read in blocks there too.
    for other in (
      {"dtype": "float32"},
      {"num_heads": 16},
      {"attn_logit_softcap": 9.0},
    ):
      model = dataclasses.replace(half, **other)
      assert attention_kernels.num_scores(platform, model, 256) == blocks
  for platform in ("cpu", "tpu"):
    assert attention_kernels.num_scores(platform, half, 64) == 64 * 64
  assert attention_kernels.num_scores("cpu", half, 256) == blocks
  # A later block reads its own keys, 30 before them and the prefix.
  assert attention_kernels.num_scores("cpu", half, 256, span) == 64 * (
    64 + 3 * 114
  )
  assert attention_kernels.num_scores("tpu", half, 256, span) == 256 * 256


def test_other_platforms_attend_equally():
  """Compares `cudnn.attend` and its gradient on a CPU."""
  q, k, v, g, mask = make(100)
  actual, pull = jax.vjp(lambda *x: cudnn.attend(*x, mask), q, k, v)
  np.testing.assert_allclose(actual, twin(q, k, v, mask)[0], atol=1e-5)
  for x, y in zip(pull(g), gradients_twin(q, k, v, g, mask), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


def test_cudnn_is_used_for_supported_shapes():
  assert cudnn.has_kernel(jnp.bfloat16, 64, 64, 0.0)
  assert cudnn.has_kernel("float16", 2, 128, 0.0)
  for dtype, length, width, cap in (
    (jnp.float32, 64, 64, 0.0),
    (jnp.bfloat16, 63, 64, 0.0),
    (jnp.bfloat16, 64, 12, 0.0),
    (jnp.bfloat16, 64, 256, 0.0),
    (jnp.bfloat16, 64, 64, 30.0),
  ):
    assert not cudnn.has_kernel(dtype, length, width, cap)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_cudnn_materialises_whole_rows(platform, dtype):
  """cuDNN has no float32 kernel, so float32 is blocked on a GPU too."""
  length = 512
  x = jnp.zeros((1, HEADS, length, 16), dtype)
  mask = jnp.tril(jnp.ones((1, length, length), bool))

  def loss(q, k, v):
    return attention_kernels.attend(q, k, v, mask).astype(jnp.float32).sum()

  traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, x, x)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  cudnn = platform == "cuda" and dtype == jnp.bfloat16
  assert (f"1x{HEADS}x{length}x{length}xf32" in text) == cudnn


def test_a_few_queries_read_a_longer_cache():
  q, k, v, _, mask = make(40)
  actual, _ = attention.attend_dense(
    q[:, :, -3:], k, v, jnp.asarray(mask[:, -3:])
  )
  np.testing.assert_allclose(
    actual, twin(q, k, v, mask)[0][:, :, -3:], atol=1e-5
  )


def test_bfloat16_keeps_its_type_and_a_float32_softmax():
  q, k, v, g, mask = make(100)
  low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
  actual, pull = jax.vjp(lambda *x: attention_kernels.attend(*x, mask), *low)
  assert actual.dtype == jnp.bfloat16
  np.testing.assert_allclose(actual, twin(q, k, v, mask)[0], atol=0.03)
  for x, y in zip(
    pull(jnp.asarray(g, jnp.bfloat16)),
    gradients_twin(q, k, v, g, mask),
    strict=True,
  ):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(x, y, atol=0.1)


def test_later_keys_are_not_read():
  """NaN in later keys has no effect, and their gradient is zero."""
  q, k, v, g, mask = make(130)
  mask = np.broadcast_to(np.tril(np.ones((130, 130), bool)), mask.shape)
  spoiled = v.copy()
  spoiled[:, :, 80:] = np.nan
  actual = attention_kernels.attend(q, k, spoiled, mask)
  assert np.isfinite(actual[:, :, :64]).all()
  early = jnp.where(jnp.arange(130)[:, None] < 50, g, 0)
  of_key = jax.grad(
    lambda k: (attention_kernels.attend(q, k, v, mask) * early).sum()
  )(k)
  assert (np.asarray(of_key)[:, :, 50:] == 0).all()
  assert (np.asarray(of_key)[:, :, :50] != 0).any()


def test_probabilities_are_not_stored():
  """Residuals of the backward pass grow with T, not with its square."""

  def saved_floats(length):
    x = jax.ShapeDtypeStruct((1, HEADS, length, SIZE), jnp.float32)
    mask = jnp.ones((1, length, length), bool)

    def residuals(q, k, v):
      return jax.vjp(lambda *x: attention_kernels.attend(*x, mask), q, k, v)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, x, x, x))
    return sum(f.size for f in leaves if f.dtype == jnp.float32)

  assert saved_floats(512) == 2 * saved_floats(256)


def test_capped_scores_and_their_gradient():
  """Compares with the softmax of capped scores, differentiated by JAX."""
  q, k, v, g, mask = make(100)
  cap = 0.7

  def plain(q, k, v):
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / SIZE**0.5
    scores = jnp.where(mask[:, None], cap * jnp.tanh(scores / cap), -jnp.inf)
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores), v)

  expected, pull = jax.vjp(plain, q, k, v)
  actual, actual_pull = jax.vjp(
    lambda *x: attention_kernels.attend(*x, mask, cap), q, k, v
  )
  assert np.abs(expected - attention_kernels.attend(q, k, v, mask)).max() > 0.1
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  for x, y in zip(actual_pull(g), pull(g), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


def test_few_queries_are_a_block_at_most():
  assert blocked.fits_one_block(64, 128) and not blocked.fits_one_block(65, 128)
  assert blocked.fits_one_block(128, 512) and not blocked.fits_one_block(
    129, 512
  )
