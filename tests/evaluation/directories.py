"""Tiny Hugging Face directories: a GPT-2 without BOS and a Llama with BOS."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tests.interop import tiny

TEXTS = [
  "The fox saw a bird, and it sang for two old owls near one red barn.",
  "Question: who sang? Answer: the bird. Question: how many owls? Answer: two",
  "é ü ß – „quotes“ 😀 naïve café\n\nA new line.\tA tab.  Two spaces.",
]
CHAT = (
  "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def gpt2(path: pathlib.Path, **changes: Any) -> pathlib.Path:
  """Writes a GPT-2 whose byte-level BPE adds no BOS."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=340,
    special_tokens=["<|endoftext|>", *_ROLES],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  end = "<|endoftext|>"
  names = dict(eos_token=end, bos_token=end, unk_token=end)
  _write(path, tokenizer, {"tokenizer_class": "GPT2Tokenizer", **names})
  return _model(path, "gpt2", tokenizer, bos=0, eos=0, **changes)


def llama(path: pathlib.Path, **changes: Any) -> pathlib.Path:
  """Writes a Llama whose tokenizer begins texts with <s> and a space."""
  tokenizer = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", byte_fallback=True)
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(content=" ", left=1),
    ]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<unk>", "<s>", "</s>", *_ROLES]
    + [f"<0x{i:02X}>" for i in range(256)],
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  settings = json.loads(tokenizer.to_str())
  settings["added_tokens"] = [  # bytes are parts of texts
    t for t in settings["added_tokens"] if not t["content"].startswith("<0x")
  ]
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
  )
  names = dict(eos_token="</s>", bos_token="<s>", unk_token="<unk>")
  _write(
    path, tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast"} | names
  )
  return _model(path, "llama", tokenizer, bos=1, eos=2, **changes)


def _write(path: pathlib.Path, tokenizer: Any, config: dict[str, Any]) -> None:
  path.mkdir(parents=True, exist_ok=True)
  (path / "tokenizer.json").write_text(tokenizer.to_str())
  config = {**config, "chat_template": CHAT, "pad_token": config["eos_token"]}
  (path / "tokenizer_config.json").write_text(json.dumps(config))


def _model(
  path: pathlib.Path, name: str, tokenizer: Any, **changes: Any
) -> pathlib.Path:
  bos, eos = changes.pop("bos"), changes.pop("eos")
  length = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[name]
  settings = {length: 64, "bos_token_id": bos, "eos_token_id": eos, **changes}
  theirs = tiny.make(
    name, vocab_size=tokenizer.get_vocab_size(), pad_token_id=None, **settings
  )
  tiny.save(theirs, path)
  return path
