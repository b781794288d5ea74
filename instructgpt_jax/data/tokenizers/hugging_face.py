"""Tokenizers of the `tokenizers` library, which tokenizer.json describes."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from instructgpt_jax.data.tokenizers import base, classes, settings
from instructgpt_jax.data.tokenizers.hidden import Hidden, unused_characters
from instructgpt_jax.data.tokenizers.special_tokens import (
  ADDED,
  TOKENIZER_CONFIG,
  SpecialTokens,
  Vocabulary,
  named_tokens,
  reconcile,
)
from instructgpt_jax.errors import UserError

TOKENIZER = "tokenizer.json"
_SPECIAL = ("eos_token", "bos_token", "pad_token")
# Texts that classes of `transformers` split differently.
_PROBES = ("a 12345 b", "e\u0301", "  two  spaces\n\n yes", "It's IT'S", "\n a")


class HuggingFace(base.Tokenizer):
  """A `tokenizers` model, from tokenizer.json or from GPT-2's two files."""

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    special: SpecialTokens,
    unk_id: int = -1,
  ):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A user's "<|endoftext|>" is text, never the token that ends a reply.
    tokenizer.encode_special_tokens = True
    self._tokenizer = tokenizer
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    super().__init__(max(vocab.values()) + 1, special.pad_id, special.eos_id)
    names = _special_names(tokenizer)
    self._special = pattern(names)
    self._special_ids = {vocab[name] for name in names}
    self._special_ids |= {self.pad_id, self.eos_id}
    self._special_ids.discard(unk_id)
    self.begin = self._beginning()
    self.bos_id = special.bos_id
    if self.bos_id < 0 and self.begin:
      self.bos_id = self.begin[0]

  def _beginning(self) -> tuple[int, ...]:
    """Returns the ids that the tokenizer puts before a text."""
    whole, alone = (
      self._tokenizer.encode("a", add_special_tokens=special).ids
      for special in (True, False)
    )
    ahead = len(whole) - len(alone)
    starts = (i for i in range(ahead + 1) if whole[i:][: len(alone)] == alone)
    return tuple(whole[: next(starts, 0)])

  @property
  def rust(self) -> tokenizers.Tokenizer:
    """Returns the object of the `tokenizers` library."""
    return self._tokenizer

  def token(self, token_id: int) -> str:
    return self._tokenizer.id_to_token(token_id) or ""

  def token_id(self, token: str) -> int:
    token_id = self._tokenizer.token_to_id(token)
    return -1 if token_id is None else token_id

  @functools.cached_property
  def _marking(self) -> tokenizers.Tokenizer:
    """Returns the object that recognises special tokens in texts."""
    copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    copy.encode_special_tokens = False
    return copy

  @functools.cached_property
  def _renaming(self) -> _Renaming:
    return _Renaming(self._tokenizer)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encodings = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [
      e.ids if self._special_ids.isdisjoint(e.ids) else self._as_text(text)
      for text, e in zip(texts, encodings, strict=True)
    ]

  def _as_text(self, text: str) -> list[int]:
    """Encodes a text that contains special tokens of the vocabulary as text."""
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
      if i in self._special_ids:
        letters = [self._letter(c) for c in text[start:end]]
        ids += [j for part in letters for j in part]
      else:
        ids.append(i)
    return ids

  def _letter(self, letter: str) -> list[int]:
    """Encodes one character inside a text."""
    head, whole = (
      self._tokenizer.encode(text, add_special_tokens=False).ids
      for text in ("\n", f"\n{letter}")
    )
    ids = whole[len(head) :] if whole[: len(head)] == head else whole
    return [i for i in ids if i not in self._special_ids]

  def _encode_written(
    self, texts: Sequence[str], hidden: Hidden
  ) -> list[list[int]]:
    typed = set(hidden.original)
    plain = [t for t in texts if typed.isdisjoint(t)]
    encoded = iter(
      self._marking.encode_batch_fast(plain, add_special_tokens=False)
    )
    return [
      next(encoded).ids
      if typed.isdisjoint(text)
      else self._encode_renamed(text, hidden)
      for text in texts
    ]

  def _encode_renamed(self, text: str, hidden: Hidden) -> list[int]:
    """Encodes a text with special tokens of the template and of users."""
    renaming = self._renaming.unused_in([text, *hidden.original.values()])
    text = self._special.sub(renaming.rename, text)
    return self._split_typed(renaming, hidden.restore(text))

  def _split_typed(self, renaming: _Renaming, text: str) -> list[int]:
    encoding = renaming.tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
      if i in renaming.ids:
        ids.append(renaming.ids[i])
      elif i in self._special_ids:  # the model's own vocabulary has it
        ids += [j for c in text[start:end] for j in self._letter(c)]
      else:
        ids.append(i)
    return ids

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=True)

  @functools.cached_property
  def _context_ids(self) -> tuple[int, ...]:
    (space,) = self.encode_after([" a"], ["a"])
    if self.decode(space) == " a":
      return ()
    return tuple(self.encode("a"))

  @property
  def context_ids(self) -> tuple[int, ...]:
    return self._context_ids


class _Renaming:
  """A tokenizer whose special tokens have names that no user typed.

  It recognises these names, and reads the names of special tokens as text.

  Attributes:
    tokenizer: the renamed tokenizer.
    ids: id of a new name → id of the special token.
  """

  def __init__(self, original: tokenizers.Tokenizer, mark: str = "\U0010fffd"):
    self._original, self._mark = original, mark
    self.tokenizer = tokenizers.Tokenizer.from_str(original.to_str())
    self.tokenizer.encode_special_tokens = True
    tokens = [
      (i, token)
      for i, token in sorted(original.get_added_tokens_decoder().items())
      if token.special
    ]
    self._names = {
      token.content: f"{mark}{number}{mark}"
      for number, (_, token) in enumerate(tokens)
    }
    self.tokenizer.add_tokens(
      [
        tokenizers.AddedToken(
          self._names[token.content],
          single_word=token.single_word,
          lstrip=token.lstrip,
          rstrip=token.rstrip,
          normalized=token.normalized,
        )
        for _, token in tokens
      ]
    )
    self.ids = {
      self.tokenizer.token_to_id(self._names[token.content]): i
      for i, token in tokens
    }

  def rename(self, match: re.Match[str]) -> str:
    """Returns the new name of a special token."""
    return self._names[match.group()]

  def unused_in(self, texts: Iterable[str]) -> _Renaming:
    """Returns this object, or one whose names do not occur in the texts."""
    if not any(self._mark in text for text in texts):
      return self
    return _Renaming(self._original, next(unused_characters(texts)))


def pattern(names: Iterable[str]) -> re.Pattern[str]:
  """Finds tokens by their names, the longest first."""
  ordered = sorted(filter(None, names), key=len, reverse=True)
  return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _special_names(tokenizer: tokenizers.Tokenizer) -> list[str]:
  tokens = tokenizer.get_added_tokens_decoder().values()
  return [token.content for token in tokens if token.special]


def _unknown_id(description: Mapping[str, Any], ids: Mapping[str, int]) -> int:
  """Returns the id of unknown text in a tokenizer.json; -1 for none."""
  model = description.get("model") or {}
  unk_id = ids.get(model.get("unk_token") or "", model.get("unk_id"))
  return -1 if unk_id is None else unk_id


def load(path: pathlib.Path) -> HuggingFace:
  """Loads a tokenizer.json with the files beside it.

  Raises:
    UserError: a file is damaged, or two contradict each other.
  """
  content = settings.read_bytes(path)
  result = build(dict(settings.parsed(content, path)), path)
  result.files = {TOKENIZER: content, **result.files}
  return result


def build(
  description: dict[str, Any],
  path: pathlib.Path,
  beside: settings.Settings | None = None,
) -> HuggingFace:
  """Makes a tokenizer with the files beside it, which are in its `files`.

  Args:
    description: the content of a tokenizer.json.
    path: the tokenizer's file.
    beside: the files beside it; None reads them.

  Raises:
    UserError: a file is damaged, or two contradict each other.
  """
  beside = beside or settings.read(path.parent)
  reader = classes.of(beside.files)
  try:
    ids = tokenizers.Tokenizer.from_str(json.dumps(description)).get_vocab()
    description = _with_added(description, ids, beside, path)
    if reader == classes.LLAMA:
      description = _as_llama(description, beside)
    if reader in (classes.GPT2, classes.NEOX):
      description = _as_gpt2(description, beside)
    if path.name != TOKENIZER:
      description = _with_begin(description, ids, beside)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f"is not a Hugging Face tokenizer ({settings.short(error)})",
      file=str(path),
      fix=settings.FIX,
      code="bad_tokenizer",
    ) from error
  ids = tokenizer.get_vocab(with_added_tokens=True)
  vocabulary = Vocabulary(
    path.name,
    ids,
    frozenset(tokenizer.get_added_tokens_decoder()),
    unk_id=_unknown_id(description, ids),
  )
  special = reconcile(beside.files, vocabulary, beside.directory)
  result = HuggingFace(tokenizer, special, vocabulary.unk_id)
  result.reader = reader
  result.files = result._read_settings(beside, vocabulary, special)
  result.notes += _bos_note(result, beside)
  result.notes += _class_note(description, reader, beside)
  return result


def _with_added(
  description: dict[str, Any],
  ids: Mapping[str, int],
  beside: settings.Settings,
  path: pathlib.Path,
) -> dict[str, Any]:
  """Returns tokenizer.json with added and named tokens of other files."""
  added = {t["content"]: dict(t) for t in description.get("added_tokens") or ()}
  size = max(ids.values(), default=-1) + 1
  for i, token in beside.added_tokens().items():
    text = token["content"]
    if ids.get(text, i) != i or (text not in ids and i != size):
      other = ids.get(text, size)
      in_decoder = str(i) in (beside.config.get("added_tokens_decoder") or {})
      raise UserError(
        f"gives {text!r} the id {i}, which is {other} by {path.name}",
        file=f"{beside.directory}/{TOKENIZER_CONFIG if in_decoder else ADDED}",
        field=text,
        fix=f"give the files that belong to {path.name}",
        code="added_token_conflict",
      )
    if text not in ids:
      added[text] = _added(text, i, **token)
      size += 1
  for key, text in named_tokens(beside.files, beside.directory).items():
    if text in ids and len(text) > 1 and key in _SPECIAL:
      added.setdefault(text, _added(text, ids[text]))["special"] = True
  tokens = sorted(added.values(), key=lambda token: token["id"])
  return {**description, "added_tokens": tokens}


def _added(text: str, token_id: int, **flags: Any) -> dict[str, Any]:
  """Returns an entry of tokenizer.json's added tokens."""
  names = ("single_word", "lstrip", "rstrip", "normalized", "special")
  token = {name: bool(flags.get(name, False)) for name in names}
  return {"id": token_id, "content": text, **token}


def _as_llama(
  description: dict[str, Any], beside: settings.Settings
) -> dict[str, Any]:
  """Returns tokenizer.json as LlamaTokenizer of `transformers` reads it.

  There the file's normalizer, which puts a space behind every special token,
  gives way to one that puts it at the beginning of a text, if the settings
  want it.
  """
  normalizer = description.get("normalizer") or {}
  parts = normalizer.get("normalizers") or [normalizer]
  splits = description.get("pre_tokenizer") or {}
  prepends = [part.get("type") for part in parts] == ["Prepend", "Replace"]
  if not prepends and splits.get("type") != "Metaspace":
    return description
  scheme = "always" if beside.config.get("legacy", False) else "first"
  if beside.config.get("add_prefix_space") is False:
    scheme = "never"
  return {**description, **classes.metaspace(scheme)}


def _as_gpt2(
  description: dict[str, Any], beside: settings.Settings
) -> dict[str, Any]:
  """Returns tokenizer.json with the prefix space of GPT2Tokenizer.

  There tokenizer_config.json alone says whether texts begin with a space.
  Behind other splits, ByteLevel would put one ahead of every piece, from which
  the text does not come back: it then puts none.
  """
  splits = description.get("pre_tokenizer") or {}
  parts = splits.get("pretokenizers") or [splits]
  if parts[-1].get("type") != "ByteLevel":
    return description
  adds = len(parts) == 1 and bool(beside.config.get("add_prefix_space", False))
  letters = {**parts[-1], "add_prefix_space": adds}
  if "pretokenizers" in splits:
    letters = {**splits, "pretokenizers": [*parts[:-1], letters]}
  return {**description, "pre_tokenizer": letters}


def _with_begin(
  description: dict[str, Any],
  ids: Mapping[str, int],
  beside: settings.Settings,
) -> dict[str, Any]:
  """Returns a vocabulary whose texts begin as the settings say."""
  names = named_tokens(beside.files, beside.directory)
  name = names.get("bos_token", "")
  if not beside.config.get("add_bos_token") or name not in ids:
    return description
  begin = {"SpecialToken": {"id": name, "type_id": 0}}
  texts = [{"Sequence": {"id": i, "type_id": 0}} for i in "AB"]
  token = {"id": name, "ids": [ids[name]], "tokens": [name]}
  processor = {
    "type": "TemplateProcessing",
    "single": [begin, texts[0]],
    "pair": [begin, *texts],
    "special_tokens": {name: token},
  }
  return {**description, "post_processor": processor}


def _bos_note(
  tokenizer: HuggingFace, beside: settings.Settings
) -> tuple[str, ...]:
  """Says that tokenizer.json and tokenizer_config.json differ about BOS."""
  wish = beside.config.get("add_bos_token")
  if not isinstance(wish, bool) or wish == bool(tokenizer.begin):
    return ()
  if wish and tokenizer.bos_id < 0:
    return ()
  does = "begins texts with" if tokenizer.begin else "begins no text with"
  return (
    f"{TOKENIZER} {does} {tokenizer.token(tokenizer.bos_id)}, whatever"
    f" add_bos_token of {TOKENIZER_CONFIG} says",
  )


def _class_note(
  description: Mapping[str, Any], reader: str, beside: settings.Settings
) -> tuple[str, ...]:
  """Says that a class of `transformers` does not read tokenizer.json."""
  other = classes.rebuilt(reader, description, beside.config)
  if other is None or classes.same(other, description):
    return ()
  try:
    theirs = tokenizers.Tokenizer.from_str(json.dumps(other))
  except Exception:  # it is not known what they do then
    return ()
  ours = tokenizers.Tokenizer.from_str(json.dumps(description))
  for text in _PROBES:
    if ours.encode(text).ids != theirs.encode(text).ids:
      return (
        f"{TOKENIZER} is used; {reader}, as which transformers 5 reads the"
        f" directory, gives other ids, for example of {text!r}",
      )
  return ()
