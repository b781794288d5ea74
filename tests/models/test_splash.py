"""The TPUs' kernel, interpreted, against a float64 softmax."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.kernels import attention as attention_kernels
from instructgpt_jax.models.kernels import splash
from tests.devices import pretended
from tests.models.test_attention import gradients_twin, make, twin


# One block, one that is filled up, and several.
@pytest.mark.parametrize("length", [128, 150, 700])
def test_attention_and_its_gradient_equal_the_twin(length):
  """Uses packed rows with a prefix and with padding."""
  q, k, v, g, mask = make(length)

  def attend(*heads):
    return splash.attend(*heads, jnp.asarray(mask), interpret=True)

  actual, pull = jax.vjp(attend, *map(jnp.asarray, (q, k, v)))
  np.testing.assert_allclose(actual, twin(q, k, v, mask)[0], atol=1e-5)
  expected = gradients_twin(q, k, v, g, mask)
  for x, y in zip(pull(jnp.asarray(g)), expected, strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


def test_splash_equals_blocked_attention():
  """Compares in bfloat16, with capped scores."""
  *heads, g, mask = make(200)
  low = [jnp.asarray(x, jnp.bfloat16) for x in heads]
  g, mask = jnp.asarray(g, jnp.bfloat16), jnp.asarray(mask)
  (actual, pull), (expected, expected_pull) = (
    jax.vjp(lambda *x, a=attends: a(*x), *low)
    for attends in (
      lambda *x: splash.attend(*x, mask, 0.7, interpret=True),
      lambda *x: attention_kernels.attend(*x, mask, 0.7),
    )
  )
  assert actual.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    actual.astype(np.float32), expected.astype(np.float32), atol=0.03
  )
  for x, y in zip(pull(g), expected_pull(g), strict=True):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      x.astype(np.float32), y.astype(np.float32), atol=0.1
    )


def test_blocks_divide_the_row():
  sizes = [splash.block_size(n) for n in (1, 128, 129, 640, 768, 1024, 2048)]
  assert sizes == [128, 128, 256, 128, 384, 512, 512]
  assert splash.num_scores(128) == 128 * 128
  assert splash.num_scores(2000) == 512 * 512 * (1 + 2 + 3 + 4)


@pytest.mark.parametrize(
  "platform, length, kernels",
  [("tpu", 128, 1), ("tpu", 127, 0), ("cuda", 128, 0), ("cpu", 128, 0)],
)
def test_tpus_have_it(platform, length, kernels):
  mesh = mesh_lib.abstract_mesh(configs.Mesh(), 4, platform)
  x = jnp.zeros((4, 2, length, 16))
  mask = jnp.ones((4, length, length), bool)
  text = str(
    jax.make_jaxpr(mesh_lib.with_mesh(mesh, attention_kernels.attend))(
      x, x, x, mask
    )
  )
  assert text.count("pallas_call[") == kernels
  assert text.count("shard_map[") == kernels


def test_each_device_attends_to_its_rows_and_heads():
  done = subprocess.run(
    [sys.executable, "-m", "tests.models.on_four"],
    capture_output=True,
    text=True,
    env=os.environ | pretended(4, os.environ["XLA_FLAGS"]),
  )
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < 1e-5
