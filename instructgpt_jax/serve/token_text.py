"""Texts and bytes of single tokens, for log-probabilities."""

from __future__ import annotations

import re

from instructgpt_jax.data.tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BROKEN = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
  """Returns the characters by which GPT-2's vocabularies write bytes."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  return {chr(b): b for b in printable} | {
    chr(256 + i): b for i, b in enumerate(others)
  }


_ALPHABET = _byte_alphabet()


class TokenTexts:
  """Names tokens; remembers the names."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._texts: dict[int, tuple[str, bytes | None]] = {}

  def text(self, token: int) -> str:
    """Returns a token's text within a text, or a special token's name.

    A token that is a part of a character is `bytes:\\xe2\\x80`.
    """
    return self._text_and_bytes(token)[0]

  def utf8(self, token: int) -> bytes | None:
    """Returns the bytes of a token's text; None for a special token."""
    return self._text_and_bytes(token)[1]

  def _text_and_bytes(self, token: int) -> tuple[str, bytes | None]:
    if token not in self._texts:
      self._texts[token] = self._describe(token)
    return self._texts[token]

  def _describe(self, token: int) -> tuple[str, bytes | None]:
    once = self._tokenizer.decode([token])
    if not once:
      return self._tokenizer.decode_with_special([token]), None
    # At the beginning of a text, some tokenizers leave a space out.
    twice = self._tokenizer.decode([token, token])
    text = twice[len(once) :] if twice.startswith(once) else once
    if _BROKEN not in text:
      return text, text.encode()
    raw = _raw_bytes(self._tokenizer.token(token))
    if not raw:
      return text, text.encode()
    return "bytes:" + "".join(f"\\x{b:02x}" for b in raw), raw


def _raw_bytes(name: str) -> bytes:
  """Returns the bytes that a vocabulary's entry names; empty if unknown."""
  match = _BYTE.fullmatch(name)
  if match:
    return bytes([int(match[1], 16)])
  if all(c in _ALPHABET for c in name):
    return bytes(_ALPHABET[c] for c in name)
  return b""
