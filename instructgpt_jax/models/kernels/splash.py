"""Attention on TPUs, by JAX's kernel: scores never leave the chip's core.

Blocks of a row's mask in which no query looks anywhere are not computed, be
they ahead of the queries, of other segments or beyond a window.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.types import Array

_LANES = 128  # of which blocks are multiples
_LARGEST = 512  # queries and keys of a block
_KEPT = "splash"  # name of what the gradient is given beside the input
LEAST = _LANES  # tokens of a row that is worth it
QUERIES = 3  # of its programs' arguments: how the mask's blocks lie is ahead
# Products of queries and keys of a block, by how the program's name begins.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def padded(length: int) -> int:
  """Tokens of a row that the kernel is given."""
  return -(-length // _LANES) * _LANES


def block_size(length: int) -> int:
  """Queries of a block, and keys: a divisor of the padded row."""
  whole = padded(length)
  return next(
    size for size in range(min(_LARGEST, whole), 0, -_LANES) if not whole % size
  )


def pairs(length: int) -> int:
  """Pairs of a query and a key whose score is computed, of a causal row."""
  size = block_size(length)
  count = padded(length) // size
  return size * size * count * (count + 1) // 2


def flops(program: str, heads: int, length: int, width: int) -> float:
  """Operations of one of the kernel's programs on a causal row; 0 of others.

  Args:
    program: its name.
    heads: H.
    length: T, padded.
    width: D / H.
  """
  for name, count in _PRODUCTS.items():
    if program.startswith(name):
      return 2.0 * count * heads * width * pairs(length)
  return 0.0


def attend(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  cap: float = 0.0,
  *,
  interpret: bool = False,
) -> Array:
  """What `attention.attend` gives, with its arguments; no reach is needed.

  Args:
    query: [B, H, T, D / H], as key and value.
    key: the keys.
    value: the values.
    mask: [B, T, T] bool; it need not be causal.
    cap: of the scores.
    interpret: runs the kernel without a TPU, slowly.

  Returns:
    [B, H, T, D / H] in the query's type.
  """
  # Its import takes as long as JAX's own, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention

  length = query.shape[2]
  room = padded(length) - length
  size = block_size(length)
  kernel = functools.partial(
    splash_attention.make_splash_mha,
    block_sizes=splash_attention.BlockSizes(
      *(size,) * 8  # of queries, keys and keys at once, and for the gradients
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cap or None,
    residual_checkpoint_name=_KEPT,
    interpret=interpret,
  )

  # Blocks of the mask are not kept for the gradient, but cut out again.
  @functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_only_these_names(_KEPT),
  )
  def row(some: tuple[Array, ...]) -> Array:
    query, key, value, mask = some
    made = kernel(mask[None])
    # JAX 0.10.2 has traced a constant there, of which a Python `if` is made.
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
      info = getattr(made, name)._replace(is_dynamic_mask=True)
      setattr(made, name, info)
    return made(query, key, value)

  def part(query: Array, key: Array, value: Array, mask: Array) -> Array:
    if room:
      query, key, value = (
        jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0)))
        for x in (query, key, value)
      )
      mask = jnp.pad(mask, ((0, 0), (0, room), (0, room)))
      # What fills up looks somewhere: no sum is 0.
      mask = mask.at[:, length:, 0].set(True)
    found = jax.lax.map(row, (query, key, value, mask))
    return found[:, :, :length]

  scale = query.shape[-1] ** -0.5
  heads = ("batch", "heads", None, None)
  return sharding.map_shards(
    part,
    (query * scale, key, value, mask),
    (heads, heads, heads, ("batch", None, None)),
  )
