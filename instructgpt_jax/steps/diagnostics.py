"""What is measured of gradients and parameters beside the losses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax.types import Array, PyTree


def dot(a: PyTree, b: PyTree) -> Array:
  """Computes the inner product of two trees of one structure."""
  products = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
  return jax.tree.reduce(jnp.add, products)


def angle(a: PyTree, b: PyTree) -> Array:
  """Computes the angle between two gradients in degrees; 90 if one is zero."""
  norms = optax.tree.norm(a) * optax.tree.norm(b)
  cosine = jnp.where(norms > 0, dot(a, b) / jnp.where(norms > 0, norms, 1), 0)
  return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))


def _mix_bits(x: Array) -> Array:
  """Applies Murmur3's finaliser, a bijection of uint32 that mixes all bits."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def params_checksum(tree: PyTree) -> Array:
  """Computes a hash of every float32 bit of a tree and of its position.

  A change of one value always changes it. Sums of uint32 are exact, so the
  layout over devices does not matter.

  Returns:
    [] uint32.
  """
  return functools.reduce(
    add_to_checksum, jax.tree.leaves(tree), jnp.zeros((), jnp.uint32)
  )


def add_to_checksum(checksum: Array, x: Array) -> Array:
  """Computes the checksum of the leaves so far and one more."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    position = position * jnp.uint32(size) + index
  of_leaf = jnp.sum(_mix_bits(_mix_bits(position) ^ bits), dtype=jnp.uint32)
  return checksum * jnp.uint32(31) + of_leaf
