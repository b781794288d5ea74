"""The kernel on four devices: `python -m tests.models.on_four`.

Prints the largest gap to attention in blocks on one device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.kernels import attention as attention_kernels
from instructgpt_jax.models.kernels import splash
from tests.models.test_attention import make


def main() -> None:
  *heads, g, mask = map(jnp.asarray, make(150))
  mesh = mesh_lib.make_mesh(configs.Mesh(data=2, tensor=2))
  attend = functools.partial(splash.attend, interpret=True)

  @jax.jit
  def both(query, key, value, mask):
    ours, pull = jax.vjp(
      lambda *x: mesh_lib.with_mesh(mesh, attend)(*x, mask), query, key, value
    )
    return ours, *pull(g)

  expected, pull = jax.vjp(
    lambda *x: attention_kernels.attend(*x, mask), *heads
  )
  pairs = zip(both(*heads, mask), (expected, *pull(g)), strict=True)
  print(max(float(np.abs(a - b).max()) for a, b in pairs))


if __name__ == "__main__":
  main()
