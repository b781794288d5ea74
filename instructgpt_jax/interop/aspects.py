"""What configurations say in more than a name: RoPE, windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError


class Aspect(NamedTuple):
  """What is translated by more than a name."""

  read: Callable[[Mapping[str, Any]], dict[str, Any]]  # theirs → fields
  write: Callable[[Model], dict[str, Any]]


def rope(base: str = "rope_theta", share: str = "", local: str = "") -> Aspect:
  """Rotary positions; the names of their base, their share, the local base."""

  def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = _table(raw, "rope_parameters")
    scaling = _table(raw, "rope_scaling")
    inner = given.get("full_attention", given) or {}
    full = {**scaling, **inner}
    where = "rope_parameters" if inner else "rope_scaling"
    for key in ("factor", "rope_type"):
      if key in scaling and scaling[key] != full[key]:
        raise UserError(
          f"has {key} {scaling[key]!r}, but rope_parameters {full[key]!r}",
          field="rope_scaling",
          fix="remove the one that the model was not trained with",
          code="contradicting_config",
        )
    kind = full.get("rope_type", full.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
      raise UserError(
        f"{kind!r} is not supported",
        field="rope_type",
        fix="give a model whose rope_type is default, linear or llama3",
      )
    found: dict[str, Any] = {
      "rope_theta": full.get("rope_theta", raw.get(base, 10_000.0)),
      "rope_scaling": "none" if kind == "default" else kind,
    }
    if kind != "default":
      found["rope_factor"] = _number(full, "factor", where, kind)
    if kind == "llama3":
      found |= {
        "rope_low_freq_factor": _number(full, "low_freq_factor", where, kind),
        "rope_high_freq_factor": _number(full, "high_freq_factor", where, kind),
        "rope_original_max_seq_len": full.get(
          "original_max_position_embeddings", raw["max_position_embeddings"]
        ),
      }
    if local:
      sliding = given.get("sliding_attention") or {}
      found["rope_local_theta"] = sliding.get(
        "rope_theta", raw.get(local, 10_000.0)
      )
    part = full.get("partial_rotary_factor", raw.get(share or None, 1.0))
    if share:
      size = raw["hidden_size"] // raw["num_attention_heads"]
      found["rope_dim"] = int(size * part)
    elif part != 1.0:
      raise UserError(
        "only whole heads turn here", field="partial_rotary_factor"
      )
    return found

  def write(c: Model) -> dict[str, Any]:
    found: dict[str, Any] = {base: c.rope_theta, "rope_scaling": None}
    if c.rope_scaling != "none":
      found["rope_scaling"] = {
        "rope_type": c.rope_scaling,
        "factor": c.rope_factor,
      }
    if c.rope_scaling == "llama3":
      found["rope_scaling"] |= {
        "low_freq_factor": c.rope_low_freq_factor,
        "high_freq_factor": c.rope_high_freq_factor,
        "original_max_position_embeddings": c.rope_original_max_seq_len,
      }
    if local:
      found[local] = c.rope_local_theta or c.rope_theta
    if share:
      found[share] = c.rope_dim / c.head_size
    return found

  return Aspect(read, write)


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """A table of a config.json; empty where there is none."""
  value = raw.get(key) or {}
  if not isinstance(value, Mapping):
    raise UserError(
      f"is {value!r}, not a table",
      field=key,
      fix="give the config.json that the model was saved with",
      code="bad_config_value",
    )
  return value


def _number(
  table: Mapping[str, Any], key: str, field: str, kind: str
) -> int | float:
  """A positive number that RoPE of a kind needs."""
  value = table.get(key)
  if value is None:
    raise UserError(
      f"has no {key}, which RoPE of type {kind} needs",
      field=field,
      fix="give the config.json that the model was saved with",
      code="missing_config_value",
    )
  if (
    isinstance(value, bool) or not isinstance(value, int | float) or value <= 0
  ):
    raise UserError(
      f"has {key} {value!r}, not a positive number",
      field=field,
      fix="give the config.json that the model was saved with",
      code="bad_config_value",
    )
  return value


def shortest(pattern: str) -> str:
  """The shortest beginning that gives the pattern when it is repeated."""
  size = len(pattern)
  for end in range(1, size):
    if (pattern[:end] * size)[:size] == pattern:
      return pattern[:end]
  return pattern


def _layer_pattern(kinds: Any, layers: int) -> str:
  """layer_types as letters, w (window) and f (full)."""
  letters = {"sliding_attention": "w", "full_attention": "f"}
  listed = isinstance(kinds, list)
  unknown = [k for k in kinds if k not in letters] if listed else [kinds]
  if unknown:
    raise UserError(
      f"{unknown[0]!r} is not supported",
      field="layer_types",
      fix=f"give a model whose layers are {' or '.join(letters)}",
      code="bad_config_value",
    )
  if len(kinds) != layers:
    raise UserError(
      f"names {len(kinds)} layers, but num_hidden_layers is {layers}",
      field="layer_types",
      fix="give the config.json that the model was saved with",
      code="contradicting_config",
    )
  return "".join(letters[kind] for kind in kinds)


def windows(
  sliding: Callable[[Mapping[str, Any], int], bool],
  switch: str = "",
  listed: bool = True,
) -> Aspect:
  """Layers with a window.

  Args:
    sliding: whether layer i has one, where `layer_types` does not say.
    switch: key that turns all windows off.
    listed: whether a layer can be unlike the others.
  """

  def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    window = raw.get("sliding_window") or 0
    if switch and not raw.get(switch, False):
      window = 0
    kinds = raw.get("layer_types")
    if kinds is None:
      layers = range(raw["num_hidden_layers"])
      pattern = "".join("fw"[sliding(raw, i)] for i in layers)
    else:
      pattern = _layer_pattern(kinds, raw["num_hidden_layers"])
    if not window or "w" not in pattern:
      return {}
    return {
      "sliding_window": window,
      "sliding_window_pattern": shortest(pattern),
    }

  def write(c: Model) -> dict[str, Any]:
    kinds = ["full_attention", "sliding_attention"]
    found: dict[str, Any] = {"sliding_window": c.sliding_window or None}
    if listed:
      found["layer_types"] = [
        kinds[c.has_sliding_window(i)] for i in range(c.num_layers)
      ]
    return found | ({switch: c.sliding_window > 0} if switch else {})

  return Aspect(read, write)


PARALLEL = Aspect(
  lambda raw: {
    "block": "parallel"
    if raw.get("use_parallel_residual", True)
    else "sequential"
  },
  lambda c: {"use_parallel_residual": c.block == "parallel"},
)
