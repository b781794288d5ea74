"""The mask and RoPE angles of each type of layer: full or windowed attention.

Some models, such as Gemma and Mistral, limit some or all layers to a sliding
window of the newest tokens. The layers of a type share their inputs, which are
therefore computed once, before the first block.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax import configs
from instructgpt_jax.models.rope import RopeCosSin, rope_cos_sin
from instructgpt_jax.types import Array, AttentionSpan, pytree, static_field


@pytree
class LayerInputs:
  """Inputs that all layers of a type share.

  T are the queries and S the keys: the same T positions for whole sequences, or
  one token and the S slots of the cache while decoding.
  """

  mask: Array  # [B, T, S] bool, True where a query may attend to a key
  rope: RopeCosSin | None  # None with learned positions
  span: AttentionSpan | None = static_field(None)  # the mask is False outside


# One entry if all layers have one type; else full layers' and windowed layers'.
InputsByType = tuple[LayerInputs, ...]


def make_layer_inputs(
  c: configs.Model,
  mask: Array,
  distance: Callable[[], Array],
  positions: Array,
  span: AttentionSpan | None = None,
) -> InputsByType:
  """Makes the inputs of each layer type.

  Args:
    c: the model.
    mask: [B, T, S] bool, the mask of layers without a window.
    distance: computes the number of positions from a key to a query, int32 that
      broadcasts to [B, T, S]. It is called only if layers have a window.
    positions: [B, T] int32 of the queries.
    span: the mask is False outside it.
  """

  def inputs_of(windowed: bool) -> LayerInputs:
    window = c.sliding_window if windowed else None
    layer_mask = mask & (distance() < window) if window else mask
    rope = None
    if c.pos_emb == "rope":
      rope = rope_cos_sin(c, positions, windowed)
    return LayerInputs(mask=layer_mask, rope=rope, span=span)

  return tuple(map(inputs_of, sorted(set(_windowed_layers(c)))))


def layer_types(c: configs.Model) -> list[int]:
  """Returns the type of each layer, as an index into `InputsByType`."""
  windowed = _windowed_layers(c)
  has_both_types = len(set(windowed)) > 1
  return [int(has_both_types and w) for w in windowed]


def select_layer_inputs(
  inputs: InputsByType, layer_type: int | Array
) -> LayerInputs:
  """Returns the inputs of a layer type, which is traced in a scan over layers.

  Args:
    inputs: mask and RoPE angles of each layer type, of `make_layer_inputs`.
    layer_type: an entry of `layer_types`.
  """
  if len(inputs) == 1:
    return inputs[0]
  if isinstance(layer_type, int):
    return inputs[layer_type]
  full, windowed = inputs
  return jax.tree.map(
    lambda of_full, of_windowed: jnp.where(layer_type, of_windowed, of_full),
    full,
    windowed,
  )


def _windowed_layers(c: configs.Model) -> list[bool]:
  """Returns whether each layer attends within a window."""
  return [c.has_sliding_window(layer) for layer in range(c.num_layers)]
