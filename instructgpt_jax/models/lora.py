"""LoRA: kernel + (α / rank) · A · B, where only A and B are trained.

arXiv:2106.09685. A network with adapters has them beside its kernels. `split`
separates its parameters into frozen and trained ones; `merge_trees` joins them.
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
  """Returns (frozen, trained) parameters; without adapters all are trained."""
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
      for part, subtree in zip((frozen, trained), _split(x), strict=True):
        if subtree:
          part[name] = subtree
  return frozen, trained


def merge_trees(frozen: PyTree, trained: PyTree) -> PyTree:
  """Joins the two trees of `split`; None is an empty tree."""
  merged = dict(frozen or {})
  for name, x in (trained or {}).items():
    merged[name] = (
      merge_trees(merged.get(name), x) if isinstance(x, dict) else x
    )
  return merged


def tree_difference(tree: PyTree, other: PyTree) -> PyTree:
  """Returns the leaves of a tree that another tree does not have."""
  difference = {}
  for name, x in tree.items():
    if not isinstance(x, dict):
      if name not in other:
        difference[name] = x
    elif rest := tree_difference(x, other.get(name, {})):
      difference[name] = rest
  return difference


def tree_select(tree: PyTree, other: PyTree) -> PyTree:
  """Returns the part of `other` that has the structure of `tree`."""
  return {
    name: tree_select(x, other[name]) if isinstance(x, dict) else other[name]
    for name, x in tree.items()
  }


def lora_summary(c: configs.Model) -> str:
  """Describes the adapters of a network."""
  return f"rank {c.lora_rank}, alpha {c.lora_alpha:g}, {c.lora_layers} layers"


def apply_lora(
  kernel: Array, down: Array, up: Array, scale: float, stacked: bool
) -> Array:
  """Computes kernel + scale · down · up, for each layer if they are stacked."""

  def product(down: Array, up: Array) -> Array:
    return jnp.tensordot(down, up, 1, precision=jax.lax.Precision.HIGHEST)

  return kernel + scale * (jax.vmap(product) if stacked else product)(down, up)


def merge_lora(c: configs.Model, params: PyTree) -> PyTree:
  """Returns the parameters of the same network without adapters."""
  rank = c.lora_rank
  if not rank:
    return params

  def visit(tree: dict[str, Any], stacked: bool) -> dict[str, Any]:
    merged = {
      name: visit(x, stacked or name == "blocks") if isinstance(x, dict) else x
      for name, x in tree.items()
    }
    if DOWN in merged:
      down, up = merged.pop(DOWN), merged.pop(UP)
      scale = c.lora_alpha / rank
      merged["kernel"] = apply_lora(merged["kernel"], down, up, scale, stacked)
    return merged

  return visit(params, False)
