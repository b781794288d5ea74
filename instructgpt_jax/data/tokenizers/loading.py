"""Finds the files of a tokenizer."""

from __future__ import annotations

import difflib
import pathlib

from instructgpt_jax import gguf_header
from instructgpt_jax.data.tokenizers import (
  gguf_vocabulary,
  gpt2,
  hugging_face,
  sentencepiece_model,
)
from instructgpt_jax.data.tokenizers.base import Tokenizer
from instructgpt_jax.data.tokenizers.settings import FIX
from instructgpt_jax.data.tokenizers.special_tokens import TOKENIZER_CONFIG
from instructgpt_jax.errors import UserError


def _near(path: pathlib.Path) -> str:
  parent = path.parent
  if not parent.is_dir():
    return ""
  names = [p.name for p in parent.iterdir()]
  near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
  return f"did you mean {near[0]!r}? " if near else ""


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
  """Loads any of the known kinds of tokenizer.

  Args:
    path: a sentencepiece .model, a tokenizer.json, a .tiktoken file, a GGUF
      model, a directory with encoder.json and vocab.bpe, or one that `save`
      wrote (or that has such a directory called `tokenizer` in it).
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise UserError(
      "no such tokenizer",
      file=str(path),
      fix=_near(path) + FIX,
      code="no_such_file",
    )
  if path.is_dir():
    for directory in (path, path / "tokenizer"):
      for name, load in (
        ("tokenizer.json", hugging_face.load),
        ("tokenizer.model", sentencepiece_model.load),
        ("tokenizer.tiktoken", gpt2.load_tiktoken),
      ):
        if (directory / name).exists():
          return load(directory / name)
      if (directory / "encoder.json").exists() or (
        directory / "vocab.json"
      ).exists():
        return gpt2.load(directory)
    for pattern, load in (
      ("*.model*", sentencepiece_model.load),
      ("*tokenizer*.json", hugging_face.load),
      ("*.tiktoken", gpt2.load_tiktoken),
    ):
      candidates = sorted(
        p
        for p in path.glob(pattern)
        if p.is_file() and p.name != TOKENIZER_CONFIG
      )
      if len(candidates) == 1:
        return load(candidates[0])
    raise _no_tokenizer(path)
  if path.name in ("encoder.json", "vocab.bpe", "vocab.json", "merges.txt"):
    return gpt2.load(path.parent)
  if path.suffix == ".json":
    return hugging_face.load(path)
  if path.suffix == ".tiktoken":
    return gpt2.load_tiktoken(path)
  if ".model" in path.suffixes:
    return sentencepiece_model.load(path)
  if gguf_header.is_gguf(path):
    return gguf_vocabulary.load(path)
  raise UserError(
    "is not a known kind of tokenizer file",
    file=str(path),
    fix=FIX,
    code="unknown_tokenizer_file",
  )


def _no_tokenizer(path: pathlib.Path) -> UserError:
  if (path / TOKENIZER_CONFIG).exists():
    return UserError(
      f"holds {TOKENIZER_CONFIG}, but neither tokenizer.json nor"
      " tokenizer.model",
      file=str(path),
      fix="copy the model's tokenizer.json or tokenizer.model there",
      code="no_tokenizer",
    )
  return UserError(
    "holds no tokenizer file", file=str(path), fix=FIX, code="no_tokenizer"
  )
