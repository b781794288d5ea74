"""Translators of the config.json entries that are not plain fields.

RoPE parameters, sliding windows and parallel residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError


class FieldTranslator(NamedTuple):
  """Functions that translate entries of config.json from and to fields."""

  read: Callable[[Mapping[str, Any]], dict[str, Any]]  # config.json → fields
  write: Callable[[Model], dict[str, Any]]  # fields → config.json


def translate_rope(
  theta_key: str = "rope_theta", share_key: str = "", local_key: str = ""
) -> FieldTranslator:
  """Returns the translator of RoPE parameters.

  Args:
    theta_key: name of the base frequency in config.json.
    share_key: name of the share of each head that is rotated; "" if the family
      always rotates whole heads.
    local_key: name of the base frequency of sliding-window layers; "" if they
      use the same one.
  """

  def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _get_table(raw, "rope_parameters")
    scaling = _get_table(raw, "rope_scaling")
    inner = parameters.get("full_attention", parameters) or {}
    rope = {**scaling, **inner}
    table = "rope_parameters" if inner else "rope_scaling"
    for key in ("factor", "rope_type"):
      if key in scaling and scaling[key] != rope[key]:
        raise UserError(
          f"{key} is {scaling[key]!r}, but in rope_parameters {rope[key]!r}",
          field="rope_scaling",
          fix="remove the one that the model was not trained with",
          code="contradicting_config",
        )
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "linear", "llama3"):
      raise UserError(
        f"{rope_type!r} is not supported",
        field="rope_type",
        fix="use a model whose rope_type is default, linear or llama3",
        code="bad_config_value",
      )

    def number(key: str) -> int | float:
      return _get_positive_number(rope, key, table, rope_type)

    fields: dict[str, Any] = {
      "rope_theta": rope.get("rope_theta", raw.get(theta_key, 10_000.0)),
      "rope_scaling": "none" if rope_type == "default" else rope_type,
    }
    if rope_type != "default":
      fields["rope_factor"] = number("factor")
    if rope_type == "llama3":
      fields |= {
        "rope_low_freq_factor": number("low_freq_factor"),
        "rope_high_freq_factor": number("high_freq_factor"),
        "rope_original_max_seq_len": rope.get(
          "original_max_position_embeddings", raw["max_position_embeddings"]
        ),
      }
    if local_key:
      sliding = parameters.get("sliding_attention") or {}
      fields["rope_local_theta"] = sliding.get(
        "rope_theta", raw.get(local_key, 10_000.0)
      )
    share = rope.get("partial_rotary_factor", raw.get(share_key or None, 1.0))
    if share_key:
      head_size = raw["hidden_size"] // raw["num_attention_heads"]
      fields["rope_dim"] = int(head_size * share)
    elif share != 1.0:
      raise UserError(
        f"is {share!r}; in this family RoPE must rotate whole heads",
        field="partial_rotary_factor",
        fix="use a model with partial_rotary_factor = 1.0",
        code="bad_config_value",
      )
    return fields

  def write(c: Model) -> dict[str, Any]:
    entries: dict[str, Any] = {theta_key: c.rope_theta, "rope_scaling": None}
    if c.rope_scaling != "none":
      entries["rope_scaling"] = {
        "rope_type": c.rope_scaling,
        "factor": c.rope_factor,
      }
    if c.rope_scaling == "llama3":
      entries["rope_scaling"] |= {
        "low_freq_factor": c.rope_low_freq_factor,
        "high_freq_factor": c.rope_high_freq_factor,
        "original_max_position_embeddings": c.rope_original_max_seq_len,
      }
    if local_key:
      entries[local_key] = c.rope_local_theta or c.rope_theta
    if share_key:
      entries[share_key] = (c.rope_dim or c.head_size) / c.head_size
    return entries

  return FieldTranslator(read, write)


def _get_table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """Returns a nested table of config.json; empty if it is missing."""
  value = raw.get(key) or {}
  if not isinstance(value, Mapping):
    raise UserError(
      f"is {value!r}, not a table",
      field=key,
      fix="use the config.json that the model was saved with",
      code="bad_config_value",
    )
  return value


def _get_positive_number(
  table: Mapping[str, Any], key: str, field: str, rope_type: str
) -> int | float:
  """Returns a positive number that a RoPE type requires."""
  value = table.get(key)
  if value is None:
    raise UserError(
      f"{key} is missing, which RoPE of type {rope_type} requires",
      field=field,
      fix="use the config.json that the model was saved with",
      code="missing_config_value",
    )
  if (
    isinstance(value, bool) or not isinstance(value, int | float) or value <= 0
  ):
    raise UserError(
      f"{key} is {value!r}, not a positive number",
      field=field,
      fix="use the config.json that the model was saved with",
      code="bad_config_value",
    )
  return value


def shortest_period(pattern: str) -> str:
  """Returns the shortest prefix whose repetition gives the pattern."""
  size = len(pattern)
  for end in range(1, size):
    if (pattern[:end] * size)[:size] == pattern:
      return pattern[:end]
  return pattern


def _parse_layer_types(layer_types: Any, num_layers: int) -> str:
  """Converts layer_types to one letter per layer: w (window) or f (full)."""
  letters = {"sliding_attention": "w", "full_attention": "f"}
  if isinstance(layer_types, list):
    unknown = [name for name in layer_types if name not in letters]
  else:
    unknown = [layer_types]
  if unknown:
    raise UserError(
      f"{unknown[0]!r} is not supported",
      field="layer_types",
      fix=f"use a model whose layer types are {' or '.join(letters)}",
      code="bad_config_value",
    )
  if len(layer_types) != num_layers:
    raise UserError(
      f"lists {len(layer_types)} layers, but num_hidden_layers is {num_layers}",
      field="layer_types",
      fix="use the config.json that the model was saved with",
      code="contradicting_config",
    )
  return "".join(letters[name] for name in layer_types)


def translate_windows(
  is_sliding: Callable[[Mapping[str, Any], int], bool],
  switch_key: str = "",
  per_layer: bool = True,
) -> FieldTranslator:
  """Returns the translator of sliding-window attention.

  Args:
    is_sliding: (config.json, layer) → whether the layer has a window, used if
      config.json has no `layer_types`.
    switch_key: key that enables windows; "" if the family has none.
    per_layer: whether layers can differ, so that `layer_types` is written.
  """

  def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    window = raw.get("sliding_window") or 0
    if switch_key and not raw.get(switch_key, False):
      window = 0
    layer_types = raw.get("layer_types")
    if layer_types is None:
      layers = range(raw["num_hidden_layers"])
      pattern = "".join("fw"[is_sliding(raw, i)] for i in layers)
    else:
      pattern = _parse_layer_types(layer_types, raw["num_hidden_layers"])
    if not window or "w" not in pattern:
      return {}
    return {
      "sliding_window": window,
      "sliding_window_pattern": shortest_period(pattern),
    }

  def write(c: Model) -> dict[str, Any]:
    names = ["full_attention", "sliding_attention"]
    entries: dict[str, Any] = {"sliding_window": c.sliding_window}
    if per_layer:
      entries["layer_types"] = [
        names[c.has_sliding_window(i)] for i in range(c.num_layers)
      ]
    if switch_key:
      entries[switch_key] = bool(c.sliding_window)
    return entries

  return FieldTranslator(read, write)


TRANSLATE_PARALLEL = FieldTranslator(
  lambda raw: {
    "block": "parallel"
    if raw.get("use_parallel_residual", True)
    else "sequential"
  },
  lambda c: {"use_parallel_residual": c.block == "parallel"},
)
