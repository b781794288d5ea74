"""Causal attention of whole sequences, by the platform's fastest kernel.

TPUs use JAX's splash attention, GPUs cuDNN where it has a kernel, and all
others blocks of queries. All compute `models.attention.attend_dense`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from instructgpt_jax import configs, precision, sharding
from instructgpt_jax.models.kernels import blocked, cudnn, splash
from instructgpt_jax.types import Array, AttentionSpan


def attend(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  cap: float | None = None,
  span: AttentionSpan | None = None,
) -> Array:
  """Computes causal scaled dot-product attention of whole sequences.

  Args:
    query: [B, H, T, A].
    key: [B, H, T, A].
    value: [B, H, T, A].
    mask: [B, T, T] bool, True where a query may attend to a key: to no later
      key, and to at least one.
    cap: soft cap of the scores; None is none.
    span: the mask is False outside it, except for queries whose output is not
      used.

  Returns:
    [B, H, T, A] in the query's type.
  """
  if sharding.platform() == "tpu" and query.shape[2] >= splash.MIN_LENGTH:
    with precision.context(query.dtype):
      return splash.attend(query, key, value, mask, cap)
  output: Any = _attend(query, key, value, mask, cap, span)
  return output


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, mask, cap, span):
  return _forward(query, key, value, mask, cap, span)[0]


def _forward(query, key, value, mask, cap, span):
  attend = _for_platform(
    lambda *x: blocked.forward(*x, cap, span), cudnn.forward, query, cap
  )
  output, logs = attend(query, key, value, mask)
  return output, (query, key, value, mask, output, logs)


def _backward(cap, span, saved, cotangent):
  gradient = _for_platform(
    lambda *x: blocked.backward(*x, cap, span), cudnn.backward, saved[0], cap
  )
  return *gradient(*saved, cotangent), None


_attend.defvjp(_forward, _backward)


def _for_platform(
  blocks: Callable[..., Any],
  library: Callable[..., Any],
  query: Array,
  cap: float | None,
) -> Callable[..., Any]:
  """Returns `library` on GPUs where it has a kernel, else `blocks`."""
  *_, length, head_dim = query.shape
  if not cudnn.has_kernel(query.dtype, length, head_dim, cap):
    return blocks
  return functools.partial(
    jax.lax.platform_dependent, cuda=library, default=blocks
  )


def num_scores(
  platform: str,
  model: configs.Model,
  length: int,
  span: AttentionSpan | None = None,
) -> int:
  """Returns the number of (query, key) pairs whose score `attend` computes.

  It is the number for one sequence of `length` tokens; all heads count as one.
  """
  if platform in cudnn.PLATFORMS and cudnn.has_kernel(
    model.dtype, length, model.head_size, model.attn_logit_softcap
  ):
    return length * length  # cuDNN skips no masked scores
  if platform == "tpu" and length >= splash.MIN_LENGTH:
    return splash.num_scores(length)
  return sum(blocked.block_pairs(length, span))
