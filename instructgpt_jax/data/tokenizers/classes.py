"""Tokenizer classes of `transformers`, and how each reads tokenizer.json.

`AutoTokenizer` of `transformers` 5 picks a class by `tokenizer_class` and the
`model_type` of config.json. `AS_IS` reads tokenizer.json as it is. The classes
of `_REBUILT` take vocabulary, merges, added tokens and post-processor from it,
and make everything else themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from instructgpt_jax.data.tokenizers import special_tokens

AS_IS = "PreTrainedTokenizerFast"
LLAMA, GPT2 = "LlamaTokenizer", "GPT2Tokenizer"
QWEN2, NEOX = "Qwen2Tokenizer", "GPTNeoXTokenizer"
GEMMA = "GemmaTokenizer"
_NAMES_OF_AS_IS = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
# Class → kinds of model that have it, as TOKENIZER_MAPPING_NAMES says.
_KINDS = {
  GPT2: "gpt2 gptj opt starcoder2 gpt_neo codegen phi dbrx jais2",
  NEOX: "gpt_neox mpt olmo olmoe mamba mamba2 falcon_mamba rwkv xlstm",
  QWEN2: "qwen2 qwen2_moe qwen2_vl qwen2_5_vl qwen3 qwen3_moe qwen3_next",
  GEMMA: "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text",
  AS_IS: (
    "mistral mixtral mistral3 ministral ministral3 pixtral stablelm granite"
    " gpt_bigcode olmo2 olmo3 glm glm4 persimmon phi3 internlm2 nemotron"
  ),
}
_BY_KIND = {
  kind: name for name, kinds in _KINDS.items() for kind in kinds.split()
}
# Kinds whose own class goes ahead of `tokenizer_class`.
FORCED = frozenset({"qwen2", "phi3", "internlm2", "nemotron"})
_QWEN2_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
  "use_regex": True,
}


def of(files: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the class that `AutoTokenizer` takes; "" where no file says one.

  Args:
    files: file name → parsed JSON, of tokenizer_config.json and config.json.
  """
  model = files.get(special_tokens.MODEL, {})
  kind = model.get("model_type")
  by_kind = _BY_KIND.get(kind, "") if isinstance(kind, str) else ""
  named = files.get(special_tokens.TOKENIZER_CONFIG, {}).get("tokenizer_class")
  named = named or model.get("tokenizer_class")
  if not isinstance(named, str):
    return by_kind
  named = named.removesuffix("Fast")
  named = AS_IS if named in _NAMES_OF_AS_IS else named
  return by_kind if by_kind == AS_IS or (by_kind and kind in FORCED) else named


def rebuilt(
  name: str, description: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns the tokenizer.json that a class makes of another one.

  Args:
    name: the class; `AS_IS` and "" change nothing.
    description: the content of a tokenizer.json.
    config: the content of tokenizer_config.json.

  Returns:
    None where the class is not known.
  """
  byte_level = '"ByteLevel"' in json.dumps(
    [description.get(key) for key in ("pre_tokenizer", "decoder")]
  )
  if name in (AS_IS, "") or (name == LLAMA and byte_level):
    return dict(description)
  model = description.get("model") or {}
  if name not in _REBUILT or "merges" not in model:
    return None
  model = {
    **model,
    "ignore_merges": False,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "dropout": None,
    "byte_fallback": name in (LLAMA, GEMMA),
    "fuse_unk": name in (LLAMA, GEMMA),
  }
  return {**description, "model": model, **_REBUILT[name](config)}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
  """Returns whether two descriptions of one vocabulary are equivalent.

  Equivalent tokenizers give the same ids and the same text.
  """
  return all(
    _canonical(key, a.get(key)) == _canonical(key, b.get(key)) for key in _PARTS
  )


def metaspace(scheme: str) -> dict[str, Any]:
  """Returns what the class LlamaTokenizer makes, by its `prepend_scheme`."""
  decoders = _decoders()
  if scheme != "never":
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return {
    "normalizer": None,
    "pre_tokenizer": {
      "type": "Metaspace",
      "replacement": "▁",
      "prepend_scheme": scheme,
      "split": False,
    },
    "decoder": {"type": "Sequence", "decoders": decoders},
  }


def _decoders() -> list[dict[str, Any]]:
  return [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
  scheme = "always" if config.get("legacy", False) else "first"
  if config.get("add_prefix_space") is False:
    scheme = "never"
  return metaspace(scheme)


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "normalizer": None,
    "pre_tokenizer": {**_BYTES, "add_prefix_space": _adds_space(config)},
    "decoder": _BYTES,
  }


def _neox(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    **_gpt2(config),
    "normalizer": {"type": "NFC"},
    "post_processor": None,
  }


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
  words = {
    "type": "Split",
    "pattern": {"Regex": _QWEN2_WORDS},
    "behavior": "Isolated",
    "invert": False,
  }
  adds = _adds_space(config)
  letters = {**_BYTES, "add_prefix_space": adds, "use_regex": False}
  return {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, letters]},
    "decoder": _BYTES,
  }


def _gemma(config: Mapping[str, Any]) -> dict[str, Any]:
  del config
  return {
    "normalizer": {
      "type": "Replace",
      "pattern": {"String": " "},
      "content": "▁",
    },
    "pre_tokenizer": None,  # it splits at spaces, and there are none
    "decoder": {"type": "Sequence", "decoders": _decoders()},
  }


def _adds_space(config: Mapping[str, Any]) -> bool:
  return bool(config.get("add_prefix_space", False))


_REBUILT = {
  LLAMA: _llama,
  GPT2: _gpt2,
  NEOX: _neox,
  QWEN2: _qwen2,
  GEMMA: _gemma,
}
# Type → what a part of a tokenizer.json is without being named.
_DEFAULTS: dict[str, dict[str, Any]] = {
  "ByteLevel": {"add_prefix_space": True, "use_regex": True},
  "Metaspace": {"prepend_scheme": "always", "split": True},
  "Split": {"invert": False},
}
_PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor", "model")
_LISTS = ("normalizers", "pretokenizers", "decoders")


def _canonical(key: str, part: Any) -> Any:
  """Removes from a part of a description what changes no id and no text."""
  if not isinstance(part, dict):
    return part
  if key == "model":
    model = dict(part)
    for flag in ("ignore_merges", "byte_fallback"):
      model[flag] = bool(model.get(flag))
    names = ("type", "ignore_merges", "byte_fallback", "dropout")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return [model.get(n) for n in names] + [
      model.get(n) or None for n in affixes
    ]
  kind = part.get("type")
  if kind == "Sequence" and key != "post_processor":
    inner = next((part[n] for n in _LISTS if n in part), [])
    parts = [_canonical(key, p) for p in inner]
    return parts[0] if len(parts) == 1 else parts or None
  if key == "decoder" and kind == "ByteLevel":
    return _BYTES
  if key == "post_processor":
    return part if "SpecialToken" in json.dumps(part) else None
  splits_spaces = kind == "Split" and part.get("pattern") == {"String": " "}
  if splits_spaces and key == "pre_tokenizer":
    return None
  values = {**_DEFAULTS.get(kind or "", {}), **part}
  values.pop("trim_offsets", None)
  return values
