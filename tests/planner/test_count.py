"""Tests that FLOPs of a jaxpr are those counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.kernels import attention as attention_kernels
from instructgpt_jax.planner import count
from instructgpt_jax.steps import accumulation

A, B = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 6), (6, 6)))
ONE = 2 * 4 * 6 * 6


def counted(function, *arguments, platform="cpu", trips=1):
  return count.count_flops(jax.jit(function), arguments, platform, trips).total


def test_a_matmul_and_its_gradient():
  assert counted(lambda a, b: a @ b, A, B) == ONE
  gradient = jax.value_and_grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
  assert counted(gradient, A, B) == 3 * ONE


def test_loops_multiply_by_their_trips():
  def scanned(a, b):
    return jax.lax.scan(lambda x, _: (x @ b, None), a, length=5)[0]

  def until(a, b):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ b, a)

  def at_most(a, b):
    used = (a.sum() > 0).astype(jnp.int32)
    return accumulation.bounded_fori_loop(used, 4, lambda _, x: x @ b, a)

  assert counted(scanned, A, B) == 5 * ONE
  assert counted(at_most, A, B, trips=3) == 4 * ONE
  assert counted(until, A, B, trips=3) == 3 * ONE
  assert counted(jax.checkpoint(scanned), A, B) == 5 * ONE


def test_only_the_branch_of_the_platform_counts():
  def either(a, b):
    return jax.lax.platform_dependent(
      a, b, tpu=lambda a, b: a @ b @ b, default=lambda a, b: a @ b
    )

  flops = [counted(either, A, B, platform=p) for p in ("cpu", "tpu", "cuda")]
  assert flops == [ONE, 2 * ONE, ONE]


def test_the_largest_branch_of_a_condition_counts():
  def branches(a, b):
    return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: a)

  assert counted(branches, A, B) == pytest.approx(ONE)


def test_attention_kernels_count_on_each_chip():
  """Forward pass, and gradients of queries and of keys and values."""
  length, heads, width = 1024, 2, 16
  x = jax.ShapeDtypeStruct((4, heads, length, width), jnp.float32)
  mask = jax.ShapeDtypeStruct((4, length, length), bool)
  mesh = mesh_lib.abstract_mesh(configs.Mesh(tensor=2, data=2), 4, "tpu")
  attend = mesh_lib.with_mesh(mesh, attention_kernels.attend)
  one = (
    4 * 2 * heads * width * 512 * 512 * 3
  )  # three of four blocks are computed
  assert counted(attend, x, x, x, mask, platform="tpu") == 2 * one
  gradient = jax.grad(lambda *a: attend(*a).sum(), argnums=(0, 1, 2))
  flops = counted(gradient, x, x, x, mask, platform="tpu")
  assert flops == pytest.approx(9 * one, rel=1e-3)
