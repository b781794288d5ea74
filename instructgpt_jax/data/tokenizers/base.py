"""What every tokenizer does."""

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
  """Text to ids and back.

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
    """How conversations are written; None where nothing says so.

    Raises:
      UserError: there is a template that cannot be used.
    """
    if self._template_error is not None:
      raise self._template_error
    return self._template

  def without_template(self) -> Self:
    """The same tokenizer for runs with `--data.chat_template=false`."""
    other = copy.copy(self)
    other._template, other._template_error = None, None
    other.eos_id = self.document_end_id
    others = (i for i in self.stop_ids if i != other.eos_id)
    other.stop_ids = (other.eos_id, *others)
    return other

  def _read_settings(
    self, settings: Settings, vocabulary: Vocabulary, special: SpecialTokens
  ) -> dict[str, bytes]:
    """Takes what the files beside the tokenizer say; returns those to save."""
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
    """Names of tokens that the tokenizer's own files do not say."""
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
    """The text of a token of the vocabulary; "" where there is none."""
    raise NotImplementedError

  def token_id(self, token: str) -> int:
    """The id of a token of the vocabulary; -1 where there is none."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any special token."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts in one call; much faster than a loop."""
    raise NotImplementedError

  def encode_after(
    self, texts: Sequence[str], contexts: Sequence[str]
  ) -> list[list[int]]:
    """Ids of texts, each as it stands behind its context in one text.

    A tokenizer that begins every text with a space does so ahead of the
    context alone.
    """
    return _behind(self.encode_batch, texts, contexts)

  def encode_turns(self, turns: Sequence[Turn], date: str = "") -> list[int]:
    """The ids of a conversation by the template, up to the reply.

    Special tokens are the template's alone. What a user wrote like one is
    text.

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

  def encode_replies(self, replies: Sequence[str]) -> list[list[int]]:
    """The ids of replies by the template, without the token that ends them."""
    template = self.template
    assert template is not None
    hidden = Hidden(replies, self._special, template.text)
    texts = [template.reply(text) for text in hidden.texts]
    return _behind(
      lambda t: self._encode_written(t, hidden),
      texts,
      [template.context] * len(texts),
    )

  def _encode_written(
    self, texts: Sequence[str], hidden: Hidden
  ) -> list[list[int]]:
    """Ids of what a template wrote; special tokens in it are recognised."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """The text of some ids; padding and special tokens are left out."""
    drop = (self.pad_id, self.eos_id, self.document_end_id)
    text_ids = [
      i for i in map(int, ids) if 0 <= i < self.base_size and i not in drop
    ]
    return self._decode(text_ids)

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  def decode_reply(self, ids: Iterable[int]) -> str:
    """The text of a reply, as a labeler would have written it."""
    return self.reply_text(self.decode_after(ids))

  def decode_after(self, ids: Iterable[int]) -> str:
    """The text that ids add to a text before them, a leading space included."""
    context = self.context_ids
    if not context:
      return self.decode(ids)
    return self.decode([*context, *ids])[len(self.decode(context)) :]

  @property
  def context_ids(self) -> tuple[int, ...]:
    """Ids to decode ahead of others, where decoding drops a leading space."""
    return ()

  @property
  def reply_lead(self) -> str:
    """What stands between a prompt and a reply's own text."""
    return " " if self._template is None else self._template.lead

  def reply_text(self, text: str) -> str:
    """A reply's text without what the template writes around it."""
    if self._template is None:
      return records.reply_text(text)
    text = text.removeprefix(self._template.lead)
    return text.removesuffix(self._template.tail)

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes files from which `load_tokenizer(directory)` makes this again."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (directory / name).write_bytes(content)


def _behind(
  encode: Callable[[list[str]], list[list[int]]],
  texts: Sequence[str],
  contexts: Sequence[str],
) -> list[list[int]]:
  """Ids of texts behind contexts, whose ids are those of the contexts alone.

  Where a token crosses the border, the text is encoded behind another context.
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

  A character that is spread over several tokens appears once it is whole.
  """

  def __init__(self, tokenizer: Tokenizer, lead: str = ""):
    """Starts a text.

    Args:
      tokenizer: decodes the tokens.
      lead: text that is left out at the beginning.
    """
    self._tokenizer = tokenizer
    self._lead, self._waiting = lead, ""
    self._ids: list[int] = list(tokenizer.context_ids)
    self._start, self._read = 0, len(self._ids)

  def push(self, token: int) -> str:
    """The text that one more token adds; "" while a character is not whole."""
    self._ids.append(int(token))
    before = self._tokenizer.decode(self._ids[self._start : self._read])
    after = self._tokenizer.decode(self._ids[self._start :])
    # Bytes that are no UTF-8 would hold the stream up for ever.
    waiting = after.endswith("\ufffd") and len(self._ids) - self._read < 8
    if waiting or len(after) <= len(before):
      return ""
    self._start, self._read = self._read, len(self._ids)
    return self._without_lead(after[len(before) :])

  def flush(self) -> str:
    """What is left at the end, with a mark for a broken character."""
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
