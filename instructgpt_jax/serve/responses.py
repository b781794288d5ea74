"""Writes answers as the objects of the OpenAI interface."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from instructgpt_jax.serve.answer import Delta, TokenScore
from instructgpt_jax.serve.protocol import Request, finite
from instructgpt_jax.serve.token_text import TokenTexts


class Usage(NamedTuple):
  """Token counts of a request."""

  prompt_tokens: int
  completion_tokens: int

  def as_json(self) -> dict[str, int]:
    """Returns the `usage` of a response."""
    return {
      **self._asdict(),
      "total_tokens": self.prompt_tokens + self.completion_tokens,
    }


class Writer:
  """Writes the response, or the chunks of a stream, of one request."""

  def __init__(self, request: Request, texts: TokenTexts):
    self._request, self._texts = request, texts
    self._chat = bool(request.turns)
    prefix = "chatcmpl" if self._chat else "cmpl"
    kind = "chat.completion" if self._chat else "text_completion"
    if request.stream and self._chat:
      kind += ".chunk"
    self._head = {
      "id": f"{prefix}-{secrets.token_hex(12)}",
      "object": kind,
      "created": int(time.time()),
      "model": request.model,
      "system_fingerprint": None,
    }

  def response(self, answers: Sequence[Delta], usage: Usage) -> dict[str, Any]:
    """Returns the response with all answers."""
    choices = []
    for index, delta in enumerate(answers):
      choice = self._choice(index, delta)
      if self._chat:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        choice["message"] = message
      else:
        choice["text"] = delta.text
      choices.append(choice)
    return {**self._head, "choices": choices, "usage": usage.as_json()}

  def first_chunk(self, index: int) -> dict[str, Any]:
    """Returns the chunk that begins an answer of a chat."""
    choice = self._choice(index, Delta("", (), None))
    choice["delta"] = {"role": "assistant", "content": "", "refusal": None}
    return self._chunk([choice])

  def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
    """Returns the chunk with new text of an answer."""
    choice = self._choice(index, delta)
    if not self._chat:
      choice["text"] = delta.text
    else:
      choice["delta"] = {"content": delta.text} if delta.text else {}
    return self._chunk([choice])

  def last_chunk(self, usage: Usage) -> dict[str, Any]:
    """Returns the chunk with the token counts."""
    return {**self._head, "choices": [], "usage": usage.as_json()}

  def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
    chunk = {**self._head, "choices": choices}
    return chunk | {"usage": None} if self._request.include_usage else chunk

  def _choice(self, index: int, delta: Delta) -> dict[str, Any]:
    logprobs = None
    if self._request.logprobs is not None and (delta.tokens or not self._chat):
      write = self._chat_logprobs if self._chat else self._legacy_logprobs
      logprobs = write(delta.tokens)
    return {
      "index": index,
      "logprobs": logprobs,
      "finish_reason": delta.finish_reason,
    }

  def _chat_logprobs(self, tokens: Sequence[TokenScore]) -> dict[str, Any]:
    def entry(token: int, logp: float) -> dict[str, Any]:
      utf8 = self._texts.utf8(token)
      return {
        "token": self._texts.text(token),
        "logprob": finite(logp),
        "bytes": None if utf8 is None else list(utf8),
      }

    return {
      "content": [
        entry(t.token, t.logp or 0.0)
        | {"top_logprobs": [entry(*top) for top in t.top]}
        for t in tokens
      ],
      "refusal": None,
    }

  def _legacy_logprobs(self, tokens: Sequence[TokenScore]) -> dict[str, Any]:
    return {
      "tokens": [self._texts.text(t.token) for t in tokens],
      "token_logprobs": [
        None if t.logp is None else finite(t.logp) for t in tokens
      ],
      "top_logprobs": [self._legacy_top(t) for t in tokens],
      "text_offset": [t.offset for t in tokens],
    }

  def _legacy_top(self, token: TokenScore) -> dict[str, float] | None:
    """Returns text → log-probability of the likeliest tokens and the chosen.

    Of tokens with the same text the likeliest one stays.
    """
    if token.logp is None:
      return None
    entries: dict[str, float] = {}
    for other, logp in (*token.top, (token.token, token.logp)):
      entries.setdefault(self._texts.text(other), finite(logp))
    return entries
