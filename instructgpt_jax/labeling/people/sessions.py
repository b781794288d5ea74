"""Log-ins and sessions.

The token of a session is random, and the store has its hash only.
"""

from __future__ import annotations

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import (
  log_in_limits,
  names,
  passwords,
  tokens,
  users,
)
from instructgpt_jax.labeling.people.users import User
from instructgpt_jax.labeling.store import Store

SESSION_SECONDS = 14 * 86400.0
# Characters of a name in a log-in form; normal forms can be shorter.
_MAX_TYPED = 4 * names.MAX_NAME


def log_in(
  store: Store, name: str, password: str, address: str, now: float
) -> tuple[str, User]:
  """Checks a password; returns the token of a new session, and its user.

  Args:
    store: open store.
    name: name of the user.
    password: password in plain text.
    address: IP address of the client, for the limit on failures.
    now: time.

  Raises:
    TooManyLogIns: too many log-ins have failed.
    UserError: wrong name or password, or an inactive user ("wrong_log_in").
  """
  user_id = _check_password(store, name, password, address, now)
  token = tokens.new_token()
  table = schema.sessions
  with store.begin() as connection:
    user = users.user_of_id(connection, user_id)
    if not user.active:
      raise _wrong_log_in()
    connection.execute(sa.delete(table).where(table.c.expires_at <= now))
    connection.execute(
      sa.insert(table).values(
        token_hash=tokens.hash_token(token),
        user_id=user.id,
        created_at=now,
        expires_at=now + SESSION_SECONDS,
      )
    )
  return token, user


def session_user(store: Store, token: str, now: float) -> User | None:
  """Returns the user of a session, or None if it has ended."""
  table, sessions = schema.users, schema.sessions
  with store.read() as connection:
    row = connection.execute(
      sa.select(table)
      .join(sessions, sessions.c.user_id == table.c.id)
      .where(
        sessions.c.token_hash == tokens.hash_token(token),
        sessions.c.expires_at > now,
        table.c.active,
      )
    ).first()
  return None if row is None else users.user_of_row(row)


def log_out(store: Store, token: str) -> None:
  """Ends a session."""
  table = schema.sessions
  with store.begin() as connection:
    connection.execute(
      sa.delete(table).where(table.c.token_hash == tokens.hash_token(token))
    )


def change_password(
  store: Store, user_id: int, old: str, new: str, address: str, now: float
) -> None:
  """Changes a password, and ends all sessions of the user.

  Raises:
    UserError: the old password is wrong, or the new one is not possible;
      codes as those of `log_in` and `invitations.accept_invitation`.
  """
  name = users.get_user(store, user_id).name
  checked = passwords.checked_password(new, name)
  _check_password(store, name, old, address, now)
  password_hash = passwords.hash_password(checked)
  with store.begin() as connection:
    set_password(connection, user_id, name, password_hash)


def set_password(
  connection: sa.Connection, user_id: int, name: str, password_hash: str
) -> None:
  """Stores a new password, within a transaction, and ends all sessions."""
  table = schema.users
  connection.execute(
    sa.update(table).where(table.c.id == user_id).values(password=password_hash)
  )
  users.end_sessions(connection, user_id)
  log_in_limits.forget_failures(connection, name)


def _check_password(
  store: Store, name: str, password: str, address: str, now: float
) -> int:
  """Returns the id of the user who has the name and the password.

  Raises:
    TooManyLogIns: too many log-ins have failed.
    UserError: there is none ("wrong_log_in").
  """
  # Before the password is checked, so that parallel guesses count as well.
  attempt = log_in_limits.count_attempt(store, name, address, now)
  table = schema.users
  row = None
  if len(password) <= passwords.MAX_PASSWORD and len(name) <= _MAX_TYPED:
    with store.read() as connection:
      row = connection.execute(
        sa.select(table).where(table.c.name_key == _database_text(name))
      ).first()
  # Unknown names take the same time as known ones.
  stored = passwords.impossible_hash() if row is None else row.password
  matches = passwords.matches(password[: passwords.MAX_PASSWORD], stored)
  if row is None or not matches or not row.active:
    raise _wrong_log_in()
  log_in_limits.forget_attempt(store, attempt)
  return row.id


def _database_text(name: str) -> str:
  """Returns the key of a name that a log-in form sent."""
  key = names.name_key(name).encode("utf-8", "replace").decode("utf-8")
  return key.replace("\0", "\ufffd")


def _wrong_log_in() -> UserError:
  return UserError(
    "the name or the password is wrong",
    fix="try again, or ask the owner of the project for a new password",
    code="wrong_log_in",
  )
