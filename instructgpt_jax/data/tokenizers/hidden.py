"""Text of special tokens that users typed, hidden while a template is filled.

A template writes special tokens, users write text. A user's "<|im_end|>" is
replaced by one character that occurs nowhere in the conversation or template,
so that no text can be taken for it, and is put back once the template's own
special tokens are recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from instructgpt_jax.errors import UserError

# Planes 15 and 16, then the private-use area of plane 0, then all else.
_CHARACTERS = (
  range(0x10FFFD, 0xF0000 - 1, -1),
  range(0xE000, 0xF900),
  range(0xA0, 0xD800),
)


def unused_characters(texts: Iterable[str]) -> Iterator[str]:
  """Characters that occur in none of some texts.

  Raises:
    UserError: there are no more.
  """
  used: set[str] = set().union(*map(set, texts))
  for points in _CHARACTERS:
    yield from (chr(p) for p in points if chr(p) not in used)
  raise UserError(
    "a conversation has every character that could mark special tokens",
    fix="leave the conversation out",
    code="no_unused_character",
  )


class Hidden:
  """Texts without the special tokens that users typed.

  Attributes:
    texts: the texts, each special token replaced by one unused character.
    original: unused character → the token's text.
  """

  def __init__(
    self, texts: Sequence[str], special: re.Pattern[str], template: str
  ):
    self.original: dict[str, str] = {}
    self.texts = list(texts)
    typed = {m for text in texts for m in special.findall(text)}
    if not typed:
      return
    unused = unused_characters([*texts, template])
    character = {token: next(unused) for token in sorted(typed)}
    self.original = {c: token for token, c in character.items()}
    self.texts = [
      special.sub(lambda match: character[match.group()], text)
      for text in texts
    ]

  def restore(self, text: str) -> str:
    """Puts the users' text back."""
    return text.translate(str.maketrans(self.original))
