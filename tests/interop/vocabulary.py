"""Small tokenizers for the models of `tiny`, with 36 or 37 ids."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

WORDS = [f"w{i}" for i in range(32)]
EOS, BOS, UNK, PAD = "</s>", "<s>", "<unk>", "[PAD]"
# The tokenizer's padding token.
PADS = ("own", "eos", "none")


def write(
  path: pathlib.Path, pad: str, *, spaces: bool = False, **settings: Any
) -> None:
  """Writes a tokenizer's files into a model's directory.

  Args:
    path: the directory.
    pad: one of PADS.
    spaces: whether to prepend a space to each text, as Llama's tokenizers do.
    **settings: further entries of tokenizer_config.json.
  """
  special = [EOS, BOS, UNK] + ([PAD] if pad == "own" else [])
  ahead = "▁" if spaces else ""
  vocab = {
    word: i
    for i, word in enumerate([*special, *(ahead + word for word in WORDS)])
  }
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNK))
  if spaces:
    tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(
    [AddedToken(name, special=True, normalized=False) for name in special]
  )
  pads = {"own": {"pad_token": PAD}, "eos": {"pad_token": EOS}, "none": {}}
  path.mkdir(exist_ok=True)
  (path / "tokenizer.json").write_text(tokenizer.to_str())
  (path / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "bos_token": BOS,
        "unk_token": UNK,
        **pads[pad],
        **settings,
      }
    )
  )
