"""Passwords: which are possible, and their scrypt hashes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
import unicodedata

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling.people import names

MIN_PASSWORD = 8
MAX_PASSWORD = 1024

# OWASP's cost for 16 MiB of memory.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 5
_MAX_MEMORY = 1 << 26  # bytes for one hash
_SALT_BYTES, _KEY_BYTES = 16, 32
# Concurrent log-ins share the processors and this much memory.
_HASHING = threading.BoundedSemaphore(max(1, min(4, os.cpu_count() or 1)))


def checked_password(password: str, name: str) -> bytes:
  """Returns the bytes of a new password.

  Raises:
    UserError: it is too short, too long, or the user's name.
  """
  size = len(password)
  if size < MIN_PASSWORD:
    problem = f"a password has at least {MIN_PASSWORD} characters"
  elif size > MAX_PASSWORD:
    problem = f"a password has at most {MAX_PASSWORD} characters"
  elif names.name_key(password) == names.name_key(name):
    problem = "the password is the name"
  else:
    return _password_bytes(password)
  raise UserError(
    problem, field="password", fix="choose another one", code="bad_password"
  )


def hash_password(password: bytes) -> str:
  """Returns the hash of a password's bytes, with a new salt."""
  salt = secrets.token_bytes(_SALT_BYTES)
  key = _scrypt(password, salt, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
  return _hash_text(salt, key)


def impossible_hash() -> str:
  """Returns the hash of no password; comparing with it costs the usual time."""
  salt = secrets.token_bytes(_SALT_BYTES)
  return _hash_text(salt, secrets.token_bytes(_KEY_BYTES))


def matches(password: str, password_hash: str) -> bool:
  """Returns whether a hash is that of a password."""
  _, n, r, p, salt, key = password_hash.split("$")
  return hmac.compare_digest(
    _scrypt(
      _password_bytes(password), base64.b64decode(salt), int(n), int(r), int(p)
    ),
    base64.b64decode(key),
  )


def _password_bytes(password: str) -> bytes:
  # Keyboards write accents in different ways.
  return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
  with _HASHING:
    return hashlib.scrypt(
      password, salt=salt, n=n, r=r, p=p, maxmem=_MAX_MEMORY, dklen=_KEY_BYTES
    )


def _hash_text(salt: bytes, key: bytes) -> str:
  cost = (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
  texts = [base64.b64encode(value).decode() for value in (salt, key)]
  return "$".join(["scrypt", *map(str, cost), *texts])
