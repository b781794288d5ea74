"""Rotary position embeddings (RoPE, arXiv:2104.09864)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.types import Array, pytree


@pytree
class RopeCosSin:
  """Cosine and sine of the angles at each position."""

  cos: Array  # [B, 1, T, R / 2] float32
  sin: Array  # [B, 1, T, R / 2] float32


def inverse_frequencies(c: configs.Model, windowed: bool) -> np.ndarray:
  """Returns [R / 2] float32 radians per position, after RoPE scaling.

  Layers with a sliding window may have their own theta, which is not scaled.
  """
  size = c.rope_dim or c.head_size
  local = c.rope_local_theta if windowed else None
  theta = local or c.rope_theta
  frequencies = theta ** -(np.arange(0, size, 2, dtype=np.float32) / size)
  if local or c.rope_scaling == "none":
    return frequencies.astype(np.float32)
  scaled = frequencies / c.rope_factor
  if c.rope_scaling == "linear":
    return scaled.astype(np.float32)
  rotations = c.rope_original_max_seq_len * frequencies / (2 * np.pi)
  unscaled_share = (rotations - c.rope_low_freq_factor) / (
    c.rope_high_freq_factor - c.rope_low_freq_factor
  )
  unscaled_share = np.clip(unscaled_share, 0, 1)
  return ((1 - unscaled_share) * scaled + unscaled_share * frequencies).astype(
    np.float32
  )


def rope_cos_sin(
  c: configs.Model, positions: Array, windowed: bool
) -> RopeCosSin:
  """Computes the cosine and sine of the angles at [B, T] positions."""
  angles = positions[:, None, :, None] * inverse_frequencies(c, windowed)
  return RopeCosSin(cos=jnp.cos(angles), sin=jnp.sin(angles))


def apply_rope(x: Array, angles: RopeCosSin, interleaved: bool) -> Array:
  """Rotates the first R dimensions of each head, in float32.

  Args:
    x: [B, H, T, A].
    angles: of the same positions.
    interleaved: pairs are neighbours (GPT-J), not the two halves (GPT-NeoX).

  Returns:
    [B, H, T, A] in x's type.
  """
  half = angles.cos.shape[-1]
  rotated = x[..., : 2 * half].astype(jnp.float32)
  if interleaved:
    a, b = rotated[..., ::2], rotated[..., 1::2]
  else:
    a, b = rotated[..., :half], rotated[..., half:]
  parts = (
    a * angles.cos - b * angles.sin,
    b * angles.cos + a * angles.sin,
  )
  if interleaved:
    rotated = jnp.stack(parts, axis=-1).reshape(rotated.shape)
  else:
    rotated = jnp.concatenate(parts, axis=-1)
  return jnp.concatenate([rotated.astype(x.dtype), x[..., 2 * half :]], axis=-1)
