"""Tokenizers in the metadata of a GGUF file.

A file has the tokens, their scores or merges, and a name of the rule by which
texts are split into words. It becomes the tokenizer.json of the original model.
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from instructgpt_jax import gguf_header
from instructgpt_jax.data.tokenizers import (
  classes,
  converted,
  hugging_face,
  settings,
  special_tokens,
)
from instructgpt_jax.errors import UserError

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_DIRECTORY = "import the model's Hugging Face directory instead"
_LETTERS = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
  "use_regex": True,
}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_TEKKEN = (
  rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+"
  rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Tokens that fill the list up to the number of the model's vocabulary rows.
_FILL = re.compile(r"\[PAD\d+\]")
# Kinds of model whose tokens are ordered by id; their scores say nothing.
_ORDERED = ("gemma", "gemma2", "gemma3")
_MODEL_TYPES = {"gemma3": "gemma3_text"}
# Key of the metadata → key of tokenizer_config.json.
_NAMED = {
  "bos_token_id": "bos_token",
  "eos_token_id": "eos_token",
  "unknown_token_id": "unk_token",
  "padding_token_id": "pad_token",
}
_SENTENCEPIECE_IDS = {
  "unknown_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
# Ids that end a reply, beside the end of text.
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")


class _Rule(NamedTuple):
  """How a byte-level BPE splits texts into words.

  Attributes:
    pattern: regular expression of a word; "" for GPT-2's.
    splits_digits: whether each digit is a word, before the pattern applies.
    whole_words: whether a word that is a token is not built by merges.
    composes: whether texts are normalised to NFC.
    begins: whether texts begin with BOS, unless the file says otherwise.
  """

  pattern: str = ""
  splits_digits: bool = False
  whole_words: bool = False
  composes: bool = False
  begins: bool = False


_LLAMA3_RULE = _Rule(_LLAMA3, whole_words=True, begins=True)
_RULES = {
  "gpt-2": _Rule(),
  "smollm": _Rule(splits_digits=True),
  "llama3": _LLAMA3_RULE,
  "llama-v3": _LLAMA3_RULE,
  "llama-bpe": _LLAMA3_RULE,
  "falcon3": _LLAMA3_RULE,
  "pixtral": _LLAMA3_RULE,
  "dbrx": _Rule(_LLAMA3),
  "smaug-bpe": _Rule(_LLAMA3),
  "qwen2": _Rule(_QWEN2, composes=True),
  "deepseek-r1-qwen": _Rule(_QWEN2),
  "tekken": _Rule(_TEKKEN, whole_words=True),
}


class _Vocabulary(NamedTuple):
  """The tokens of a file, by id; those at its end that only fill are gone."""

  path: str
  tokens: list[str]
  kinds: list[int]
  scores: list[float]


def load(path: pathlib.Path) -> hugging_face.HuggingFace:
  """Loads the tokenizer of a GGUF file.

  Raises:
    UserError: the file is damaged, or has no tokenizer or one of a kind that is
      not supported.
  """
  metadata = gguf_header.read_header(path).metadata
  vocabulary = _read_vocabulary(metadata, str(path))
  model = metadata[f"{_PREFIX}model"]
  if model == "llama":
    description = _sentencepiece(vocabulary, metadata)
  else:
    description = _byte_level(vocabulary, metadata)
  beside = _settings(vocabulary, metadata)
  result = hugging_face.build(description, path, beside)
  content = result.rust.to_str(pretty=True).encode()
  result.files = {hugging_face.TOKENIZER: content, **result.files}
  return result


def _read_vocabulary(metadata: Mapping[str, Any], path: str) -> _Vocabulary:
  model = metadata.get(f"{_PREFIX}model", "none")
  tokens = metadata.get(f"{_PREFIX}tokens")
  if model not in ("gpt2", "llama", "none"):
    raise UserError(
      f"its tokenizer is of kind {model!r}; supported: gpt2, llama",
      file=path,
      field=f"{_PREFIX}model",
      fix=_DIRECTORY,
      code="unknown_tokenizer",
    )
  if model == "none" or not isinstance(tokens, list) or not tokens:
    raise UserError(
      "has no tokenizer",
      file=path,
      field=f"{_PREFIX}tokens",
      fix=_DIRECTORY,
      code="no_tokenizer",
    )
  size = len(tokens)
  kinds = _numbers(metadata, "token_type", size, converted.NORMAL, path)
  scores = _numbers(metadata, "scores", size, 0.0, path)
  while size and kinds[size - 1] == converted.UNUSED:
    if not _FILL.fullmatch(tokens[size - 1]):
      break
    size -= 1
  if len(set(tokens[:size])) < size:
    counts = collections.Counter(tokens[:size])
    ((twice, _),) = counts.most_common(1)
    raise _bad(path, "tokens", f"has the token {twice!r} twice")
  return _Vocabulary(path, tokens[:size], kinds[:size], scores[:size])


def _bad(path: str, key: str, problem: str) -> UserError:
  return UserError(
    problem,
    file=path,
    field=_PREFIX + key,
    fix=_DIRECTORY,
    code="bad_tokenizer",
  )


def _numbers(
  metadata: Mapping[str, Any], key: str, size: int, default: Any, path: str
) -> list[Any]:
  """Returns a list with a number for each token."""
  values = metadata.get(_PREFIX + key)
  if values is None:
    return [default] * size
  if isinstance(values, str | int | float) or len(values) != size:
    raise _bad(path, key, f"does not have a value for each of {size} tokens")
  return list(values) if isinstance(values, list) else values.tolist()


def _byte_level(
  vocabulary: _Vocabulary, metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the tokenizer.json of a BPE on bytes, like GPT-2's."""
  rule = _rule(vocabulary, metadata)
  merges = metadata.get(f"{_PREFIX}merges")
  if not isinstance(merges, list):
    raise _bad(vocabulary.path, "merges", "is missing, or is no list of texts")
  pairs = [re.split("(?<=.) ", merge, maxsplit=1) for merge in merges]
  kinds = (converted.UNKNOWN, converted.CONTROL, converted.USER_DEFINED)
  flags = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
  )
  return {
    "version": "1.0",
    "added_tokens": [
      {"id": i, "content": token, "special": kind != kinds[-1], **flags}
      for i, (token, kind) in enumerate(
        zip(vocabulary.tokens, vocabulary.kinds, strict=True)
      )
      if kind in kinds
    ],
    "normalizer": {"type": "NFC"} if rule.composes else None,
    "pre_tokenizer": _words(rule),
    "post_processor": None,
    "decoder": _LETTERS,
    "model": {
      "type": "BPE",
      "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
      "merges": pairs,
      "ignore_merges": rule.whole_words,
    },
  }


def _rule(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> _Rule:
  """Returns the rule by which a byte-level BPE splits texts.

  Raises:
    UserError: the file names none that is known. Another rule would give other
      ids than those that the model was trained with.
  """
  name = metadata.get(f"{_PREFIX}pre", "")
  if name not in _RULES:
    problem = f"{name!r} is not supported" if name else "is missing"
    raise UserError(
      f"{problem}; it says how texts are split into words. Supported:"
      f" {', '.join(_RULES)}",
      file=vocabulary.path,
      field=f"{_PREFIX}pre",
      fix=_DIRECTORY,
      code="unknown_pre_tokenizer",
    )
  return _RULES[name]


def _words(rule: _Rule) -> dict[str, Any]:
  """Returns the pre_tokenizer of a tokenizer.json."""
  steps: list[dict[str, Any]] = []
  if rule.splits_digits:
    steps.append({"type": "Digits", "individual_digits": True})
  if rule.pattern:
    steps.append(
      {
        "type": "Split",
        "pattern": {"Regex": rule.pattern},
        "behavior": "Isolated",
        "invert": False,
      }
    )
  steps.append({**_LETTERS, "use_regex": not rule.pattern})
  if len(steps) == 1:
    return steps[0]
  return {"type": "Sequence", "pretokenizers": steps}


def _sentencepiece(
  vocabulary: _Vocabulary, metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the tokenizer.json of a sentencepiece BPE, like Llama's."""
  if metadata.get(f"{_PREFIX}remove_extra_whitespaces"):
    raise UserError(
      "is true, which is not supported",
      file=vocabulary.path,
      field=f"{_PREFIX}remove_extra_whitespaces",
      fix=_DIRECTORY,
      code="unknown_tokenizer",
    )
  ordered = metadata.get("general.architecture") in _ORDERED
  pieces = []
  rows = zip(*vocabulary[1:], strict=True)
  for i, (token, kind, score) in enumerate(rows):
    if token.strip(" ") == "" and kind == converted.USER_DEFINED:
      # Tokens of spaces are stored with spaces, which texts have no more when
      # tokens are looked up.
      token, kind = token.replace(" ", "▁"), converted.NORMAL
    pieces.append(converted.Piece(token, -i if ordered else score, kind))
  return converted.describe(
    pieces,
    unk_token=vocabulary.tokens[_token_id(vocabulary, metadata, *_UNKNOWN)],
    byte_fallback=converted.BYTE in vocabulary.kinds,
    add_prefix_space=_adds_space(metadata),
  )


_UNKNOWN = ("unknown_token_id", 0)


def _adds_space(metadata: Mapping[str, Any]) -> bool:
  return bool(metadata.get(f"{_PREFIX}add_space_prefix", True))


def _token_id(
  vocabulary: _Vocabulary,
  metadata: Mapping[str, Any],
  key: str,
  default: int = -1,
) -> int:
  """Returns the id of a special token; -1 where the file names none."""
  token_id = metadata.get(_PREFIX + key, default)
  if type(token_id) is not int or token_id >= len(vocabulary.tokens):
    raise UserError(
      f"is {token_id!r}, which is no id of its {len(vocabulary.tokens)} tokens",
      file=vocabulary.path,
      field=_PREFIX + key,
      fix=_DIRECTORY,
      code="special_token_unknown",
    )
  return token_id


def _settings(
  vocabulary: _Vocabulary, metadata: Mapping[str, Any]
) -> settings.Settings:
  """Returns what the files beside a tokenizer.json say."""
  is_llama = metadata[f"{_PREFIX}model"] == "llama"
  kind = metadata.get("general.architecture")
  kind = _MODEL_TYPES.get(kind, kind)
  defaults = _SENTENCEPIECE_IDS if is_llama else {}
  begins = True if is_llama else _rule(vocabulary, metadata).begins
  config: dict[str, Any] = {"tokenizer_class": _class(kind, is_llama)}
  for key, name in _NAMED.items():
    token_id = _token_id(vocabulary, metadata, key, defaults.get(key, -1))
    if token_id >= 0:
      config[name] = vocabulary.tokens[token_id]
  config["add_bos_token"] = bool(
    metadata.get(f"{_PREFIX}add_bos_token", begins)
  )
  if config["tokenizer_class"] == classes.LLAMA:
    config |= {"legacy": False, "add_prefix_space": _adds_space(metadata)}
  if isinstance(metadata.get(_TEMPLATE), str):
    config["chat_template"] = metadata[_TEMPLATE]
  stops = [_token_id(vocabulary, metadata, key) for key in _STOPS]
  stops = [i for i in dict.fromkeys(stops) if i >= 0]
  files: dict[str, dict[str, Any]] = {
    special_tokens.TOKENIZER_CONFIG: config,
    special_tokens.MODEL: {"model_type": kind},
  }
  if len(stops) > 1:
    files[special_tokens.GENERATION] = {"eos_token_id": stops}
  content = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
  saved = {special_tokens.TOKENIZER_CONFIG: content}
  return settings.Settings(vocabulary.path, files, saved)


def _class(kind: Any, is_llama: bool) -> str:
  """Returns the class of `transformers` that reads such a tokenizer."""
  if not is_llama:
    return classes.AS_IS
  return classes.GEMMA if str(kind).startswith("gemma") else classes.LLAMA
