"""GGUF files of tiny models, written as llama.cpp's converter writes them.

Independent of `interop`: names come from the package `gguf`, reordered heads
and shifted norms are written out here, and each matrix of the `transformers`
model gets the values that its quantised bytes have.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers
from tokenizers import (
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  trainers,
)

from tests.interop import tiny

SIZES = dict(
  hidden_size=256,
  intermediate_size=256,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  vocab_size=40,
  max_position_embeddings=32,
)
_LINEAR = dict(rope_type="linear", rope_theta=100.0, factor=8.0)
_LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=500_000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=8192,
)
_GEMMA = dict(SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=4)
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# Name → architecture in the file, model_type, settings of the config.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
  "llama": ("llama", "llama", dict(SIZES, num_attention_heads=8)),
  "llama3": (
    "llama",
    "llama",
    dict(
      SIZES,
      rope_parameters=_LLAMA3,
      tie_word_embeddings=True,
      attention_bias=True,
      max_position_embeddings=131072,
    ),
  ),
  "qwen2": ("qwen2", "qwen2", dict(SIZES, rms_norm_eps=1e-5)),
  "qwen3": ("qwen3", "qwen3", dict(SIZES, head_dim=32)),
  "gemma2": ("gemma2", "gemma2", _GEMMA),
  "gemma3": (
    "gemma3",
    "gemma3_text",
    dict(
      _GEMMA,
      num_hidden_layers=3,
      layer_types=_TYPES,
      rope_parameters={
        "full_attention": _LINEAR,
        "sliding_attention": dict(rope_type="default", rope_theta=10.0),
      },
    ),
  ),
}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# Type whose bytes the package does not compute → positions of its scales.
_SCALES = {
  "Q2_K": (80, 82),
  "Q3_K": (108,),
  "Q4_K": (0, 2),
  "Q5_K": (0, 2),
  "Q6_K": (208,),
}


TEMPLATE = (
  "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# As the tokenizer.json of Llama 3, Qwen 2.5, SmolLM 2 and GPT-2 have them.
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
  "llama-bpe": _LLAMA3,
  "qwen2": _LLAMA3.replace("{1,3}", ""),
}
SPECIAL = ["<|endoftext|>", "<|start|>", "<|end|>"]
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5


def gguf_name(name: str, architecture: str) -> str:
  """Returns the name in a GGUF file of a tensor of `transformers`."""
  gguf = tiny.library("gguf")
  ids = {name: i for i, name in gguf.MODEL_ARCH_NAMES.items()}
  names = gguf.get_tensor_name_map(ids[architecture], 9)
  layer, leaf = name.rsplit(".", 1)
  return f"{names.get_name(layer)}.{leaf}"


def pack(values: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
  """Returns the bytes of a matrix; of some types they are random ones."""
  gguf = tiny.library("gguf")
  type_id = gguf.GGMLQuantizationType[kind]
  if kind not in _SCALES:
    return gguf.quantize(np.ascontiguousarray(values, np.float32), type_id)
  block, block_bytes = gguf.GGML_QUANT_SIZES[type_id]
  rng = np.random.default_rng(seed)
  shape = (*values.shape[:-1], values.shape[-1] // block, block_bytes)
  blocks = rng.integers(0, 256, shape, np.uint8)
  for at in _SCALES[kind]:
    scale = np.float16(2e-4 if kind == "Q6_K" else 2e-3)
    blocks[..., at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
  return blocks.reshape(*shape[:-2], -1)


def _reorder(values: np.ndarray, heads: int) -> np.ndarray:
  """Makes the two dimensions that RoPE rotates together neighbours."""
  rows = values.reshape(heads, 2, -1, *values.shape[1:])
  return rows.swapaxes(1, 2).reshape(values.shape)


def _order_back(values: np.ndarray, heads: int) -> np.ndarray:
  rows = values.reshape(heads, -1, 2, *values.shape[1:])
  return rows.swapaxes(1, 2).reshape(values.shape)


def write_model(
  path: pathlib.Path,
  name: str,
  types: tuple[str, ...] = TYPES,
  add: Callable[[Any], Any] | None = None,
  **changes: Any,
) -> Any:
  """Writes a file, and returns the model of `transformers` with its values.

  Args:
    path: the file.
    name: a key of MODELS.
    types: types of the matrices, in turn.
    add: adds further metadata to the file.
    **changes: further settings of the config.
  """
  gguf, torch = tiny.library("gguf"), tiny.library("torch")
  architecture, kind, settings = MODELS[name]
  tiny.CONFIGS[f"gguf_{name}"] = (kind, settings)
  model = tiny.make(f"gguf_{name}", **changes)
  del tiny.CONFIGS[f"gguf_{name}"]
  writer = gguf.GGUFWriter(path, architecture)
  write_settings(writer, architecture, model.config)
  if add is not None:
    add(writer)
  kinds = itertools.cycle(types)
  for seed, (tensor_name, parameter) in enumerate(model.named_parameters()):
    values = parameter.detach().numpy()
    heads = 0
    if architecture == "llama" and ".q_proj" in tensor_name:
      heads = model.config.num_attention_heads
    if architecture == "llama" and ".k_proj" in tensor_name:
      heads = model.config.num_key_value_heads
    if heads:
      values = _reorder(values, heads)
    shift = architecture.startswith("gemma") and "norm" in tensor_name
    values = values + 1 if shift else values
    tensor_kind = next(kinds) if values.ndim == 2 else "F32"
    content = pack(values, tensor_kind, seed)
    type_id = gguf.GGMLQuantizationType[tensor_kind]
    writer.add_tensor(
      gguf_name(tensor_name, architecture), content, raw_dtype=type_id
    )
    values = gguf.dequantize(content, type_id)
    values = values - np.float32(1) if shift else values
    values = _order_back(values, heads) if heads else values
    parameter.data = torch.tensor(values)
  if name == "llama3":
    writer.add_tensor("rope_freqs.weight", rope_factors(model.config))
  finish(writer)
  return model


def write_settings(writer: Any, architecture: str, c: Any) -> None:
  """Writes the metadata of a network, as llama.cpp's converter does."""
  head_dim = getattr(c, "head_dim", None) or (
    c.hidden_size // c.num_attention_heads
  )
  writer.add_context_length(c.max_position_embeddings)
  writer.add_embedding_length(c.hidden_size)
  writer.add_block_count(c.num_hidden_layers)
  writer.add_feed_forward_length(c.intermediate_size)
  writer.add_head_count(c.num_attention_heads)
  writer.add_head_count_kv(c.num_key_value_heads)
  writer.add_layer_norm_rms_eps(c.rms_norm_eps)
  rope = c.rope_parameters
  rope = rope.get("full_attention", rope)
  writer.add_rope_freq_base(rope["rope_theta"])
  if architecture in ("llama", "qwen3"):
    writer.add_rope_dimension_count(head_dim)
  if architecture != "qwen2":
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
  if architecture == "gemma2":
    writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
    writer.add_final_logit_softcapping(c.final_logit_softcapping)
  if architecture.startswith("gemma"):
    writer.add_sliding_window(c.sliding_window)
  if architecture == "gemma3":
    writer.add_rope_scaling_type(tiny.library("gguf").RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
    local = c.rope_parameters["sliding_attention"]["rope_theta"]
    writer.add_float32("gemma3.rope.freq_base_swa", local)
    slides = [kind == "sliding_attention" for kind in c.layer_types]
    writer.add_array("gemma3.attention.sliding_window_pattern", slides)


def rope_factors(c: Any) -> np.ndarray:
  """Returns the factors of Llama 3's RoPE scaling, one frequency at a time."""
  rope = c.rope_parameters
  head_dim = c.hidden_size // c.num_attention_heads
  factors = []
  for i in range(0, head_dim, 2):
    length = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
    turns = rope["original_max_position_embeddings"] / length
    if turns > rope["high_freq_factor"]:
      factors.append(1.0)
    elif turns < rope["low_freq_factor"]:
      factors.append(rope["factor"])
    else:
      smooth = (turns - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"]
      )
      factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
  return np.asarray(factors, np.float32)


def byte_level(rule: str, texts: list[str]) -> tokenizers.Tokenizer:
  """Trains a tokenizer as the original model has it."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  if rule in _SPLITS:
    steps = [
      pre_tokenizers.Split(Regex(_SPLITS[rule]), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  if rule == "smollm":
    steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
  if rule == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=420,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(t, special=True, normalized=False) for t in SPECIAL]
  )
  tokenizer.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
  return tokenizer


def add_byte_level(
  writer: Any,
  tokenizer: tokenizers.Tokenizer,
  rule: str,
  fill: int = 0,
  **ids: int,
) -> dict[str, int]:
  """Adds a tokenizer of `byte_level` to a file's metadata.

  Args:
    writer: writes the file.
    tokenizer: the tokenizer.
    rule: name of the rule by which it splits texts; "" for none.
    fill: number of tokens that only fill the list up.
    **ids: further special tokens.

  Returns:
    Token → id, without those that only fill.
  """
  vocab = tokenizer.get_vocab(with_added_tokens=True)
  tokens = sorted(vocab, key=lambda token: vocab[token])
  kinds = [1] * len(tokens)
  for token in SPECIAL:
    kinds[vocab[token]] = CONTROL
  kinds[vocab["<think>"]] = USER_DEFINED
  tokens += [f"[PAD{len(tokens) + i}]" for i in range(fill)]
  kinds += [UNUSED] * fill
  merges = json.loads(tokenizer.to_str())["model"]["merges"]
  writer.add_tokenizer_model("gpt2")
  if rule:
    writer.add_tokenizer_pre(rule)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges([" ".join(pair) for pair in merges])
  writer.add_chat_template(TEMPLATE)
  defaults = {"eos": vocab["<|endoftext|>"], "eot": vocab["<|end|>"]}
  for name, token_id in {**defaults, **ids}.items():
    writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
  return vocab


def finish(writer: Any) -> None:
  """Writes the file."""
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
