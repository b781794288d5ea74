"""Tokenizers of few words for the tiny models of `tiny`, with 36 or 37 ids."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

WORDS = [f"w{i}" for i in range(32)]
EOS, BOS, UNK, PAD = "</s>", "<s>", "<unk>", "[PAD]"
# What the tokenizer says of padding.
PADS = ("own", "eos", "none")


def write(
  folder: pathlib.Path, pad: str, *, spaces: bool = False, **settings: Any
) -> None:
  """Writes the tokenizer's files into the directory of a model.

  Args:
    folder: the directory.
    pad: one of PADS.
    spaces: writes a space ahead of each text, as Llama's tokenizers do.
    **settings: more of tokenizer_config.json.
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
  folder.mkdir(exist_ok=True)
  (folder / "tokenizer.json").write_text(tokenizer.to_str())
  (folder / "tokenizer_config.json").write_text(
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
