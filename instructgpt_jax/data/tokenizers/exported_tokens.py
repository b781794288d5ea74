"""Special tokens of an exported directory: ids, and the files that name them.

`transformers` reads special tokens from four files. An export writes the same
ones into each: a batch is padded by the tokenizer's files, and the padding is
left out of a score by config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import sentencepiece
import tokenizers

from instructgpt_jax.data.tokenizers import (
  HuggingFace,
  Tokenizer,
  classes,
  tokenizer_json,
)
from instructgpt_jax.errors import UserError

_SETTINGS = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")


class Exported(NamedTuple):
  """Tokenizer files of an export and the ids that they name.

  Attributes:
    files: file name → content.
    ids: config.json's eos_token_id (one, or a list whose first ends our
      replies), and pad_token_id and bos_token_id where there are such.
    pad: text of the padding token; "" where there is none.
    adds_pad: whether the tokenizer lacks it.
  """

  files: dict[str, bytes]
  ids: dict[str, int | list[int]]
  pad: str = ""
  adds_pad: bool = False


def export(tokenizer: Tokenizer, *, needs_pad: bool) -> Exported:
  """Returns the files of a tokenizer for `transformers`.

  A reward model needs a padding token: `transformers` takes the score at the
  last token that is not padding, and our rows end with end-of-text, which must
  not count as padding. A language model keeps the padding of its tokenizer,
  since a new token would need a row that can be sampled.

  Args:
    tokenizer: the tokenizer of a stage.
    needs_pad: adds a padding token where the tokenizer has none of its own.
  """
  files = dict(tokenizer_json.files(tokenizer))
  stops = list(tokenizer.stop_ids)
  ends = {tokenizer.token(i) for i in (*stops, tokenizer.document_end_id)}
  names: dict[str, str | None] = {}
  settings = _json(files.get(_SETTINGS))
  if _text(settings.get("eos_token")) not in ends - {""}:
    names["eos_token"] = tokenizer.token(tokenizer.eos_id) or None
  pad = tokenizer.pad_id if tokenizer.pad_id < tokenizer.base_size else None
  if pad is not None:
    names["pad_token"] = tokenizer.token(pad) or None
  elif needs_pad:
    files, names["pad_token"], pad = _with_pad(files)
  more = {"padding_side": "right"} if needs_pad else {}
  ids: dict[str, int | list[int]] = {
    "eos_token_id": stops if len(stops) > 1 else stops[0]
  }
  if pad is not None:
    ids["pad_token_id"] = pad
  if tokenizer.begin:
    ids["bos_token_id"] = tokenizer.begin[0]
  return Exported(
    _named(files, names, more),
    ids,
    names.get("pad_token") or "",
    adds_pad=tokenizer.pad_id >= tokenizer.base_size,
  )


def same_ids(a: Tokenizer, b: Tokenizer) -> bool:
  """Returns whether two tokenizers give all texts the same ids.

  An exported tokenizer may have a padding token that its base lacks; no text
  has its id.
  """
  return a.files == b.files or _meaning(a) == _meaning(b)


def _meaning(tokenizer: Tokenizer) -> list[Any]:
  settings = _json(tokenizer.files.get(_SETTINGS))
  template = settings.get("chat_template")
  templates = [
    tokenizer.files.get("chat_template.jinja", b"").removesuffix(b"\n"),
    template.removesuffix("\n") if isinstance(template, str) else template,
  ]
  if isinstance(tokenizer, HuggingFace):
    content: Any = json.loads(tokenizer.rust.to_str())
    for key in ("added_tokens", "truncation", "padding"):
      del content[key]
    ids = tokenizer.rust.get_vocab(with_added_tokens=True)
    content["ids"] = {t: i for t, i in ids.items() if i != tokenizer.pad_id}
  else:
    content = {
      name: content
      for name, content in tokenizer.files.items()
      if name not in (_SETTINGS, _MAP, _ADDED, "generation_config.json")
    }
  return [
    content,
    templates,
    tokenizer.pad_id,
    tokenizer.eos_id,
    tokenizer.begin,
  ]


def reads_otherwise(files: Mapping[str, bytes], model_type: str) -> str:
  """Returns the class by which `AutoTokenizer` reads an export otherwise.

  It takes a model type's own class for some, whatever the files say.

  Args:
    files: the files of an export.
    model_type: of its config.json.

  Returns:
    "" where it reads the export as it is.
  """
  settings = _json(files.get(_SETTINGS))
  name = classes.of(
    {_SETTINGS: settings, "config.json": {"model_type": model_type}}
  )
  if "tokenizer.json" not in files or model_type not in classes.FORCED:
    return ""
  content = _json(files["tokenizer.json"])
  rebuilt = classes.rebuilt(name, content, settings)
  return "" if rebuilt and classes.same(rebuilt, content) else name


def _json(content: bytes | None) -> dict[str, Any]:
  value = json.loads(content) if content else {}
  return value if isinstance(value, dict) else {}


def _with_pad(files: dict[str, bytes]) -> tuple[dict[str, bytes], str, int]:
  """Adds a padding token after all others: (files, its text, its id)."""
  if "tokenizer.json" in files:
    content, name, index = _with_fast_pad(files["tokenizer.json"])
    return files | {"tokenizer.json": content}, name, index
  model = sentencepiece.SentencePieceProcessor(
    model_proto=files["tokenizer.model"]
  )
  settings = _json(files.get(_SETTINGS))
  added = dict(settings.get("added_tokens_decoder") or {})
  older = _json(files.get(_ADDED))
  known = {model.id_to_piece(i) for i in range(model.vocab_size())}
  name = _new_name(known | {t["content"] for t in added.values()} | set(older))
  index = max([model.vocab_size() - 1, *map(int, added), *older.values()]) + 1
  added[str(index)] = _added(name)
  settings["added_tokens_decoder"] = added
  files = files | {_SETTINGS: _bytes(settings)}
  if older:
    files[_ADDED] = _bytes(older | {name: index})
  return files, name, index


def _with_fast_pad(content: bytes) -> tuple[bytes, str, int]:
  """Applies `_with_pad` to a tokenizer.json."""
  vocab = tokenizers.Tokenizer.from_str(content.decode()).get_vocab()
  name = _new_name(vocab)
  values = json.loads(content)
  token = _added(name)
  for index in (max(vocab.values()) + 1, len(vocab)):
    added = [*(values.get("added_tokens") or []), {"id": index, **token}]
    new = _bytes(values | {"added_tokens": added})
    fast = tokenizers.Tokenizer.from_str(new.decode())
    if fast.token_to_id(name) == index and index not in vocab.values():
      return new, name, index
  raise UserError(
    "its ids have gaps, so that no padding token can be added",
    file="tokenizer.json",
    fix="add a padding token to the tokenizer of the base",
    code="no_padding_token",
  )


def _added(name: str) -> dict[str, Any]:
  return {
    "content": name,
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
  }


def _new_name(known: Any) -> str:
  name = next((n for n in _PAD_NAMES if n not in known), "<pad>")
  while name in known:
    name = f"<{name}>"
  return name


def _named(
  files: dict[str, bytes],
  names: Mapping[str, str | None],
  more: Mapping[str, Any],
) -> dict[str, bytes]:
  """Writes special tokens into the settings; a file that agrees stays."""
  names = {key: name for key, name in names.items() if name is not None}
  settings = _json(files.get(_SETTINGS))
  before = json.dumps(settings)
  settings.setdefault(
    "tokenizer_class",
    "PreTrainedTokenizerFast"
    if "tokenizer.json" in files
    else "LlamaTokenizer",
  )
  for key, name in names.items():
    if _text(settings.get(key)) != name:
      settings[key] = name
  settings |= more
  if json.dumps(settings) != before:
    files = files | {_SETTINGS: _bytes(settings)}
  if _MAP in files:
    older = _json(files[_MAP])
    newer = {
      key: value
      if key not in names or _text(value) == names[key]
      else names[key]
      for key, value in older.items()
    }
    newer |= {key: name for key, name in names.items() if key not in newer}
    if newer != older:
      files = files | {_MAP: _bytes(newer)}
  return files


def _text(token: Any) -> Any:
  """Returns the text of a special token, which may be an object."""
  return token.get("content") if isinstance(token, dict) else token


def _bytes(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
