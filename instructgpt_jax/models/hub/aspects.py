"""What configurations say in more than a name: rotary positions, windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from instructgpt_jax.config import Model
from instructgpt_jax.errors import UserError


class Aspect(NamedTuple):
  """What is translated by more than a name."""

  read: Callable[[Mapping[str, Any]], dict[str, Any]]  # theirs → fields
  write: Callable[[Model], dict[str, Any]]


def rope(base: str = "rope_theta", share: str = "", local: str = "") -> Aspect:
  """Rotary positions; the names of their base, their share, the local base."""

  def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = raw.get("rope_parameters") or {}
    full = given.get("full_attention", given) or {}
    full = {**(raw.get("rope_scaling") or {}), **full}
    kind = full.get("rope_type", full.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
      raise UserError(
        f"{kind!r} is not supported",
        field="rope_type",
        fix="give a model whose rope_type is default, linear or llama3",
      )
    found: dict[str, Any] = {
      "rotary_base": full.get("rope_theta", raw.get(base, 10_000.0)),
      "rotary_scaling": "none" if kind == "default" else kind,
    }
    if kind != "default":
      found["rotary_factor"] = full["factor"]
    if kind == "llama3":
      found |= {
        "rotary_low": full["low_freq_factor"],
        "rotary_high": full["high_freq_factor"],
        "rotary_context": full.get(
          "original_max_position_embeddings", raw["max_position_embeddings"]
        ),
      }
    if local:
      sliding = given.get("sliding_attention") or {}
      found["rotary_local_base"] = sliding.get(
        "rope_theta", raw.get(local, 10_000.0)
      )
    part = full.get("partial_rotary_factor", raw.get(share or None, 1.0))
    if share:
      size = raw["hidden_size"] // raw["num_attention_heads"]
      found["rotary_dim"] = int(size * part)
    elif part != 1.0:
      raise UserError(
        "only whole heads turn here", field="partial_rotary_factor"
      )
    return found

  def write(c: Model) -> dict[str, Any]:
    found: dict[str, Any] = {base: c.rotary_base, "rope_scaling": None}
    if c.rotary_scaling != "none":
      found["rope_scaling"] = {
        "rope_type": c.rotary_scaling,
        "factor": c.rotary_factor,
      }
    if c.rotary_scaling == "llama3":
      found["rope_scaling"] |= {
        "low_freq_factor": c.rotary_low,
        "high_freq_factor": c.rotary_high,
        "original_max_position_embeddings": c.rotary_context,
      }
    if local:
      found[local] = c.rotary_local_base or c.rotary_base
    if share:
      found[share] = c.rotary_dim / c.head_size
    return found

  return Aspect(read, write)


def shortest(pattern: str) -> str:
  """The shortest beginning that gives the pattern when it is repeated."""
  size = len(pattern)
  for end in range(1, size):
    if (pattern[:end] * size)[:size] == pattern:
      return pattern[:end]
  return pattern


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
      pattern = "".join("fw"[k == "sliding_attention"] for k in kinds)
    if not window or "w" not in pattern:
      return {}
    return {"window": window, "window_pattern": shortest(pattern)}

  def write(c: Model) -> dict[str, Any]:
    kinds = ["full_attention", "sliding_attention"]
    found: dict[str, Any] = {"sliding_window": c.window or None}
    if listed:
      found["layer_types"] = [kinds[c.windowed(i)] for i in range(c.layers)]
    return found | ({switch: c.window > 0} if switch else {})

  return Aspect(read, write)


PARALLEL = Aspect(
  lambda raw: {
    "block": "parallel"
    if raw.get("use_parallel_residual", True)
    else "sequential"
  },
  lambda c: {"use_parallel_residual": c.block == "parallel"},
)
