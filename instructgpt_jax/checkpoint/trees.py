"""Conversion between pytrees and flat dicts of path → array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def flatten_with_paths(tree: Any, *, abstract: bool = False) -> dict[str, Any]:
  """Returns path → leaf of a tree; typed random keys become their bits.

  Args:
    tree: its leaves are arrays of at most 32 bits, or abstract arrays.
    abstract: whether to return shapes, dtypes and shardings instead of arrays.

  Raises:
    TypeError: a leaf is not an array of at most 32 bits.
    ValueError: two leaves have the same path.
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = _name(path)
    if name in leaves:
      raise ValueError(f"two leaves have the path {name!r}")
    if not _is_key(leaf) and not _is_32_bit(leaf):
      raise TypeError(f"{name} is not a 32-bit array; put it in `extra`")
    if abstract:
      leaves[name] = abstract_leaf(leaf)
    elif _is_key(leaf):
      leaves[name] = jax.random.key_data(leaf)
    else:
      leaves[name] = leaf
  return leaves


def unflatten_like(leaves: Mapping[str, Any], like: Any) -> Any:
  """Returns a tree with the structure of `like` and these leaves."""

  def leaf_at(path, old):
    value = leaves[_name(path)]
    if _is_key(old):
      return jax.random.wrap_key_data(value, impl=_key_impl(old))
    return value

  return jax.tree_util.tree_map_with_path(leaf_at, like)


def unflatten_dict(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the leaves as nested dicts."""
  root: dict[str, Any] = {}
  for path, value in leaves.items():
    *parents, last = path.split("/")
    node = root
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return root


def abstract_leaf(leaf: Any) -> Any:
  """Returns shape, dtype and sharding of a leaf; of a typed key, its bits'."""
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(
      jax.config.jax_default_device or jax.devices()[0]
    )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _key_impl(key: Any) -> Any:
  """Returns the implementation of a typed key, which may be abstract."""
  impls = []
  jax.eval_shape(lambda k: impls.append(jax.random.key_impl(k)), key)
  return impls[0]


def _is_32_bit(leaf: Any) -> bool:
  """Returns whether a leaf is restored exactly: no Python or 64-bit number."""
  return hasattr(leaf, "dtype") and (
    leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)
  )
