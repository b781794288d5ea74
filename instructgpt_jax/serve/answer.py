"""The text of an answer: from tokens, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from instructgpt_jax.data.tokenizers import StreamDecoder, Tokenizer


class TokenScore(NamedTuple):
  """A token with its log-probability under the model at temperature 1.

  Attributes:
    token: its id.
    logp: its log-probability; None for the first token of a prompt.
    top: (id, log-probability) of the most likely tokens, descending.
    offset: characters of the text before it.
  """

  token: int
  logp: float | None
  top: tuple[tuple[int, float], ...]
  offset: int


class Delta(NamedTuple):
  """What an answer has grown by.

  Attributes:
    text: new text.
    tokens: the tokens of this text.
    finish_reason: "stop" or "length" at the end; None before.
  """

  text: str
  tokens: tuple[TokenScore, ...]
  finish_reason: str | None


class Answer:
  """Collects the tokens of an answer and releases its text.

  Text that may turn out to be the beginning of a stop string waits. Tokens are
  released with their text. The token that ends an answer is released as well,
  but tokens of a stop string are not.

  Attributes:
    count: tokens so far, also those that are not released.
    finish_reason: "stop" or "length" once the answer has ended.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    lead: str = "",
    tail: str = "",
    context: Sequence[int] | None = None,
  ):
    """Starts an answer.

    Args:
      tokenizer: decodes tokens; its `stop_ids` end the answer.
      max_tokens: longest answer.
      stop: texts that end the answer, and are no part of it.
      lead: text that is left out at the beginning.
      tail: text that is left out before the token that ends the answer.
      context: see `StreamDecoder`.
    """
    self._decoder = StreamDecoder(tokenizer, lead, context)
    self._stop_ids = frozenset(tokenizer.stop_ids)
    self._max_tokens, self._stop, self._tail = max_tokens, tuple(stop), tail
    self._text, self._released = "", 0
    self._pending: list[TokenScore] = []
    self.count = 0
    self.finish_reason: str | None = None

  def push(
    self, token: int, logp: float, top: tuple[tuple[int, float], ...] = ()
  ) -> Delta:
    """Adds a token, and returns what can be released."""
    before = len(self._text)
    self._pending.append(TokenScore(token, logp, top, before))
    self.count += 1
    if token in self._stop_ids:
      self._text += self._decoder.flush()
      self._text = self._text.removesuffix(self._tail)
      self.finish_reason = "stop"
    else:
      self._text += self._decoder.push(token)
      if self.count == self._max_tokens:
        self._text += self._decoder.flush()
        self.finish_reason = "length"
    end = self._find_stop(before)
    if end is not None:
      self._text, self.finish_reason = self._text[:end], "stop"
      self._pending = [t for t in self._pending if t.offset < end]
    return self._release()

  def _find_stop(self, before: int) -> int | None:
    """Returns where the first stop string begins; `before` is old text."""
    starts = []
    for stop in self._stop:
      start = self._text.find(stop, max(0, before - len(stop) + 1))
      if start >= 0:
        starts.append(start)
    return min(starts, default=None)

  def _release(self) -> Delta:
    text = self._text
    stop = len(text)
    if self.finish_reason is None:
      stop -= self._waiting_length()
    tokens = tuple(
      t for t in self._pending if self.finish_reason or t.offset < stop
    )
    self._pending = self._pending[len(tokens) :]
    delta = Delta(text[self._released : stop], tokens, self.finish_reason)
    self._released = stop
    return delta

  def _waiting_length(self) -> int:
    """Returns the length of the end that may begin a stop string or tail."""
    endings = [stop[:-1] for stop in self._stop] + [self._tail]
    limit = len(self._text) - self._released
    for length in range(min(limit, max(map(len, endings))), 0, -1):
      suffix = self._text[-length:]
      if any(ending.startswith(suffix) for ending in endings):
        return length
    return 0
