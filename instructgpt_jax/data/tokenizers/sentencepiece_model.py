"""Tokenizers of the sentencepiece library."""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from instructgpt_jax.data.tokenizers import (
  base,
  classes,
  converted,
  hugging_face,
  settings,
)
from instructgpt_jax.data.tokenizers.hidden import Hidden
from instructgpt_jax.data.tokenizers.hugging_face import pattern
from instructgpt_jax.data.tokenizers.special_tokens import (
  ADDED,
  TOKENIZER_CONFIG,
  Vocabulary,
  named_tokens,
  reconcile,
)
from instructgpt_jax.data.tokenizers.special_tokens import MODEL as MODEL_CONFIG
from instructgpt_jax.errors import UserError

# A word vocabulary has no token for a bare newline: it is one more word.
NEWLINE_WORD = "<newline>"
MODEL = "tokenizer.model"
CHUNK = 1000  # characters
_SPACES = (" ", "▁")  # one to the model
_BOUNDARY = re.compile(r"[^\n]\n(?=[^\n])")


class SentencePiece(base.Tokenizer):
  """A sentencepiece model, with the tokens of the files beside it.

  Models that put a space in front of every text (Llama's, and ours of kind
  `word`) lose one leading space: a reply " yes" and "yes" are the same there,
  which is what makes a reply encode as it would in the middle of a text.
  """

  def __init__(self, proto: bytes, beside: settings.Settings | None = None):
    """Takes a model, and the files beside it.

    Args:
      proto: the content of tokenizer.model.
      beside: tokenizer_config.json and so on.

    Raises:
      UserError: two files contradict each other.
    """
    beside = beside or settings.Settings("", {}, {})
    self.reader = _reader(beside)
    self._sp, self._inner = _processors(proto, self.reader, beside)
    self._read_pieces()
    self._new = self._added_tokens(beside)
    vocabulary = self._vocabulary()
    special = reconcile(beside.files, vocabulary, beside.directory)
    size = max([self._sp.vocab_size() - 1, *self._new]) + 1
    super().__init__(size, special.pad_id, special.eos_id)
    self._ids = vocabulary.ids
    names = special.names
    controls = {self._sp.id_to_piece(i) for i in self._controls()}
    controls |= {names[n] for n in ("eos_token", "bos_token") if n in names}
    controls |= {
      t["content"] for t in beside.added_tokens().values() if t["special"]
    }
    controls |= beside.listed_special() & vocabulary.ids.keys()
    self._special = pattern(controls)
    # The model's own pieces, which it would find in what a user types.
    self._special_pieces = {
      vocabulary.ids[name]
      for name in controls
      if not name.startswith("▁")
      and vocabulary.ids[name] not in self._new
      and not self._sp.is_control(vocabulary.ids[name])
    }
    typed = {t["content"] for t in self._new.values()}
    if self._adds_space and not self._is_word:
      typed |= _user_defined(proto)  # no space goes ahead of one
    self._typed = pattern(typed - controls)
    self.bos_id = special.bos_id
    if beside.config.get("add_bos_token") and self.bos_id >= 0:
      self.begin = (self.bos_id,)
    files = self._read_settings(beside, vocabulary, special)
    self.files = {MODEL: proto, **files}

  def _read_pieces(self) -> None:
    """Finds out what kind of model it is."""
    sp = self._sp
    self.unk_id = sp.unk_id()
    self._adds_space = sp.encode("a", out_type=str)[0].startswith("▁")
    self._is_word = sp.piece_to_id("▁" + NEWLINE_WORD) not in (self.unk_id, -1)
    self._newline_is_piece = not self._adds_space and all(
      sp.piece_to_id(p) != self.unk_id for p in ("\n", "\n\n")
    )

  def _controls(self) -> list[int]:
    return [i for i in range(self._sp.vocab_size()) if self._sp.is_control(i)]

  def _added_tokens(self, beside: settings.Settings) -> dict[int, dict]:
    """Returns id → token of the tokens that the model does not have."""
    new = {}
    for i, token in beside.added_tokens().items():
      text = token["content"]
      piece = self._sp.id_to_piece(i) if i < self._sp.vocab_size() else text
      other = self._sp.piece_to_id(text)
      if piece != text or other not in (self.unk_id, i):
        in_decoder = str(i) in (beside.config.get("added_tokens_decoder") or {})
        file = TOKENIZER_CONFIG if in_decoder else ADDED
        raise UserError(
          f"gives {text!r} the id {i}, which is {piece!r} by {MODEL}",
          file=f"{beside.directory}/{file}",
          field=text,
          fix=f"give the files that belong to {MODEL}",
          code="added_token_conflict",
        )
      if i >= self._sp.vocab_size():
        new[i] = token
    return new

  def _vocabulary(self) -> Vocabulary:
    sp = self._sp
    ids = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    ids |= {token["content"]: i for i, token in self._new.items()}
    return Vocabulary(
      MODEL,
      ids,
      frozenset({*self._controls(), *self._new}),
      eos_id=sp.eos_id(),
      bos_id=sp.bos_id(),
      pad_id=sp.pad_id(),
      unk_id=sp.unk_id(),
    )

  def token(self, token_id: int) -> str:
    if token_id in self._new:
      return self._new[token_id]["content"]
    if 0 <= token_id < self._sp.vocab_size():
      return self._sp.id_to_piece(token_id)
    return ""

  def token_id(self, token: str) -> int:
    return self._ids.get(token, -1)

  @property
  def pieces(self) -> list[tuple[str, float]]:
    """Returns the piece and score of each id."""
    ids = range(self._sp.vocab_size())
    return [(self._sp.id_to_piece(i), self._sp.get_score(i)) for i in ids]

  @property
  def is_ours(self) -> bool:
    """Returns whether `train_tokenizer` made the model."""
    return (self._is_word or self._newline_is_piece) and not self._new

  @property
  def kind(self) -> str:
    """Returns the algorithm of a model of ours, as in `configs.Tokenizer`."""
    if self._is_word:
      return "word"
    # A BPE piece's score is minus its rank.
    scores = [score for _, score in self.pieces]
    return "bpe" if all(x == round(x) for x in scores) else "unigram"

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    if any(map(self._typed.search, texts)):
      return [self._encode_parts(text, self._typed) for text in texts]
    if self._newline_is_piece and any(len(t) > 2 * CHUNK for t in texts):
      return self._encode_long(texts)
    if self._is_word:
      texts = [t.replace("\n", f" {NEWLINE_WORD} ") for t in texts]
    elif self._adds_space:
      texts = [t[1:] if t.startswith(_SPACES) else t for t in texts]
    encoded = self._sp.encode(list(texts), out_type=int, num_threads=1)
    if not self._special_pieces:
      return encoded
    return [
      ids if self._special_pieces.isdisjoint(ids) else self._spelled(ids)
      for ids in encoded
    ]

  def _spelled(self, ids: Sequence[int]) -> list[int]:
    """Replaces each special piece by the ids of its characters.

    What a user types is text, never the token that ends a reply.
    """
    result: list[int] = []
    head = self._inner.encode("\n", out_type=int)
    for i in ids:
      if i not in self._special_pieces:
        result.append(i)
        continue
      for character in self._sp.id_to_piece(i).replace("▁", " "):
        part = self._inner.encode(f"\n{character}", out_type=int)
        result += part[len(head) :] if part[: len(head)] == head else part
    return result

  def encode_after(
    self, texts: Sequence[str], contexts: Sequence[str]
  ) -> list[list[int]]:
    if self.is_ours:  # no token reaches over a space or a newline
      return self.encode_batch(texts)
    return super().encode_after(texts, contexts)

  def _encode_parts(
    self, text: str, tokens: re.Pattern[str], hidden: Hidden | None = None
  ) -> list[int]:
    """Encodes a text and recognises tokens by their names."""
    ids: list[int] = []
    start = 0
    for match in itertools.chain(tokens.finditer(text), [None]):
      end = len(text) if match is None else match.start()
      part = text[start:end]
      if hidden is not None:
        part = hidden.restore(part)
      if part and start == 0:
        ids += self._encode_plain(part)
      elif part:
        ids += self._encode_inner(part)
      if match is not None:
        ids.append(self._ids[match.group()])
        start = match.end()
    return ids

  def _encode_plain(self, text: str) -> list[int]:
    """Encodes the beginning of a text by the model alone."""
    if self._adds_space and text.startswith(_SPACES):
      text = text[1:]
    ids = self._sp.encode(text, out_type=int)
    return self._spelled(ids)

  def _encode_inner(self, text: str) -> list[int]:
    """Encodes a text that follows a special token."""
    if self._inner is self._sp:
      return self._encode_plain(text)
    return self._spelled(self._inner.encode(text, out_type=int))

  def _encode_written(
    self, texts: Sequence[str], hidden: Hidden
  ) -> list[list[int]]:
    tokens = re.compile(f"{self._special.pattern}|{self._typed.pattern}")
    return [self._encode_parts(text, tokens, hidden) for text in texts]

  def _encode_long(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes long texts in pieces that no token spans.

    Nothing merges with a newline in our own models, and encoding short pieces
    is twice as fast as encoding a book.
    """
    parts: list[str] = []
    counts = []
    for text in texts:
      before, start = len(parts), 0
      while len(text) - start > CHUNK:
        cut = _BOUNDARY.search(text, start + CHUNK)
        if cut is None:
          break
        parts.append(text[start : cut.end()])
        start = cut.end()
      parts.append(text[start:])
      counts.append(len(parts) - before)
    encoded = iter(self._sp.encode(parts, out_type=int, num_threads=1))
    return [
      list(itertools.chain.from_iterable(itertools.islice(encoded, n)))
      for n in counts
    ]

  def _decode(self, ids: list[int]) -> str:
    if self._special_pieces:
      ids = [i for i in ids if i not in self._special_pieces]
    text = ""
    for new, group in itertools.groupby(ids, self._new.__contains__):
      run = list(group)
      if new:
        tokens = (self._new[i] for i in run)
        text += "".join(t["content"] for t in tokens if not t["special"])
      elif run is ids or not text:
        text = self._sp.decode(run)
      else:
        context = self._sp.encode("a")
        text += self._sp.decode(context + run)[len("a") :]
    if self._is_word:
      text = re.sub(f" ?{re.escape(NEWLINE_WORD)} ?", "\n", text)
    return text

  @property
  def context_ids(self) -> tuple[int, ...]:
    if self._is_word or not self._adds_space:
      return ()
    return tuple(self._sp.encode("a"))


def _reader(beside: settings.Settings) -> str:
  """Returns the class of `transformers` that reads a model."""
  reader = classes.of(beside.files)
  if reader in (classes.GPT2, classes.NEOX, classes.QWEN2):
    reader = classes.of({TOKENIZER_CONFIG: beside.config})
  kind = beside.files.get(MODEL_CONFIG, {}).get("model_type")
  if not reader and kind == "llama":
    reader = classes.LLAMA
  return reader


def _processors(
  proto: bytes, reader: str, beside: settings.Settings
) -> tuple[
  sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor
]:
  """Processors for the beginning of a text, and for text behind a token.

  The class LlamaTokenizer of `transformers` normalises no text and, without
  `legacy`, begins only whole texts with a space.
  """
  if reader != classes.LLAMA:
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    return processor, processor
  adds = beside.config.get("add_prefix_space") is not False
  begin = _unnormalized(proto, adds)
  if beside.config.get("legacy") or not adds:
    return begin, begin
  return begin, _unnormalized(proto, False)


def _user_defined(proto: bytes) -> set[str]:
  """Returns the pieces that a model finds in a text ahead of all others."""
  model = sentencepiece_model_pb2.ModelProto.FromString(proto)
  kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  return {p.piece for p in model.pieces if p.type == kind}


def _unnormalized(
  proto: bytes, adds_space: bool
) -> sentencepiece.SentencePieceProcessor:
  """Returns a model that changes texts only by a space at the beginning.

  A protocol buffer is overridden by what is appended to it: here field 3 of the
  model, in it no table of characters (2), add_dummy_prefix (3) and
  remove_extra_whitespaces (4).
  """
  override = bytes([0x12, 0, 0x18, adds_space, 0x20, 0])
  changed = proto + bytes([0x1A, len(override)]) + override
  return sentencepiece.SentencePieceProcessor(model_proto=changed)


def load(path: pathlib.Path) -> base.Tokenizer:
  """Loads a sentencepiece model, with the files beside a tokenizer.model.

  A model of a kind whose tokenizer.json `transformers` reads as it is, such as
  Mistral's, becomes the tokenizer.json that its makers publish with it.

  Raises:
    UserError: a file is damaged, or two contradict each other.
  """
  content = settings.read_bytes(path)
  beside = settings.read(path.parent) if path.name == MODEL else None
  try:
    if not content:
      raise ValueError("empty file")
    if beside is not None and MODEL_CONFIG in beside.files:
      if classes.of(beside.files) == classes.AS_IS:
        description = converted.description(content)
        if description is not None:
          return _as_json(description, content, beside, path)
    return SentencePiece(content, beside)
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f"is not a sentencepiece model ({settings.short(error)})",
      file=str(path),
      fix=settings.FIX,
      code="bad_tokenizer",
    ) from error


def _as_json(
  description: dict[str, Any],
  proto: bytes,
  beside: settings.Settings,
  path: pathlib.Path,
) -> hugging_face.HuggingFace:
  """Converts a model to a tokenizer.json with its special tokens."""
  sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
  ids = {"bos_token": sp.bos_id(), "eos_token": sp.eos_id()}
  names = named_tokens(beside.files, beside.directory)
  beside = beside.with_config(
    {
      key: sp.id_to_piece(i)
      for key, i in ids.items()
      if i >= 0 and key not in names
    }
  )
  result = hugging_face.build(description, path, beside)
  content = result.rust.to_str(pretty=True).encode()
  result.files = {hugging_face.TOKENIZER: content, **result.files}
  if sp.encode("a", out_type=str)[0].startswith("▁"):
    result.notes += (
      f"{MODEL} is read as the tokenizer.json that belongs to it:"
      " transformers 5 alone begins no text with a space",
    )
  return result
