"""Attention on TPUs, by JAX's splash kernel: scores stay in on-chip memory.

Blocks of the mask that are all False are skipped: those after the queries, of
other segments, or outside a window.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.types import Array

_LANES = 128  # block sizes are multiples of this
_MAX_BLOCK = 512  # queries and keys of a block
_CHECKPOINT_NAME = "splash"  # of what the backward pass gets beside the inputs
MIN_LENGTH = _LANES  # tokens of a sequence from which on the kernel is used
QUERIES = 3  # index of the queries among its programs' arguments
# Matmuls of a block of queries and keys, by the start of the program's name.
_MATMULS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def padded_length(length: int) -> int:
  """Rounds a sequence's length up to what the kernel takes."""
  return -(-length // _LANES) * _LANES


def block_size(length: int) -> int:
  """Returns the queries and keys of a block: a divisor of the padded length."""
  padded = padded_length(length)
  sizes = range(min(_MAX_BLOCK, padded), 0, -_LANES)
  return next(size for size in sizes if not padded % size)


def num_scores(length: int) -> int:
  """Returns the (query, key) scores computed for a causal sequence."""
  size = block_size(length)
  count = padded_length(length) // size
  return size * size * count * (count + 1) // 2


def flops(program: str, heads: int, length: int, width: int) -> float:
  """Returns the FLOPs of one of the kernel's programs; 0 for other programs.

  Args:
    program: its name.
    heads: H.
    length: T, padded, of a causal sequence.
    width: A, head size.
  """
  for name, count in _MATMULS.items():
    if program.startswith(name):
      return 2.0 * count * heads * width * num_scores(length)
  return 0.0


def attend(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  cap: float | None = None,
  *,
  interpret: bool = False,
) -> Array:
  """Computes `kernels.attention.attend`; a span is not needed.

  Args:
    query: [B, H, T, A].
    key: [B, H, T, A].
    value: [B, H, T, A].
    mask: [B, T, T] bool; it need not be causal.
    cap: soft cap of the scores; None is none.
    interpret: runs the kernel without a TPU, slowly.

  Returns:
    [B, H, T, A] in the query's type.
  """
  # Imported here: it takes as long as importing JAX, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention

  length = query.shape[2]
  padding = padded_length(length) - length
  size = block_size(length)
  kernel = functools.partial(
    splash_attention.make_splash_mha,
    block_sizes=splash_attention.BlockSizes(
      *(size,) * 8  # of queries, keys and keys at once, and for the gradients
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cap or None,
    residual_checkpoint_name=_CHECKPOINT_NAME,
    interpret=interpret,
  )

  # The backward pass recomputes the blocks of the mask.
  @functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_only_these_names(_CHECKPOINT_NAME),
  )
  def attend_sequence(arrays: tuple[Array, ...]) -> Array:
    query, key, value, mask = arrays
    splash_kernel = kernel(mask[None])
    # In JAX 0.10.2 this is a traced constant, which a Python `if` then reads.
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
      info = getattr(splash_kernel, name)._replace(is_dynamic_mask=True)
      setattr(splash_kernel, name, info)
    return splash_kernel(query, key, value)

  def attend_shard(
    query: Array, key: Array, value: Array, mask: Array
  ) -> Array:
    if padding:
      query, key, value = (
        jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
        for x in (query, key, value)
      )
      mask = jnp.pad(mask, ((0, 0), (0, padding), (0, padding)))
      # Padding queries attend to position 0, so no softmax is empty.
      mask = mask.at[:, length:, 0].set(True)
    output = jax.lax.map(attend_sequence, (query, key, value, mask))
    return output[:, :, :length]

  scale = query.shape[-1] ** -0.5
  heads = ("batch", "heads", None, None)
  return sharding.map_shards(
    attend_shard,
    (query * scale, key, value, mask),
    (heads, heads, heads, ("batch", None, None)),
  )
