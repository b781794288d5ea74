"""Converts a tokenizer that was trained here to a tokenizer.json.

Other programs then read text as we do, but for two things: to them the text of
a special token is that token, and unknown words in a row are as many tokens,
not one. Models of other makers bring their own.
"""

from __future__ import annotations

import json

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from instructgpt_jax.data.tokenizers import (
  NEWLINE_WORD,
  HuggingFace,
  SentencePiece,
  Tokenizer,
  classes,
)

# Nothing merges with newlines, which go in pairs; the odd one is the last, or
# (as unigram breaks ties) the first.
_NEWLINES = {
  "bpe": "\n\n|\n",
  "unigram": "(?<!\n)\n(?=(\n\n)+(?!\n))|\n\n|\n",
}
_SETTINGS = "tokenizer_config.json"
_SPACE = "▁"  # what sentencepiece writes for a space


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
  """Returns the tokenizer's files, with a tokenizer.json where possible.

  A sentencepiece model that was not trained here stays as it is: others apply
  normalisations of their own.
  """
  if isinstance(tokenizer, HuggingFace):
    if "tokenizer.json" in tokenizer.files:
      return _portable(tokenizer)
    converted = tokenizer.rust
  elif isinstance(tokenizer, SentencePiece) and tokenizer.is_ours:
    converted = _converted(tokenizer)
  else:
    return tokenizer.files
  names = {
    "eos_token": tokenizer.token(tokenizer.document_end_id),
    "pad_token": tokenizer.token(tokenizer.pad_id),
  }
  config = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
  config |= {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    **{key: name for key, name in names.items() if name},
  }
  beside = {
    name: content
    for name, content in tokenizer.files.items()
    if name in ("special_tokens_map.json", "chat_template.jinja")
  }
  return {
    **beside,
    "tokenizer.json": converted.to_str().encode(),
    "tokenizer_config.json": json.dumps(config).encode(),
  }


def _portable(tokenizer: HuggingFace) -> dict[str, bytes]:
  """Returns files that any class of `transformers` reads as this tokenizer.

  tokenizer.json says what is used here, also where a class or config.json
  changed what it said. Where the class would make another tokenizer of it, a
  class that reads it as it is takes its place.
  """
  files = dict(tokenizer.files)
  content = files["tokenizer.json"].decode("utf-8-sig")
  used = json.loads(tokenizer.rust.to_str())
  written = json.loads(tokenizers.Tokenizer.from_str(content).to_str())
  if not classes.same(used, written):
    text = json.dumps(used, indent=2, ensure_ascii=False)
    files["tokenizer.json"] = text.encode()
  config = json.loads(files.get(_SETTINGS, b"{}").decode("utf-8-sig"))
  name = classes.of({_SETTINGS: config})
  rebuilt = classes.rebuilt(name, used, config)
  if rebuilt is None or not classes.same(rebuilt, used):
    config["tokenizer_class"] = classes.AS_IS
    files[_SETTINGS] = json.dumps(config, indent=2).encode()
  return files


def _converted(tokenizer: SentencePiece) -> tokenizers.Tokenizer:
  pieces, kind = tokenizer.pieces, tokenizer.kind
  vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
  unknown = pieces[tokenizer.unk_id][0]
  if kind == "word":
    model = models.WordLevel(vocab, unk_token=unknown)
  elif kind == "unigram":
    model = models.Unigram(pieces, tokenizer.unk_id, byte_fallback=True)
  else:
    model = models.BPE(
      vocab,
      _merges(vocab),
      unk_token=unknown,
      byte_fallback=True,
      fuse_unk=True,
    )
  result = tokenizers.Tokenizer(model)
  result.add_special_tokens(
    [pieces[i][0] for i in (tokenizer.pad_id, tokenizer.eos_id)]
  )
  if kind == "word":
    _split_at_spaces(result)
  else:
    result.normalizer = normalizers.Replace(" ", _SPACE)
    result.pre_tokenizer = pre_tokenizers.Split(
      Regex(_NEWLINES[kind]), "isolated"
    )
    result.decoder = decoders.Sequence(
      [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
  return result


def _split_at_spaces(tokenizer: tokenizers.Tokenizer) -> None:
  """Words are what stands between spaces; a newline is one."""
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.Replace("\n", f" {NEWLINE_WORD} "),
      normalizers.Replace(Regex(" +"), " "),
      normalizers.Replace(Regex("^ | $"), ""),
      normalizers.Replace(Regex("^(?=.)| "), _SPACE),
    ]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Fuse(),
      decoders.Replace(_SPACE, " "),
      decoders.Replace(Regex(f" ?{NEWLINE_WORD} ?"), "\n"),
      decoders.Strip(" ", 1, 0),
    ]
  )


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
  """Returns all pairs that make a piece, those of earlier pieces first."""
  merges = []
  for piece, rank in vocab.items():
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in vocab and right in vocab:
        merges.append((rank, vocab[left], vocab[right], left, right))
  return [(left, right) for *_, left, right in sorted(merges)]
