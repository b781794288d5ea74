"""The interface of all tokenizers, and a decoder for streams of tokens."""

from __future__ import annotations

import copy
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from instructgpt_jax.data import records
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import classes
from instructgpt_jax.data.tokenizers.chat_template import ChatTemplate
from instructgpt_jax.data.tokenizers.hidden import Hidden
from instructgpt_jax.data.tokenizers.settings import Settings
from instructgpt_jax.data.tokenizers.special_tokens import (
  STOP_KEY,
  TOKENIZER_CONFIG,
  SpecialTokens,
  Vocabulary,
  reconcile,
)
from instructgpt_jax.errors import UserError

_CONTEXTS = ("\n", "a", ".", "")
_NO_TOKEN = re.compile(r"(?!)")


class Tokenizer:
  """Converts text to token ids and back.

  Attributes:
    base_size: number of ids of the tokenizer's files.
    vocab_size: number of ids, with those that were appended.
    pad_id: padding; no text encodes to it.
    eos_id: ends a reply; no text encodes to it. Where the chat template ends a
      reply with another special token, such as <end_of_turn>, that one.
    document_end_id: ends a document: the tokenizer's end-of-text.
    bos_id: begins a text where the tokenizer begins texts; -1 for none.
    stop_ids: all ids that end a reply in generation, `eos_id` first; what
      generation_config.json adds is here. Padding is none of them.
    files: file name -> bytes, all that `save` has to write.
    begin: ids that every text begins with, such as Llama's <s>.
    notes: what a user should know of how the files were read.
    reader: class of `transformers` by which the files are read; "" for none.
  """

  begin: tuple[int, ...] = ()
  bos_id: int = -1
  reader: str = ""
  _special: re.Pattern[str] = _NO_TOKEN

  def __init__(self, base_size: int, pad_id: int, eos_id: int):
    size = base_size
    if not 0 <= eos_id < base_size:
      eos_id, size = size, size + 1
    if not 0 <= pad_id < base_size or pad_id == eos_id:
      pad_id, size = size, size + 1
    self.base_size, self.vocab_size = base_size, size
    self.pad_id, self.eos_id = pad_id, eos_id
    self.document_end_id = eos_id
    self.stop_ids: tuple[int, ...] = (eos_id,)
    self.files: dict[str, bytes] = {}
    self.notes: tuple[str, ...] = ()
    self._template: ChatTemplate | None = None
    self._template_error: UserError | None = None

  @property
  def template(self) -> ChatTemplate | None:
    """Returns the chat template; None where no file has one.

    Raises:
      UserError: there is a template that cannot be used.
    """
    if self._template_error is not None:
      raise self._template_error
    return self._template

  def without_template(self) -> Self:
    """Returns this tokenizer for runs with `--data.chat_template=false`."""
    other = copy.copy(self)
    other._template, other._template_error = None, None
    other.eos_id = self.document_end_id
    others = (i for i in self.stop_ids if i != other.eos_id)
    other.stop_ids = (other.eos_id, *others)
    return other

  def _read_settings(
    self, settings: Settings, vocabulary: Vocabulary, special: SpecialTokens
  ) -> dict[str, bytes]:
    """Applies the files beside the tokenizer; returns the files to save."""
    self.stop_ids = tuple(dict.fromkeys((self.eos_id, *special.stop_ids)))
    names = {"eos_token": self.token(self.eos_id), **special.names}
    if vocabulary.bos_id >= 0:
      names.setdefault("bos_token", self.token(vocabulary.bos_id))
    template = settings.template()
    self._template_error = template.error
    if template.text:
      try:
        self._template = ChatTemplate(
          template.text, names, settings.directory, self._special
        )
      except UserError as error:
        self._template_error = error
    if self._template is not None:
      end = self.token_id(self._template.end) if self._template.end else -1
      if end >= 0 and end not in (self.pad_id, self.bos_id):
        self.eos_id = end
        self.stop_ids = tuple(dict.fromkeys((end, *self.stop_ids)))
    if not self.token(self.document_end_id):
      self.notes += (
        "no file names an end-of-text token: the new id"
        f" {self.document_end_id} ends texts",
      )
    values = self._unsaved(vocabulary, special)
    if self.reader != classes.of({TOKENIZER_CONFIG: settings.config}):
      values["tokenizer_class"] = self.reader
    more = [i for i in special.stop_ids if i != special.eos_id]
    if more and settings.config.get(STOP_KEY) != more:
      values[STOP_KEY] = more
    return settings.saved_with(values)

  def _unsaved(
    self, vocabulary: Vocabulary, special: SpecialTokens
  ) -> dict[str, Any]:
    """Returns names of tokens that the tokenizer's files do not say."""
    alone = reconcile({}, vocabulary, "")
    ids = {
      "eos_token": (special.eos_id, alone.eos_id),
      "pad_token": (special.pad_id, alone.pad_id),
    }
    return {
      key: self.token(token_id)
      for key, (token_id, default) in ids.items()
      if key not in special.names and token_id not in (default, -1)
    }

  def token(self, token_id: int) -> str:
    """Returns the text of a token of the vocabulary; "" for no token."""
    raise NotImplementedError

  def token_id(self, token: str) -> int:
    """Returns the id of a token of the vocabulary; -1 for no token."""
    raise NotImplementedError

  def special_token(self, token_id: int) -> str:
    """Returns the name of a special token, such as <|im_end|>; "" for text."""
    name = self.token(token_id) if token_id < self.base_size else ""
    if token_id == self.pad_id:
      return name or "<padding>"
    if token_id in (self.eos_id, self.document_end_id):
      return name or "<end-of-text>"
    is_special = token_id == self.bos_id or self._special.fullmatch(name)
    return name if is_special else ""

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without special tokens."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes many texts in one call, much faster than a loop."""
    raise NotImplementedError

  def encode_marked(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts, and recognises the names of special tokens in them."""
    none = Hidden([], self._special, "")
    return [list(ids) for ids in self._encode_written(texts, none)]

  def encode_after(
    self, texts: Sequence[str], contexts: Sequence[str]
  ) -> list[list[int]]:
    """Encodes texts, each as the continuation of its context.

    A tokenizer that begins every text with a space does so ahead of the
    context alone.
    """
    return _encode_after(self.encode_batch, texts, contexts)

  def encode_turns(self, turns: Sequence[Turn], date: str = "") -> list[int]:
    """Encodes a conversation by the chat template, up to the reply.

    Only the template writes special tokens. What looks like one in a turn is
    encoded as text.

    Args:
      turns: the conversation.
      date: today's date to the template; "" is the config's default.
    """
    assert self.template is not None
    hidden = Hidden([t.text for t in turns], self._special, self.template.text)
    written = self.template.render(
      [Turn(t.role, s) for t, s in zip(turns, hidden.texts, strict=True)],
      **({"date": date} if date else {}),
    )
    return self._encode_written([written], hidden)[0]

  def reply_prefixes(
    self, turns: Sequence[Turn], date: str = ""
  ) -> list[tuple[list[int], list[int]]]:
    """Encodes what precedes each learnable reply, and that with the reply.

    Args:
      turns: a conversation that `encode_turns` encodes.
      date: likewise.

    Raises:
      UserError: `template_changes_reply`, the template writes other turns
        otherwise where the text of a reply differs.
    """
    template = self.template
    assert template is not None
    hidden = Hidden([t.text for t in turns], self._special, template.text)
    written = [
      Turn(t.role, s) for t, s in zip(turns, hidden.texts, strict=True)
    ]
    prefixes = []
    for i, turn in enumerate(turns):
      if turn.role == "assistant" and turn.learnable:
        text, start, stop = template.locate(written, i, date)
        encoded = self._encode_written([text[:start], text[:stop]], hidden)
        prefixes.append((encoded[0], encoded[1]))
    return prefixes

  def encode_replies(self, replies: Sequence[str]) -> list[list[int]]:
    """Encodes replies by the template, without the token that ends them."""
    template = self.template
    assert template is not None
    hidden = Hidden(replies, self._special, template.text)
    texts = [template.reply(text) for text in hidden.texts]
    return _encode_after(
      lambda t: self._encode_written(t, hidden),
      texts,
      [template.context] * len(texts),
    )

  def _encode_written(
    self, texts: Sequence[str], hidden: Hidden
  ) -> list[list[int]]:
    """Encodes rendered templates, and recognises special tokens in them."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Decodes ids; padding and special tokens are left out."""
    drop = (self.pad_id, self.eos_id, self.document_end_id)
    text_ids = [
      i for i in map(int, ids) if 0 <= i < self.base_size and i not in drop
    ]
    return self._decode(text_ids)

  def decode_with_special(self, ids: Iterable[int]) -> str:
    """Decodes ids, and writes each special token by its name."""
    text, run = "", list[int]()
    for token_id in map(int, ids):
      name = self._special_name(token_id)
      if not name:
        run.append(token_id)
        continue
      text, run = text + self._decode_run(run, first=not text) + name, []
    return text + self._decode_run(run, first=not text)

  def _decode_run(self, ids: list[int], *, first: bool) -> str:
    """Decodes ordinary tokens; a space ahead stays but for the first ones."""
    if not ids:
      return ""
    return self.decode(ids) if first else self.decode_after(ids)

  def _special_name(self, token_id: int) -> str:
    """Returns the name of a special token; "" for an ordinary token."""
    ends = (self.eos_id, self.document_end_id)
    token = self.token(token_id) if 0 <= token_id < self.base_size else ""
    if token_id in (self.pad_id, self.bos_id, *ends):
      names = {self.pad_id: "<padding>"} | dict.fromkeys(ends, "<end-of-text>")
      return token or names[token_id]
    if not token:
      return f"<token {token_id}>"
    return token if self._special.fullmatch(token) else ""

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  def decode_reply(self, ids: Iterable[int]) -> str:
    """Decodes a reply to the text that a labeler would have written."""
    return self.reply_text(self.decode_after(ids))

  def decode_after(self, ids: Iterable[int]) -> str:
    """Decodes ids that continue a text; a leading space is included."""
    context = self.context_ids
    if not context:
      return self.decode(ids)
    return self.decode([*context, *ids])[len(self.decode(context)) :]

  @property
  def context_ids(self) -> tuple[int, ...]:
    """Returns ids to decode before others, so that a leading space stays."""
    return ()

  @property
  def reply_lead(self) -> str:
    """Returns the text between a prompt and the text of a reply."""
    return " " if self._template is None else self._template.lead

  @property
  def reply_tail(self) -> str:
    """Returns the text between a reply and the token that ends it."""
    return "" if self._template is None else self._template.tail

  def reply_text(self, text: str) -> str:
    """Returns a reply's text without what the template adds around it."""
    if self._template is None:
      return records.reply_text(text)
    text = text.removeprefix(self._template.lead)
    return text.removesuffix(self._template.tail)

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes the files that `load_tokenizer(directory)` reads."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (directory / name).write_bytes(content)


def _encode_after(
  encode: Callable[[list[str]], list[list[int]]],
  texts: Sequence[str],
  contexts: Sequence[str],
) -> list[list[int]]:
  """Encodes texts, each as a continuation of its context.

  Where a token spans both, the text is encoded after another context.
  """
  unique = list(dict.fromkeys([*contexts, *_CONTEXTS]))
  heads = dict(zip(unique, encode(unique), strict=True)) | {"": []}
  joined = encode([c + t for c, t in zip(contexts, texts, strict=True)])
  result = []
  for ids, context, text in zip(joined, contexts, texts, strict=True):
    head = heads[context]
    others = iter(_CONTEXTS)
    while ids[: len(head)] != head:
      context = next(others)  # nothing crosses the border of the last, ""
      head = heads[context]
      (ids,) = encode([context + text])
    result.append(ids[len(head) :])
  return result


class StreamDecoder:
  """Decodes a reply token by token, for a terminal.

  A character of several tokens appears once it is complete.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    lead: str = "",
    context: Sequence[int] | None = None,
  ):
    """Starts a text.

    Args:
      tokenizer: decodes the tokens.
      lead: text that is left out at the beginning.
      context: ids that the text continues; None for the tokenizer's
        `context_ids`.
    """
    self._tokenizer = tokenizer
    self._lead, self._waiting = lead, ""
    self._ids = list(tokenizer.context_ids if context is None else context)
    self._start, self._read = 0, len(self._ids)

  def push(self, token: int) -> str:
    """Returns the text that a token adds; "" within a character."""
    self._ids.append(int(token))
    before = self._tokenizer.decode(self._ids[self._start : self._read])
    after = self._tokenizer.decode(self._ids[self._start :])
    # Bytes that are not UTF-8 must not block the stream.
    waiting = after.endswith("\ufffd") and len(self._ids) - self._read < 8
    if waiting or len(after) <= len(before):
      return ""
    self._start, self._read = self._read, len(self._ids)
    return self._without_lead(after[len(before) :])

  def flush(self) -> str:
    """Returns the remaining text, with U+FFFD for a broken character."""
    before = self._tokenizer.decode(self._ids[self._start : self._read])
    after = self._tokenizer.decode(self._ids[self._start :])
    self._start = self._read = len(self._ids)
    text = self._without_lead(after[len(before) :])
    text, self._lead, self._waiting = self._waiting + text, "", ""
    return text

  def _without_lead(self, text: str) -> str:
    """Leaves out the lead, which may come in several pieces."""
    if not self._lead:
      return text
    text = self._waiting + text
    if text != self._lead and self._lead.startswith(text):
      self._waiting = text
      return ""
    text, self._lead, self._waiting = text.removeprefix(self._lead), "", ""
    return text
