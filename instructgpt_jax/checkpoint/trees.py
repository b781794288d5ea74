"""Any pytree as a flat table from each leaf's path to its array, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def flatten_with_paths(tree: Any, *, abstract: bool = False) -> dict[str, Any]:
  """Path → leaf of a tree; typed keys as the bits they hold.

  Args:
    tree: leaves are arrays of 32 bits or fewer, or stand for such arrays.
    abstract: gives shapes, dtypes and shardings in place of arrays.
  """
  found = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in found:
      raise ValueError(f"two leaves are both called {name!r}")
    if not _is_key(leaf) and not _is_32_bit(leaf):
      raise TypeError(f"{name} is no 32-bit array; put it in `extra`")
    if abstract:
      found[name] = abstract_leaf(leaf)
    elif _is_key(leaf):
      found[name] = jax.random.key_data(leaf)
    else:
      found[name] = leaf
  return found


def unflatten_like(found: Mapping[str, Any], like: Any) -> Any:
  """The tree shaped as `like` with the table's leaves."""

  def leaf(path, old):
    value = found[jax.tree_util.keystr(path, simple=True, separator="/")]
    if _is_key(old):
      return jax.random.wrap_key_data(value, impl=_impl(old))
    return value

  return jax.tree_util.tree_map_with_path(leaf, like)


def unflatten_dict(found: Mapping[str, Any]) -> dict[str, Any]:
  """The table as a tree of dicts."""
  root: dict[str, Any] = {}
  for name, value in found.items():
    *folders, last = name.split("/")
    node = root
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = value
  return root


def abstract_leaf(leaf: Any) -> Any:
  """Shape, dtype and sharding of a leaf; typed keys as the bits they hold."""
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(
      jax.config.jax_default_device or jax.devices()[0]
    )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _impl(key: Any) -> Any:
  """The generator of a typed key, which may be abstract."""
  found = []
  jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)
  return found[0]


def _is_32_bit(leaf: Any) -> bool:
  """False for what would come back rounded: Python and 64-bit numbers."""
  return hasattr(leaf, "dtype") and (
    leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)
  )
