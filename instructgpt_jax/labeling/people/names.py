"""Names of users: what is a name, and which names are the same one."""

from __future__ import annotations

import unicodedata

from instructgpt_jax.errors import UserError

MAX_NAME = 64
# Joiners that some scripts need; they do not distinguish names.
_JOINERS = "\u200c\u200d"


def checked_name(name: str) -> str:
  """Returns a name with single spaces.

  Raises:
    UserError: it is empty, too long, or has control characters.
  """
  clean = printable(name)
  if not is_printable(name):
    problem = "a name cannot have invisible characters"
  elif not any(c.isalnum() for c in clean):
    problem = "a name needs a letter or a digit"
  elif len(clean) > MAX_NAME:
    problem = f"a name has at most {MAX_NAME} characters"
  else:
    return clean
  raise UserError(
    problem, field="name", fix="choose another name", code="bad_name"
  )


def name_key(name: str) -> str:
  """Returns what names have in common that are the same one."""
  for joiner in _JOINERS:
    name = name.replace(joiner, "")
  folded = unicodedata.normalize("NFKC", name).casefold()
  # Case folding can undo the normal form.
  return " ".join(unicodedata.normalize("NFKC", folded).split())


def is_printable(text: str) -> bool:
  """Returns whether a text has no control characters or lone surrogates."""
  return printable(text) == unicodedata.normalize("NFC", " ".join(text.split()))


def printable(text: str) -> str:
  """Returns a text without control characters and lone surrogates."""
  text = unicodedata.normalize("NFC", text)
  return " ".join(
    "".join(
      c
      for c in text
      if c in _JOINERS or c.isspace() or unicodedata.category(c)[0] != "C"
    ).split()
  )
