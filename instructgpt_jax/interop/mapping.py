"""Maps Hugging Face tensors to slices of the native arrays.

Axes are letters: d is d_model, v the vocabulary, t positions, h heads, g key
and value heads, k the head dimension, f d_ff, p the projections that share an
array (query, key, value, or gate, up), o the score. An axis of a Hugging Face
tensor is a product of native axes: "hk d" is [num_heads · head_dim, d_model].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from instructgpt_jax.configs import Model
from instructgpt_jax.interop import tensors
from instructgpt_jax.interop.families import Family

BLOCK = "block"  # path component that represents every layer's block


class Weight(NamedTuple):
  """A Hugging Face tensor and the slice of a native array that it fills.

  Attributes:
    hf_name: name of the tensor; {} is the layer number.
    native_path: path of the native array.
    native_axes: letters of the native array's axes.
    hf_axes: letters of the tensor's axes, separated by spaces.
    projection: index on the native axis p; None if the tensor fills all of it.
  """

  hf_name: str
  native_path: str
  native_axes: str
  hf_axes: str
  projection: int | None = None

  @property
  def hf_letters(self) -> str:
    """Returns the letters of the tensor's axes without separators."""
    return self.hf_axes.replace(" ", "")

  def hf_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the tensor's shape."""
    return tuple(
      math.prod(sizes[letter] for letter in axis)
      for axis in self.hf_axes.split()
    )


def axis_sizes(c: Model, vocabulary: int) -> dict[str, int]:
  """Returns each letter's size; a Hugging Face axis p is always QKV."""
  return {
    "d": c.d_model,
    "v": vocabulary,
    "t": c.max_seq_len + c.position_offset,
    "h": c.num_heads,
    "g": c.kv_heads,
    "k": c.head_size,
    "f": c.mlp_dim,
    "p": 3,
    "o": 1,
  }


def list_weights(family: Family, c: Model, *, scalar: bool) -> list[Weight]:
  """Lists all tensors of a model, in the order in which they are written."""
  names = family.names
  grouped = c.kv_heads != c.num_heads
  weights: list[Weight] = []

  def locate(native_layer: str, name: str) -> tuple[str, str]:
    """Returns the native layer's path and the Hugging Face layer's name."""
    inside = BLOCK + "/" if "{}" in names[name] else ""
    return f"transformer/{inside}{native_layer}", family.prefix + names[name]

  def dense(
    name, native_layer, inputs, outputs, bias, projection=None, hf_outputs=""
  ):
    path, hf_layer = locate(native_layer, name)
    weights.extend(
      _dense(
        hf_layer,
        path,
        inputs,
        outputs,
        bias,
        projection,
        hf_outputs,
        transposed=family.transposed_kernels,
      )
    )

  def norm(name, letter="d"):
    path, hf_layer = locate(name, name)
    weights.append(
      Weight(f"{hf_layer}.weight", f"{path}/scale", letter, letter)
    )
    if c.norm == "layer":
      weights.append(Weight(f"{hf_layer}.bias", f"{path}/bias", letter, letter))

  for name, letter in (("embedding", "v"), ("position_embedding", "t")):
    if name in names:
      path, hf_layer = locate(name, name)
      weights.append(
        Weight(
          f"{hf_layer}.weight", f"{path}/embedding", f"{letter}d", f"{letter} d"
        )
      )
  norm("norm_attention")
  if "qkv" in names:
    dense("qkv", "qkv", "d", "phk", c.qkv_bias, hf_outputs=family.qkv_order)
  elif grouped:
    dense("query", "query", "d", "hk", c.qkv_bias)
    for projection, name in enumerate(("key", "value")):
      dense(name, "key_value", "d", "gk", c.qkv_bias, projection)
  else:
    for projection, name in enumerate(("query", "key", "value")):
      dense(name, "qkv", "d", "hk", c.qkv_bias, projection)
  if c.qk_norm:
    norm("norm_query", "k")
    norm("norm_key", "k")
  dense("project", "project", "hk", "d", c.out_bias)
  for name in ("norm_attended", "norm_mlp", "norm_mixed"):
    if name in names:
      norm(name)
  if c.gated_mlp:
    dense("gate", "up", "d", "f", c.mlp_bias, 0)
  dense("up", "up", "d", "f", c.mlp_bias, 1 if c.gated_mlp else None)
  dense("down", "down", "f", "d", c.mlp_bias)
  norm("final_norm")
  if scalar:
    weights += _dense("score", "head", "d", "o", False)
  elif not c.tie_embeddings:
    weights += _dense(
      family.unembedding, "unembedding", "d", "v", c.unembedding_bias
    )
  return weights


def _dense(
  hf_layer: str,
  native_layer: str,
  inputs: str,
  outputs: str,
  bias: bool,
  projection: int | None = None,
  hf_outputs: str = "",
  *,
  transposed: bool = False,
) -> list[Weight]:
  """Returns the kernel and the bias of a dense layer.

  Args:
    hf_layer: name of the Hugging Face layer.
    native_layer: path of the native layer.
    inputs: letters of the input axes.
    outputs: letters of the output axes, in native order.
    bias: whether the layer has a bias.
    projection: see `Weight`.
    hf_outputs: letters of the output axes in Hugging Face's order, if another.
    transposed: whether the Hugging Face kernel is [inputs, outputs].
  """
  hf_outputs = hf_outputs or outputs
  kernel_axes = [inputs, hf_outputs] if transposed else [hf_outputs, inputs]
  native_outputs = outputs if projection is None else "p" + outputs
  weights = [
    Weight(
      f"{hf_layer}.weight",
      f"{native_layer}/kernel",
      inputs + native_outputs,
      " ".join(kernel_axes),
      projection,
    )
  ]
  if bias:
    weights.append(
      Weight(
        f"{hf_layer}.bias",
        f"{native_layer}/bias",
        native_outputs,
        hf_outputs,
        projection,
      )
    )
  return weights


def read_native_region(
  pieces: Sequence[tuple[Weight, tensors.ReadableTensor]],
  sizes: Mapping[str, int],
  region: Sequence[slice],
) -> np.ndarray:
  """Reads a region of a native array (of one layer) from the tensors.

  Args:
    pieces: the tensors that the array consists of.
    sizes: see `axis_sizes`; values beyond them (padding) are 0.
    region: a slice of each native axis, with explicit bounds.
  """
  values = np.zeros([s.stop - s.start for s in region], np.float32)
  for weight, tensor in pieces:
    bounds = dict(zip(weight.native_axes, region, strict=True))
    at: list[slice | int] = []
    for letter, s in bounds.items():
      if letter == "p" and weight.projection is not None:
        at.append(weight.projection - s.start)
      else:
        bounds[letter] = slice(s.start, min(s.stop, sizes[letter]))
        at.append(slice(0, max(0, bounds[letter].stop - s.start)))
    if weight.projection is not None:
      packed = bounds.pop("p")
      if not packed.start <= weight.projection < packed.stop:
        continue
    if any(s.stop <= s.start for s in bounds.values()):
      continue
    letters = "".join(bounds)
    tensor.read_region(
      [sizes[letter] for letter in weight.hf_letters],
      [bounds[letter] for letter in weight.hf_letters],
      values[tuple(at)].transpose(
        [letters.index(letter) for letter in weight.hf_letters]
      ),
    )
  return values


def extract_hf_tensor(
  weight: Weight, array: np.ndarray, sizes: Mapping[str, int]
) -> np.ndarray:
  """Extracts a Hugging Face tensor from a native array (of one layer)."""
  axes = weight.native_axes
  if weight.projection is not None:
    array = array.take(weight.projection, axis=axes.index("p"))
    axes = axes.replace("p", "")
  # Padded rows and heads are not exported.
  array = array[tuple(slice(sizes[x] if x in "vhg" else None) for x in axes)]
  array = array.transpose([axes.index(letter) for letter in weight.hf_letters])
  return array.reshape(weight.hf_shape(sizes))
