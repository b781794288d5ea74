"""Low-rank adapters: kernel + (α / rank) · A · B, of which A and B are trained.

arXiv:2106.09685. A network with adapters keeps them beside its kernels; `split`
takes what is trained out of its parameters, and `union` puts it back.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import configs
from instructgpt_jax.types import Array, PyTree

DOWN, UP = "lora_a", "lora_b"  # [inputs, R] and [R, outputs]
_HEAD = "head"  # of a scalar model; trained with its adapters


def split(c: configs.Model, params: PyTree) -> tuple[PyTree, PyTree]:
  """(frozen, trained) parameters; without adapters all are trained."""
  if not c.lora_rank:
    return {}, params
  return _split(params)


def _split(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  frozen: dict[str, Any] = {}
  trained: dict[str, Any] = {}
  for name, x in tree.items():
    if name in (DOWN, UP, _HEAD):
      trained[name] = x
    elif not isinstance(x, dict):
      frozen[name] = x
    else:
      for part, found in zip((frozen, trained), _split(x), strict=True):
        if found:
          part[name] = found
  return frozen, trained


def merge_trees(frozen: PyTree, trained: PyTree) -> PyTree:
  """The parameters that `split` took apart; None is an empty part."""
  found = dict(frozen or {})
  for name, x in (trained or {}).items():
    found[name] = merge_trees(found.get(name), x) if isinstance(x, dict) else x
  return found


def tree_difference(tree: PyTree, other: PyTree) -> PyTree:
  """The leaves of a tree that another one does not have."""
  found = {}
  for name, x in tree.items():
    if not isinstance(x, dict):
      if name not in other:
        found[name] = x
    elif rest := tree_difference(x, other.get(name, {})):
      found[name] = rest
  return found


def tree_select(tree: PyTree, other: PyTree) -> PyTree:
  """What stands in another tree where this one has its leaves."""
  return {
    name: tree_select(x, other[name]) if isinstance(x, dict) else other[name]
    for name, x in tree.items()
  }


def lora_summary(c: configs.Model) -> str:
  """The adapters of a network."""
  return f"rank {c.lora_rank}, alpha {c.lora_alpha:g}, {c.lora_layers} layers"


def apply_lora(
  kernel: Array, down: Array, up: Array, scale: float, stacked: bool
) -> Array:
  """kernel + scale · down · up; of each layer if they are stacked."""

  def product(down: Array, up: Array) -> Array:
    return jnp.tensordot(down, up, 1, precision=jax.lax.Precision.HIGHEST)

  return kernel + scale * (jax.vmap(product) if stacked else product)(down, up)


def merge_lora(c: configs.Model, params: PyTree) -> PyTree:
  """The parameters of the same network without adapters."""
  if not c.lora_rank:
    return params

  def visit(tree: dict[str, Any], stacked: bool) -> dict[str, Any]:
    found = {
      name: visit(x, stacked or name == "blocks") if isinstance(x, dict) else x
      for name, x in tree.items()
    }
    if DOWN in found:
      down, up = found.pop(DOWN), found.pop(UP)
      scale = c.lora_alpha / c.lora_rank
      found["kernel"] = apply_lora(found["kernel"], down, up, scale, stacked)
    return found

  return visit(params, False)
