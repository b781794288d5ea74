"""Names and values of config fields in earlier versions.

A config.json or a saved model with such a name is read with today's name. A
flag with such a name is refused, with today's name in the error.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeVar

from instructgpt_jax.configs.fields import options

T = TypeVar("T")

# Old → new name of a field, or of a section with all its fields. A name that an
# experiment still has is not renamed there.
_FIELDS = {
  "model.context": "model.max_seq_len",
  "model.layers": "model.num_layers",
  "model.width": "model.d_model",
  "model.heads": "model.num_heads",
  "model.kv_heads": "model.num_kv_heads",
  "model.mlp_width": "model.d_ff",
  "model.gated": "model.gated_mlp",
  "model.query_scalar": "model.query_pre_attn_scalar",
  "model.attention_cap": "model.attn_logit_softcap",
  "model.logit_cap": "model.final_logit_softcap",
  "model.positions": "model.pos_emb",
  "model.rotary_dim": "model.rope_dim",
  "model.rotary_pairs": "model.rope_interleaved",
  "model.rotary_base": "model.rope_theta",
  "model.rotary_scaling": "model.rope_scaling",
  "model.rotary_factor": "model.rope_factor",
  "model.rotary_low": "model.rope_low_freq_factor",
  "model.rotary_high": "model.rope_high_freq_factor",
  "model.rotary_context": "model.rope_original_max_seq_len",
  "model.rotary_local_base": "model.rope_local_theta",
  "model.window": "model.sliding_window",
  "model.window_pattern": "model.sliding_window_pattern",
}
_SECTIONS = {
  "pretrain_optimizer": "pretrain.optimizer",
  "sft_optimizer": "sft.optimizer",
  "policy_init_optimizer": "policy_init.optimizer",
  "reward_optimizer": "reward.optimizer",
  "ppo_optimizer": "ppo.optimizer",
  "ptx_optimizer": "ppo_ptx.optimizer",
  "value_optimizer": "ppo.value_optimizer",
}
# New name → old → new value.
_VALUES = {
  "model.pos_emb": {"rotary": "rope"},
  "model.norm": {"rms_less_one": "gemma_rms"},
}
# Fields that had one value only → why there is no choice.
REMOVED = {
  "ppo.top_k": "training samples from the whole distribution",
  "ppo.top_p": "training samples from the whole distribution",
}
_EXPLICIT = "data.explicit"


def new_name(name: str, known: Container[str]) -> str | None:
  """Returns today's name of a field, or None where it has not been renamed.

  Args:
    name: a dotted name, such as model.width.
    known: dotted names of today's fields.
  """
  if name in known:
    return None
  section, _, rest = name.partition(".")
  new = _FIELDS.get(name)
  if new is None and section in _SECTIONS:
    new = f"{_SECTIONS[section]}.{rest}"
  return new if new is not None and new in known else None


def new_value(name: str, value: Any) -> Any:
  """Returns today's value of a field.

  Args:
    name: today's dotted name.
    value: the value in an earlier version.
  """
  if not isinstance(value, str):
    return value
  return _VALUES.get(name, {}).get(value, value)


def upgrade(
  values: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a config that an earlier version wrote, as today's would be.

  Args:
    values: nested JSON values. Unknown names are kept.
    current: nested JSON values of a config of today's with the same fields.
  """
  known = flatten(current)
  result: dict[str, Any] = {}
  for name, value in flatten(values).items():
    if name in REMOVED and name not in known:
      continue
    name = new_name(name, known) or name
    value = new_value(name, value)
    if name == _EXPLICIT and isinstance(value, str):
      value = _upgrade_explicit(value, known)
    if name in known and known[name] is None and _is_none(value):
      value = None
    _insert(result, name.split("."), value)
  return result


def read_section(name: str, section: type[T], values: Mapping[str, Any]) -> T:
  """Returns a section that this version or an earlier one saved.

  Args:
    name: such as "model".
    section: its class, such as `Model`.
    values: field → JSON value.

  Raises:
    TypeError: there is a field of no version.
    UserError: a value is out of range.
  """
  fields = options(section)
  renamed = upgrade({name: values}, {name: dict.fromkeys(fields, ...)})[name]
  return section(
    **{
      field: fields[field].normalize(value) if field in fields else value
      for field, value in renamed.items()
    }
  )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested values by dotted name; an empty section is a value."""
  result = {}
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      result |= flatten(value, f"{prefix}{name}.")
    else:
      result[f"{prefix}{name}"] = value
  return result


def _insert(values: dict[str, Any], path: list[str], value: Any) -> None:
  for section in path[:-1]:
    values = values.setdefault(section, {})
    if not isinstance(values, dict):
      return  # A number where a section is: `path` says no more of it.
  values[path[-1]] = value


def _upgrade_explicit(names: str, known: Container[str]) -> str:
  return ",".join(new_name(name, known) or name for name in names.split(","))


def _is_none(value: Any) -> bool:
  return not isinstance(value, bool) and value in (0, "")
