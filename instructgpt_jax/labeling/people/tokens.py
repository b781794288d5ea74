"""Random tokens of invitations and sessions, and their hashes."""

from __future__ import annotations

import hashlib
import secrets

_TOKEN_BYTES = 32


def new_token() -> str:
  """Returns 256 random bits as text."""
  return secrets.token_urlsafe(_TOKEN_BYTES)


def hash_token(token: str) -> str:
  """Returns the hash of a token, by which the store knows it."""
  return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
