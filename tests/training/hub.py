"""Directories of small models with tokenizers of the toy language."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from instructgpt_jax import configs
from instructgpt_jax.interop import directory
from instructgpt_jax.models.heads import LanguageModel, init_params
from tests.models import twin
from tests.training import toy

TEMPLATE = (
  "{% for m in messages %}{{ '<u>' if m['role'] == 'user' else '<a>' }}"
  " {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SHAPE: dict[str, Any] = dict(
  num_layers=1, d_model=16, num_heads=2, max_seq_len=24
)
# As GPT-2 and Llama are: the one has no padding token, the other a template.
MODELS: dict[str, dict[str, Any]] = {
  "gpt2": {},
  "llama": twin.LLAMA,
}


def tokenizer_files(kind: str) -> dict[str, bytes]:
  """Returns the files of a tokenizer directory."""
  special = ["</s>", "<unk>"]
  if kind == "llama":
    special += ["<pad>", "<s>", "<u>", "<a>"]
  words = [*special, *toy.WORDS, *toy.COLOURS, "Human", "Assistant", ":"]
  vocab = {word: i for i, word in enumerate(words)}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(special)
  settings: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "</s>",
  }
  if kind == "llama":
    tokenizer.post_processor = processors.TemplateProcessing(
      single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 3)]
    )
    settings |= {
      "bos_token": "<s>",
      "pad_token": "<pad>",
      "chat_template": TEMPLATE,
    }
  return {
    "tokenizer.json": tokenizer.to_str().encode(),
    "tokenizer_config.json": json.dumps(settings).encode(),
  }


def make(path: pathlib.Path, kind: str) -> str:
  """Makes a Hugging Face directory, and returns its path."""
  files = tokenizer_files(kind)
  size = len(json.loads(files["tokenizer.json"])["model"]["vocab"])
  model = LanguageModel(configs.Model(vocab_size=size, **SHAPE, **MODELS[kind]))
  params = init_params(model, jax.random.key(1))
  ids = {"eos_token_id": 0} | ({"pad_token_id": 2} if kind == "llama" else {})
  directory.save(
    path, directory.flatten_leaves(params), model.config, files, ids=ids
  )
  return str(path)
