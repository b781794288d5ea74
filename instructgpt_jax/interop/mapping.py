"""Which part of which of our arrays a tensor of theirs is.

Axes are letters: d width, v vocabulary, t positions, h heads, g heads of keys
and values, k a head's width, f the MLP's width, p projections that lie in one
array, o the score. A tensor's axes are products of ours: "hk d" is
[heads · width of a head, width].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from instructgpt_jax.configs import Model
from instructgpt_jax.interop import tensors
from instructgpt_jax.interop.families import Family

BLOCK = "block"  # stands for the blocks of all layers in a leaf's path


class Weight(NamedTuple):
  """A tensor, and where it stands."""

  theirs: str  # name; {} is the layer
  leaf: str  # path of our array
  ours: str  # letters of our array's axes
  pattern: str  # letters of the tensor's axes
  part: int | None = None  # place on our axis p; None where it has all of it

  @property
  def view(self) -> str:
    """Letters of the tensor, axis by axis."""
    return self.pattern.replace(" ", "")

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The tensor's shape."""
    return tuple(
      math.prod(sizes[letter] for letter in axis)
      for axis in self.pattern.split()
    )


def sizes(c: Model, vocabulary: int) -> dict[str, int]:
  """What each letter stands for; of a tensor's p there is only QKV."""
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


def weights(family: Family, c: Model, *, scalar: bool) -> list[Weight]:
  """All tensors of a model, in their order."""
  names = family.names
  grouped = c.kv_heads != c.num_heads
  found: list[Weight] = []

  def leaf(ours: str, name: str) -> tuple[str, str]:
    """Path of our layer, and the name of theirs."""
    inside = BLOCK + "/" if "{}" in names[name] else ""
    return f"transformer/{inside}{ours}", family.prefix + names[name]

  def dense(name, ours, inputs, outputs, bias, part=None, fused=""):
    path, theirs = leaf(ours, name)
    found.extend(
      _dense(theirs, path, inputs, outputs, bias, part, fused, conv=family.conv)
    )

  def norm(name, letter="d"):
    path, theirs = leaf(name, name)
    found.append(Weight(f"{theirs}.weight", f"{path}/scale", letter, letter))
    if c.norm == "layer":
      found.append(Weight(f"{theirs}.bias", f"{path}/bias", letter, letter))

  for name, letter in (("embedding", "v"), ("position_embedding", "t")):
    if name in names:
      path, theirs = leaf(name, name)
      found.append(
        Weight(
          f"{theirs}.weight", f"{path}/embedding", f"{letter}d", f"{letter} d"
        )
      )
  norm("norm_attention")
  if "qkv" in names:
    dense("qkv", "qkv", "d", "phk", c.qkv_bias, fused=family.fused)
  elif grouped:
    dense("query", "query", "d", "hk", c.qkv_bias)
    for part, name in enumerate(("key", "value")):
      dense(name, "key_value", "d", "gk", c.qkv_bias, part)
  else:
    for part, name in enumerate(("query", "key", "value")):
      dense(name, "qkv", "d", "hk", c.qkv_bias, part)
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
    found += _dense("score", "head", "d", "o", False)
  elif not c.tie_embeddings:
    found += _dense(
      family.unembedding, "unembedding", "d", "v", c.unembedding_bias
    )
  return found


def _dense(
  theirs: str,
  leaf: str,
  inputs: str,
  outputs: str,
  bias: bool,
  part: int | None = None,
  fused: str = "",
  *,
  conv: bool = False,
) -> list[Weight]:
  """Kernel and bias of a dense layer.

  Args:
    theirs: name of the layer.
    leaf: path of ours.
    inputs: letters.
    outputs: letters, in our order.
    bias: whether there is one.
    part: see `Weight`.
    fused: the outputs in their order.
    conv: their kernel has its inputs first.
  """
  packed = "" if part is None else "p"
  out = fused or outputs
  pattern = f"{inputs} {out}" if conv else f"{out} {inputs}"
  ours = packed + outputs
  found = [
    Weight(f"{theirs}.weight", f"{leaf}/kernel", inputs + ours, pattern, part)
  ]
  if bias:
    found.append(Weight(f"{theirs}.bias", f"{leaf}/bias", ours, out, part))
  return found


def fill(
  pieces: Sequence[tuple[Weight, tensors.Tensor]],
  extent: Mapping[str, int],
  region: Sequence[slice],
) -> np.ndarray:
  """A part of one of our arrays (of one layer), read from the tensors.

  Args:
    pieces: the tensors that the array is made of.
    extent: `sizes`; what goes beyond them is 0.
    region: a slice of each of our axes, with its bounds.
  """
  found = np.zeros([s.stop - s.start for s in region], np.float32)
  for weight, tensor in pieces:
    bounds = dict(zip(weight.ours, region, strict=True))
    at: list[slice | int] = []
    for letter, s in bounds.items():
      if letter == "p" and weight.part is not None:
        at.append(weight.part - s.start)
      else:
        bounds[letter] = slice(s.start, min(s.stop, extent[letter]))
        at.append(slice(0, max(0, bounds[letter].stop - s.start)))
    if weight.part is not None:
      packed = bounds.pop("p")
      if not packed.start <= weight.part < packed.stop:
        continue
    if any(s.stop <= s.start for s in bounds.values()):
      continue
    letters = "".join(bounds)
    tensors.read(
      tensor,
      [extent[letter] for letter in weight.view],
      [bounds[letter] for letter in weight.view],
      found[tuple(at)].transpose(
        [letters.index(letter) for letter in weight.view]
      ),
    )
  return found


def take(
  weight: Weight, array: np.ndarray, extent: Mapping[str, int]
) -> np.ndarray:
  """A tensor of theirs, cut out of one of our arrays (of one layer)."""
  ours = weight.ours
  if weight.part is not None:
    array = array.take(weight.part, axis=ours.index("p"))
    ours = ours.replace("p", "")
  array = array[  # without what is filled up
    tuple(slice(extent[x] if x in "vhg" else None) for x in ours)
  ]
  array = array.transpose([ours.index(letter) for letter in weight.view])
  return array.reshape(weight.shape(extent))
