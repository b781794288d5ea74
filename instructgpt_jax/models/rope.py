"""Rotary positions (arXiv:2104.09864), whole or in part, stretched or not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.types import Array, pytree


@pytree
class RopeCosSin:
  """Cosine and sine of each position's angles."""

  cos: Array  # [B, 1, T, R / 2] float32
  sin: Array  # [B, 1, T, R / 2] float32


def inverse_frequencies(c: configs.Model, windowed: bool) -> np.ndarray:
  """[R / 2] float32 radians a position.

  Layers with a window may have a base of their own, and are then not stretched.
  """
  size = c.rope_dim or c.head_size
  local = windowed and c.rope_local_theta > 0
  base = c.rope_local_theta if local else c.rope_theta
  found = base ** -(np.arange(0, size, 2, dtype=np.float32) / size)
  if local or c.rope_scaling == "none":
    return found.astype(np.float32)
  slow = found / c.rope_factor
  if c.rope_scaling == "linear":
    return slow.astype(np.float32)
  turns = c.rope_original_max_seq_len * found / (2 * np.pi)
  kept = (turns - c.rope_low_freq_factor) / (
    c.rope_high_freq_factor - c.rope_low_freq_factor
  )
  kept = np.clip(kept, 0, 1)
  return ((1 - kept) * slow + kept * found).astype(np.float32)


def rope_cos_sin(
  c: configs.Model, positions: Array, windowed: bool
) -> RopeCosSin:
  """The turns of [B, T] positions."""
  angles = positions[:, None, :, None] * inverse_frequencies(c, windowed)
  return RopeCosSin(cos=jnp.cos(angles), sin=jnp.sin(angles))


def apply_rope(x: Array, by: RopeCosSin, pairs: bool) -> Array:
  """Turns the first R numbers of each head, in float32.

  Args:
    x: [B, H, T, D / H].
    by: of the same positions.
    pairs: neighbours turn together (GPT-J), not the halves (GPT-NeoX).

  Returns:
    [B, H, T, D / H] in x's type.
  """
  half = by.cos.shape[-1]
  turned = x[..., : 2 * half].astype(jnp.float32)
  if pairs:
    a, b = turned[..., ::2], turned[..., 1::2]
  else:
    a, b = turned[..., :half], turned[..., half:]
  parts = (a * by.cos - b * by.sin, b * by.cos + a * by.sin)
  if pairs:
    turned = jnp.stack(parts, axis=-1).reshape(turned.shape)
  else:
    turned = jnp.concatenate(parts, axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
