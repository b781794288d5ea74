"""Tiny random models of each architecture, made by `transformers`."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import pytest

# Set by `make test`, which installs them: then nothing is skipped.
REQUIRED = "INSTRUCTGPT_JAX_TEST_TORCH"


def library(name: str) -> Any:
  """Imports a library that only tests need, or skips the test."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      return importlib.import_module(name)
    except ImportError as error:
      if os.environ.get(REQUIRED):
        raise
      pytest.skip(f"{error}; make test installs it", allow_module_level=True)


_GPT2 = dict(n_embd=16, n_layer=2, n_head=4, vocab_size=40, n_positions=32)
_HIDDEN = dict(
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  vocab_size=40,
  max_position_embeddings=32,
)
_LLAMA = dict(_HIDDEN, num_key_value_heads=2, intermediate_size=24)
_WINDOW = dict(_LLAMA, head_dim=6, sliding_window=4)

# Every field that a family can differ in differs from its default somewhere.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
  "gpt2": ("gpt2", _GPT2),
  "cerebras": (
    "gpt2",
    dict(
      _GPT2, activation_function="gelu", n_inner=24, layer_norm_epsilon=1e-3
    ),
  ),
  "gptj": ("gptj", dict(_GPT2, n_head=2, rotary_dim=4)),
  "gpt_neox": (
    "gpt_neox",
    dict(_HIDDEN, num_attention_heads=2, intermediate_size=24),
  ),
  "pythia_in_turn": (
    "gpt_neox",
    dict(
      _HIDDEN,
      intermediate_size=24,
      use_parallel_residual=False,
      rope_parameters=dict(
        rope_type="default", rope_theta=500.0, partial_rotary_factor=1.0
      ),
    ),
  ),
  "opt": ("opt", dict(_HIDDEN, ffn_dim=24, word_embed_proj_dim=16)),
  "llama": (
    "llama",
    dict(
      _LLAMA,
      rope_parameters=dict(
        rope_type="llama3",
        rope_theta=50.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
      ),
    ),
  ),
  "llama_biased": (
    "llama",
    dict(
      _LLAMA,
      num_key_value_heads=4,
      attention_bias=True,
      mlp_bias=True,
      tie_word_embeddings=True,
    ),
  ),
  "mistral": ("mistral", _WINDOW),
  "qwen2": (
    "qwen2",
    dict(
      _LLAMA, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
  ),
  "qwen3": ("qwen3", dict(_LLAMA, head_dim=6)),
  "starcoder2": (
    "starcoder2",
    dict(_LLAMA, norm_epsilon=1e-3, sliding_window=4),
  ),
  "gemma2": (
    "gemma2",
    dict(
      _WINDOW,
      query_pre_attn_scalar=5,
      attn_logit_softcapping=2.0,
      final_logit_softcapping=3.0,
    ),
  ),
  "gemma3": (
    "gemma3_text",
    dict(
      _WINDOW,
      num_hidden_layers=3,
      query_pre_attn_scalar=5,
      layer_types=[
        "sliding_attention",
        "full_attention",
        "sliding_attention",
      ],
      rope_parameters={
        "full_attention": dict(
          rope_type="linear", factor=8.0, rope_theta=100.0
        ),
        "sliding_attention": dict(rope_type="default", rope_theta=10.0),
      },
    ),
  ),
}
IDS = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)


def make(name: str, scalar: bool = False, **changes: Any) -> Any:
  """Makes a model of `transformers` whose parameters all affect its output."""
  torch, transformers = library("torch"), library("transformers")
  kind, settings = CONFIGS[name]
  if scalar:
    changes["num_labels"] = 1
  config = transformers.AutoConfig.for_model(
    kind, **{**settings, **IDS, **changes}
  )
  torch.manual_seed(0)
  auto = (
    transformers.AutoModelForSequenceClassification
    if scalar
    else transformers.AutoModelForCausalLM
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = auto.from_config(config, attn_implementation="eager").eval()
  for key, parameter in model.named_parameters():
    normed = any(part in key for part in ("norm", "ln_"))
    one = normed and key.endswith("weight") and "gemma" not in kind
    parameter.data.normal_(1.0 if one else 0.0, 0.3)
  return model


def save(model: Any, folder: Any, **options: Any) -> str:
  """Its directory."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model.save_pretrained(folder, **options)
  return str(folder)


def load(folder: Any, scalar: bool = False) -> Any:
  """Loads a directory's model and checks that every tensor is used."""
  transformers = library("transformers")
  auto = (
    transformers.AutoModelForSequenceClassification
    if scalar
    else transformers.AutoModelForCausalLM
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model, info = auto.from_pretrained(
      folder, attn_implementation="eager", output_loading_info=True
    )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  return model.eval()
