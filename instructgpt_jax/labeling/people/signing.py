"""Signatures of session cookies, with keys that the store has.

A cookie is KEY.TOKEN.SIGNATURE: the number of a key, the token of a session,
and their HMAC. One that was changed is refused without a look-up of its
session. A key signs for 30 days; its cookies are valid until their sessions
end.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import threading
import time
from typing import NamedTuple

import sqlalchemy as sa

from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people.sessions import SESSION_SECONDS
from instructgpt_jax.labeling.store import Store

KEY_SECONDS = 30 * 86400.0
_KEY_BYTES = 32
_READ_SECONDS = 1.0  # between two look-ups of unknown keys
_COOKIE = re.compile(r"([1-9][0-9]{0,17})\.([A-Za-z0-9_-]+)\.([0-9a-f]{64})")


class _Key(NamedTuple):
  """A key of the store.

  Attributes:
    id: its number; newer keys have larger ones.
    secret: its bytes.
    created_at: time at which it was made.
  """

  id: int
  secret: bytes
  created_at: float


class Signer:
  """Signs tokens of sessions, and returns those that it has signed.

  All servers of a store accept each other's cookies, also after a restart.
  """

  def __init__(self, store: Store):
    self._store = store
    self._keys: dict[int, _Key] = {}
    self._read_at = -math.inf
    self._lock = threading.Lock()

  def sign(self, token: str, now: float) -> str:
    """Returns the cookie of a session.

    Raises:
      UserError: a new key is due, and the store cannot be written.
    """
    newest = max(self._keys.values(), default=None)
    if newest is None or not _signs(newest, now):
      newest = self._make_key(now)
    return f"{newest.id}.{token}.{_signature(newest, token)}"

  def token(self, cookie: str) -> str:
    """Returns the token of a cookie; "" if no key of the store has signed it.

    Only keys of other servers are looked up, at most once a second.
    """
    match = _COOKIE.fullmatch(cookie)
    key = self._key(int(match[1])) if match else None
    if match is None or key is None:
      return ""
    is_valid = hmac.compare_digest(match[3], _signature(key, match[2]))
    return match[2] if is_valid else ""

  def _key(self, key_id: int) -> _Key | None:
    # Requests wait for a look-up that has begun: right after a start, the keys
    # of all sessions are unknown.
    with self._lock:
      moment = time.monotonic()
      if key_id not in self._keys and moment >= self._read_at + _READ_SECONDS:
        with self._store.read() as connection:
          self._keys = _read_keys(connection)
        self._read_at = moment  # not of a look-up that failed
      return self._keys.get(key_id)

  def _make_key(self, now: float) -> _Key:
    """Returns the key that signs; a new one if the newest is too old."""
    table = schema.signing_keys
    with self._store.begin() as connection:
      newest = max(_read_keys(connection).values(), default=None)
      if newest is None or not _signs(newest, now):
        # Sessions that a removed key has signed have ended.
        oldest = now - KEY_SECONDS - SESSION_SECONDS
        connection.execute(sa.delete(table).where(table.c.created_at < oldest))
        secret = secrets.token_hex(_KEY_BYTES)
        connection.execute(
          sa.insert(table).values(
            id=newest.id + 1 if newest else 1, secret=secret, created_at=now
          )
        )
      keys = _read_keys(connection)
    # After a look-up that has begun before, which lacks the new key.
    with self._lock:
      self._keys = keys
    return max(keys.values())


def _signs(key: _Key, now: float) -> bool:
  return now < key.created_at + KEY_SECONDS


def _signature(key: _Key, token: str) -> str:
  message = f"session.{key.id}.{token}".encode()
  return hmac.new(key.secret, message, hashlib.sha256).hexdigest()


def _read_keys(connection: sa.Connection) -> dict[int, _Key]:
  rows = connection.execute(sa.select(schema.signing_keys))
  return {
    row.id: _Key(row.id, bytes.fromhex(row.secret), row.created_at)
    for row in rows
  }
