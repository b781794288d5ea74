"""Reads GGUF files as if they were Hugging Face directories.

The metadata become a config.json, and the tensors get their names in the
Hugging Face model. llama.cpp changes some values, which is undone: it reorders
the dimensions of Llama's queries and keys, and adds 1 to Gemma's norm scales.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from instructgpt_jax import gguf_header
from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import (
  directory,
  families,
  gguf_tensors,
  settings,
)

# Architecture in a GGUF file → model_type.
ARCHITECTURES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma2": "gemma2",
  "gemma3": "gemma3_text",
}
# Native layer → layer in a GGUF file.
_LAYERS = {
  "embedding": "token_embd",
  "final_norm": "output_norm",
  "norm_attention": "blk.{}.attn_norm",
  "query": "blk.{}.attn_q",
  "key": "blk.{}.attn_k",
  "value": "blk.{}.attn_v",
  "norm_query": "blk.{}.attn_q_norm",
  "norm_key": "blk.{}.attn_k_norm",
  "project": "blk.{}.attn_output",
  "norm_attended": "blk.{}.post_attention_norm",
  "norm_mlp": "blk.{}.ffn_norm",
  "norm_mixed": "blk.{}.post_ffw_norm",
  "gate": "blk.{}.ffn_gate",
  "up": "blk.{}.ffn_up",
  "down": "blk.{}.ffn_down",
}
_UNEMBEDDING = "output"
_ROPE_FACTORS = "rope_freqs.weight"
_ROPE_FREQUENCIES = "attn_rot_embd"
_FIX = "import the model's Hugging Face directory instead"
_REQUIRED = object()
# Settings of an architecture that change the network, with the values that it
# has here. Others are unknown, and reported.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "attention.causal": (True,),
  "attention.clamp_kqv": (0.0,),
  "attention.max_alibi_bias": (0.0,),
  "embedding_scale": (0.0, 1.0),
  "expert_count": (0,),
  "expert_shared_count": (0,),
  "expert_used_count": (0,),
  "logit_scale": (0.0, 1.0),
  "pooling_type": (0,),
  "residual_scale": (0.0, 1.0),
  "rope.scaling.attn_factor": (0.0, 1.0),
  "use_parallel_residual": (False,),
}
# Settings that change nothing here, or that other fields say as well.
_UNUSED = frozenset(
  {
    "attention.layer_norm_epsilon",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
  }
)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192
# Depth of Gemma's 27B models, whose queries are scaled by the width of a head
# as if all heads divided the model's width.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def inspect(path: str | os.PathLike[str]) -> directory.HubCheckpoint:
  """Reads the header of a GGUF file.

  Raises:
    UserError: the file is damaged, or the model is not supported.
  """
  path = os.fspath(path)
  header = gguf_header.read_header(path)
  architecture = _architecture(header)
  family = families.get_family(ARCHITECTURES[architecture])
  tensors = gguf_tensors.list_tensors(header)
  metadata = _Metadata(header, architecture)
  try:
    raw = _config_json(metadata, family, tensors)
    config = family.to_native(raw)
  except UserError as error:
    raise UserError(
      error.problem,
      file=path,
      field=metadata.original_name(error.field),
      fix=error.fix if error.file else _FIX,
      code=error.code,
    ) from error
  _check_rope_factors(metadata, config, tensors.pop(_ROPE_FACTORS, None))
  headers = directory.check_tensors(
    _rename(tensors, family, config), family, config, False, path
  )
  # Norms are float32 in every file.
  large = {name: t for name, t in headers.items() if len(t.shape) > 1}
  generation = _generation_json(header.metadata)
  return directory.HubCheckpoint(
    path=path,
    family=family,
    config=config,
    scalar=False,
    shift=0.0,
    tensors=headers,
    origin=settings.Origin(raw, generation, settings.saved_dtype(large)),
    notes=metadata.notes(),
  )


def _architecture(header: gguf_header.Header) -> str:
  """Returns the file's architecture.

  Raises:
    UserError: it is not supported, or the file holds no whole model.
  """
  kind = header.metadata.get("general.type", "model")
  if kind != "model":
    raise UserError(
      f"is {kind!r}; only whole models are supported",
      file=header.path,
      field="general.type",
      fix="give the file of the model itself",
      code="not_a_model",
    )
  name = header.metadata.get("general.architecture")
  if name not in ARCHITECTURES:
    raise UserError(
      f"the architecture {name!r} is not supported",
      file=header.path,
      field="general.architecture",
      fix=f"supported: {', '.join(ARCHITECTURES)}",
      code="unknown_architecture",
    )
  return str(name)


class _Metadata:
  """Reads the settings of an architecture, and remembers which it has read."""

  def __init__(self, header: gguf_header.Header, architecture: str):
    self.path, self.architecture = header.path, architecture
    self._all = header.metadata
    self._prefix = f"{architecture}."
    self._read: dict[str, str] = {}  # key of config.json → key of the file

  def get(self, key: str, hf_key: str = "", default: Any = _REQUIRED) -> Any:
    """Returns a setting that is a number.

    Args:
      key: its name without the architecture's.
      hf_key: its name in config.json, for errors.
      default: its value if it is missing.

    Raises:
      UserError: it is missing and has no default, or differs between layers.
    """
    value = self.raw(key, hf_key)
    if value is None and default is _REQUIRED:
      raise UserError("is missing", field=key, code="missing_config_value")
    if value is None:
      return default
    if isinstance(value, np.ndarray):
      return self._same_in_all_layers(key, value)
    if not isinstance(value, int | float):
      raise UserError(
        f"is {value!r}, not a number", field=key, code="bad_config_value"
      )
    # As text: the 1e-5 of a float32 is not that of a float64.
    return float(str(np.float32(value))) if isinstance(value, float) else value

  def _same_in_all_layers(self, key: str, values: np.ndarray) -> Any:
    if len(set(values.tolist())) != 1:
      raise UserError(
        "differs between layers, which is not supported",
        field=key,
        code="bad_config_value",
      )
    return values[0].item()

  def raw(self, key: str, hf_key: str = "") -> Any:
    """Returns a setting as it is in the file; None if missing."""
    self._read[hf_key or key] = key
    return self._all.get(self._prefix + key)

  def token_id(self, key: str) -> int | None:
    """Returns the id of a special token; None if the file names none."""
    return self._all.get(f"tokenizer.ggml.{key}_token_id")

  def original_name(self, field: str | None) -> str | None:
    """Returns a setting's name in the file, by that in config.json."""
    if field is None:
      return None
    return self._prefix + self._read.get(field, field)

  def notes(self) -> tuple[str, ...]:
    """Returns a line that names the settings that were not used.

    Raises:
      UserError: one of them changes the network.
    """
    unknown = []
    for key, value in self._all.items():
      name = key.removeprefix(self._prefix)
      if name == key or name in self._read.values() or name in _UNUSED:
        continue
      if name not in _NEUTRAL:
        unknown.append(f"{key}={value!r:.40}")
      elif value not in _NEUTRAL[name]:
        raise UserError(
          f"is {value!r}, which is not supported",
          file=self.path,
          field=key,
          fix=_FIX,
          code="bad_config_value",
        )
    if not unknown:
      return ()
    return (f"settings that are unknown and not used: {', '.join(unknown)}",)


def _config_json(
  metadata: _Metadata,
  family: families.Family,
  tensors: Mapping[str, gguf_tensors.GgufTensor],
) -> dict[str, Any]:
  """Builds the config.json of the Hugging Face model."""
  get = metadata.get
  heads = get("attention.head_count", "num_attention_heads")
  width = get("embedding_length", "hidden_size")
  layers = get("block_count", "num_hidden_layers")
  for key, value, limit in (
    ("attention.head_count", heads, width),
    ("block_count", layers, len(tensors)),
  ):
    if not 0 < value <= limit:
      raise UserError(
        f"is {value}, where {limit} is possible",
        field=key,
        code="bad_config_value",
      )
  head_dim = _head_dim(metadata, width, heads)
  config: dict[str, Any] = {
    "model_type": family.model_type,
    "architectures": [family.lm_class],
    "hidden_size": width,
    "intermediate_size": get("feed_forward_length", "intermediate_size"),
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": get(
      "attention.head_count_kv", "num_key_value_heads", heads
    ),
    "head_dim": head_dim,
    "max_position_embeddings": get("context_length", "max_position_embeddings"),
    "rms_norm_eps": get("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    "rope_theta": get("rope.freq_base", "rope_theta", 10_000.0),
    "rope_scaling": _rope_scaling(metadata, tensors),
    "tie_word_embeddings": f"{_UNEMBEDDING}.weight" not in tensors,
    "vocab_size": _vocab_size(metadata, tensors),
  }
  if metadata.architecture.startswith("gemma"):
    config |= _gemma_settings(metadata, config)
  else:
    scale = get("attention.scale", "attention.scale", None)
    if scale and not np.isclose(scale, head_dim**-0.5):
      raise UserError(
        f"is {scale}, not 1 / sqrt({head_dim}), which is not supported",
        field="attention.scale",
        code="bad_config_value",
      )
  if "attention_bias" in family.fields:
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
  if "mlp_bias" in family.fields:
    config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
  for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
    token_id = metadata.token_id(name)
    if token_id is not None:
      config[f"{key}_token_id"] = token_id
  return config


def _head_dim(metadata: _Metadata, width: int, heads: int) -> int:
  """Returns the dimension of a head, on which several settings must agree."""
  rotated = metadata.get("rope.dimension_count", "rope_dim", None)
  size = metadata.get(
    "attention.key_length", "head_dim", rotated or width // heads
  )
  value_size = metadata.get("attention.value_length", "", size)
  for key, other in (
    ("attention.value_length", value_size),
    ("rope.dimension_count", rotated or size),
  ):
    if other != size:
      raise UserError(
        f"is {other}, but a key of a head has {size} dimensions",
        field=key,
        code="bad_config_value",
      )
  return size


def _vocab_size(
  metadata: _Metadata, tensors: Mapping[str, gguf_tensors.GgufTensor]
) -> int:
  name = f"{_LAYERS['embedding']}.weight"
  if name not in tensors:
    raise UserError(
      f"tensor {name} is missing",
      file=metadata.path,
      fix="give a whole model",
      code="missing_tensor",
    )
  return tensors[name].shape[0]


def _rope_scaling(
  metadata: _Metadata, tensors: Mapping[str, gguf_tensors.GgufTensor]
) -> dict[str, Any] | None:
  """Returns `rope_scaling` of config.json."""
  factor = metadata.get("rope.scaling.factor", "factor", None)
  factor = metadata.get("rope.scale_linear", "", None) or factor
  kind = metadata.raw("rope.scaling.type", "rope_type")
  kind = kind or ("linear" if factor else "none")
  context = metadata.get("rope.scaling.original_context_length", "", None)
  if _ROPE_FACTORS in tensors:
    factors = _read_vector(tensors[_ROPE_FACTORS])
    return {
      "rope_type": "llama3",
      "factor": round(float(factors.max()), 4),
      **_LLAMA3,
      "original_max_position_embeddings": context or _LLAMA3_CONTEXT,
    }
  if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
    return None
  return {"rope_type": kind, "factor": factor}


def _read_vector(tensor: gguf_tensors.GgufTensor) -> np.ndarray:
  values = np.empty(tensor.shape, np.float32)
  tensor.read_region(tensor.shape, [slice(0, n) for n in tensor.shape], values)
  return values


def _check_rope_factors(
  metadata: _Metadata, c: Model, tensor: gguf_tensors.GgufTensor | None
) -> None:
  """Refuses factors of RoPE frequencies that are not those of Llama 3.

  A file has only the factors, and not the settings that they were computed
  from. All models have the same settings but for one, which is the largest
  factor.
  """
  if tensor is None:
    return
  theta = c.rope_theta ** (np.arange(0, c.head_size, 2) / c.head_size)
  turns = c.rope_original_max_seq_len / (2 * np.pi * theta)
  low, high = c.rope_low_freq_factor, c.rope_high_freq_factor
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  expected = 1.0 / ((1.0 - smooth) / c.rope_factor + smooth)
  actual = _read_vector(tensor)
  if actual.shape != expected.shape or not np.allclose(
    actual, expected, rtol=1e-3
  ):
    raise UserError(
      f"tensor {_ROPE_FACTORS} has other factors than Llama 3's RoPE scaling",
      file=metadata.path,
      fix=_FIX,
      code="bad_config_value",
    )


def _gemma_settings(
  metadata: _Metadata, config: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the entries of config.json that only Gemma has."""
  name, get = metadata.architecture, metadata.get
  layers = config["num_hidden_layers"]
  scalar: float = config["head_dim"]
  if layers == _GEMMA_27B_LAYERS[name]:
    scalar = config["hidden_size"] // config["num_attention_heads"]
  scale = get("attention.scale", "query_pre_attn_scalar", None)
  if scale:
    scalar = round(float(scale) ** -2, 3)
  cap = 50.0 if name == "gemma2" else None
  final_cap = 30.0 if name == "gemma2" else None
  entries = {
    "query_pre_attn_scalar": scalar,
    "sliding_window": get("attention.sliding_window", "sliding_window", 4096),
    "attn_logit_softcapping": get(
      "attn_logit_softcapping", "attn_logit_softcapping", cap
    ),
    "final_logit_softcapping": get(
      "final_logit_softcapping", "final_logit_softcapping", final_cap
    ),
  }
  if name == "gemma3":
    entries["rope_local_base_freq"] = get(
      "rope.freq_base_swa", "rope_local_base_freq", 10_000.0
    )
  pattern = metadata.raw("attention.sliding_window_pattern")
  if isinstance(pattern, int):
    pattern = [(i + 1) % max(pattern, 1) > 0 for i in range(layers)]
  if isinstance(pattern, np.ndarray | list):
    names = ("full_attention", "sliding_attention")
    entries["layer_types"] = [names[bool(slides)] for slides in pattern]
  return entries


def _generation_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Builds generation_config.json: ids that end a reply."""
  keys = ("eos", "eot", "eom")
  ids = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys]
  ids = [i for i in dict.fromkeys(ids) if i is not None]
  return {"eos_token_id": ids} if len(ids) > 1 else {}


def _rename(
  tensors: Mapping[str, gguf_tensors.GgufTensor],
  family: families.Family,
  c: Model,
) -> dict[str, gguf_tensors.GgufTensor]:
  """Returns name in the Hugging Face model → tensor with its values.

  A tensor that no layer has keeps its name. Frequencies of RoPE are left out:
  the metadata determine them.
  """
  names = {_UNEMBEDDING: family.unembedding}
  for layer, name in _LAYERS.items():
    if layer in family.names:
      names[name] = family.prefix + family.names[layer]
  restore = _restoration(family, c)
  renamed: dict[str, gguf_tensors.GgufTensor] = {}
  for name, tensor in tensors.items():
    layer, _, leaf = name.rpartition(".")
    if layer.endswith(_ROPE_FREQUENCIES):
      continue
    number = re.match(r"blk\.(\d+)\.", layer)
    pattern = layer
    if number is not None:
      pattern = f"blk.{{}}.{layer[number.end() :]}"
    hf_name = name
    if pattern in names:
      hf_layer = names[pattern]
      hf_name = f"{hf_layer}.{leaf}"
      if number is not None:
        hf_name = f"{hf_layer.format(number[1])}.{leaf}"
    renamed[hf_name] = restore(pattern, tensor)
  return renamed


def _restoration(
  family: families.Family, c: Model
) -> Callable[[str, gguf_tensors.GgufTensor], gguf_tensors.GgufTensor]:
  """Returns a function that undoes what llama.cpp did to a layer's tensor."""
  heads = {_LAYERS["query"]: c.num_heads, _LAYERS["key"]: c.kv_heads}

  def restore(
    layer: str, tensor: gguf_tensors.GgufTensor
  ) -> gguf_tensors.GgufTensor:
    if c.norm == "gemma_rms" and layer.endswith("norm"):
      return tensor._replace(offset=-1.0)
    if family.model_type == "llama" and layer in heads:
      return tensor._replace(rotary_heads=heads[layer])
    return tensor

  return restore
