"""Users, invitations, passwords and sessions.

Tokens of invitations and sessions are random; the store has their hashes only.
Every refusal is a UserError whose `code` says which; its text may be shown.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import ipaddress
import os
import secrets
import threading
import unicodedata

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.store import Store, is_id

INVITATION_SECONDS = 14 * 86400.0
SESSION_SECONDS = 14 * 86400.0
MIN_PASSWORD = 8
MAX_PASSWORD = 1024
MAX_NAME = 64
MAX_NOTE = 200

# Failed log-ins within the window, for a name from one address, a name from
# all addresses, and all names from one address.
WINDOW_SECONDS = 900.0
MAX_FAILURES_OF_PAIR = 10
MAX_FAILURES_OF_NAME = 50
MAX_FAILURES_OF_ADDRESS = 200

_TOKEN_BYTES = 32
# OWASP's cost for 16 MiB of memory.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 5
_MAX_MEMORY = 1 << 26  # bytes for one hash
_SALT_BYTES, _KEY_BYTES = 16, 32
# Concurrent log-ins share the processors and this much memory.
_HASHING = threading.BoundedSemaphore(max(1, min(4, os.cpu_count() or 1)))
# Joiners that some scripts need; they do not distinguish names.
_JOINERS = "\u200c\u200d"


@dataclasses.dataclass(frozen=True)
class User:
  """A user.

  Attributes:
    id: number in exports (`labeler_id`).
    name: name as the user typed it; unique without regard to case.
    role: one of `schema.ROLES`.
    held_out: whether the labels stay out of training exports.
    active: whether the user may log in.
    created_at: time at which the invitation was accepted.
  """

  id: int
  name: str
  role: str
  held_out: bool
  active: bool
  created_at: float


@dataclasses.dataclass(frozen=True)
class Invitation:
  """An invitation, without its token.

  Attributes:
    id: name of the invitation for `revoke_invitation`; it opens nothing.
    role: role of the new user.
    held_out: whether the new user is a held-out labeler.
    note: the owner's note, such as a name.
    created_at: time at which it was made.
    expires_at: time from which it cannot be used.
    for_user: user who may choose a new password, or None for a new user.
    used_by: user who accepted it, or None.
    used_at: time at which it was accepted, or None.
  """

  id: str
  role: str
  held_out: bool
  note: str
  created_at: float
  expires_at: float
  for_user: int | None
  used_by: int | None
  used_at: float | None


class TooManyLogIns(UserError):
  """A log-in that is refused because others have failed.

  Attributes:
    retry_after: seconds after which it may succeed.
  """

  def __init__(self, retry_after: float):
    minutes = max(1, round(retry_after / 60))
    super().__init__(
      "too many log-ins have failed",
      fix=f"try again in {minutes} min",
      code="too_many_log_ins",
    )
    self.retry_after = retry_after


def invite(
  store: Store,
  role: str,
  now: float,
  *,
  held_out: bool = False,
  note: str = "",
  seconds: float = INVITATION_SECONDS,
) -> str:
  """Makes an invitation, and returns its token, which is shown once.

  Raises:
    UserError: no such role ("bad_role"), or only labelers can be held out
      ("held_out_role").
  """
  _check_role_name(role, held_out)
  return _add_invitation(
    store, now, seconds, role=role, held_out=held_out, note=note
  )


def invite_to_reset(
  store: Store, user_id: int, now: float, seconds: float = 86400.0
) -> str:
  """Makes an invitation with which a user chooses a new password.

  Raises:
    UserError: there is no such user ("not_found").
  """
  user = get_user(store, user_id)
  return _add_invitation(
    store,
    now,
    seconds,
    role=user.role,
    held_out=user.held_out,
    note=user.name,
    for_user=user.id,
  )


def read_invitation(store: Store, token: str, now: float) -> Invitation:
  """Returns an invitation that can be accepted.

  Raises:
    UserError: it does not exist ("no_invitation"), was used
      ("invitation_used"), or has expired ("invitation_expired").
  """
  with store.read() as connection:
    return _usable_invitation(connection, token, now)


def accept_invitation(
  store: Store, token: str, name: str, password: str, now: float
) -> User:
  """Makes the user of an invitation, or sets a new password.

  The name is not used where the invitation is for an existing user, whose
  sessions end.

  Raises:
    UserError: as `read_invitation`, or the name or the password is not
      possible ("bad_name", "name_taken", "bad_password"). The invitation can
      then be used again.
  """
  invitation = read_invitation(store, token, now)
  if invitation.for_user is None:
    name = _checked_name(name)
  else:
    name = get_user(store, invitation.for_user).name
  password_hash = _hash_password(_checked_password(password, name))
  with store.begin() as connection:
    # Another request may have used it in the meantime.
    invitation = _usable_invitation(connection, token, now)
    if invitation.for_user is None:
      user_id = _add_user(connection, invitation, name, password_hash, now)
    else:
      user_id = invitation.for_user
      _set_password(connection, user_id, name, password_hash)
    connection.execute(
      sa.update(schema.invitations)
      .where(schema.invitations.c.token_hash == _token_hash(token))
      .values(used_by=user_id, used_at=now)
    )
    return _user_of_id(connection, user_id)


def list_invitations(store: Store) -> list[Invitation]:
  """Returns all invitations, newest first."""
  table = schema.invitations
  with store.read() as connection:
    rows = connection.execute(
      sa.select(table).order_by(table.c.created_at.desc(), table.c.token_hash)
    )
    return [_invitation(row) for row in rows]


def revoke_invitation(store: Store, invitation_id: str) -> None:
  """Removes an invitation that was not used.

  Raises:
    UserError: there is none ("no_invitation").
  """
  table = schema.invitations
  with store.begin() as connection:
    done = connection.execute(
      sa.delete(table).where(
        table.c.token_hash == invitation_id, table.c.used_at.is_(None)
      )
    )
    if not done.rowcount:
      raise _no_invitation()


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
  token = secrets.token_urlsafe(_TOKEN_BYTES)
  table = schema.sessions
  with store.begin() as connection:
    user = _user_of_id(connection, user_id)
    if not user.active:
      raise _wrong_log_in()
    connection.execute(sa.delete(table).where(table.c.expires_at <= now))
    connection.execute(
      sa.insert(table).values(
        token_hash=_token_hash(token),
        user_id=user.id,
        created_at=now,
        expires_at=now + SESSION_SECONDS,
      )
    )
  return token, user


def session_user(store: Store, token: str, now: float) -> User | None:
  """Returns the user of a session, or None if it has ended."""
  users, sessions = schema.users, schema.sessions
  with store.read() as connection:
    row = connection.execute(
      sa.select(users)
      .join(sessions, sessions.c.user_id == users.c.id)
      .where(
        sessions.c.token_hash == _token_hash(token),
        sessions.c.expires_at > now,
        users.c.active,
      )
    ).first()
  return None if row is None else _user(row)


def log_out(store: Store, token: str) -> None:
  """Ends a session."""
  table = schema.sessions
  with store.begin() as connection:
    connection.execute(
      sa.delete(table).where(table.c.token_hash == _token_hash(token))
    )


def change_password(
  store: Store, user_id: int, old: str, new: str, address: str, now: float
) -> None:
  """Changes a password, and ends all sessions of the user.

  Raises:
    UserError: the old password is wrong, or the new one is not possible;
      codes as those of `log_in` and `accept_invitation`.
  """
  name = get_user(store, user_id).name
  checked = _checked_password(new, name)
  _check_password(store, name, old, address, now)
  password_hash = _hash_password(checked)
  with store.begin() as connection:
    _set_password(connection, user_id, name, password_hash)


def list_users(store: Store) -> list[User]:
  """Returns all users in order of their ids."""
  with store.read() as connection:
    rows = connection.execute(
      sa.select(schema.users).order_by(schema.users.c.id)
    )
    return [_user(row) for row in rows]


def get_user(store: Store, user_id: int) -> User:
  """Returns a user.

  Raises:
    UserError: there is none ("not_found").
  """
  with store.read() as connection:
    return _user_of_id(connection, user_id)


def update_user(
  store: Store,
  user_id: int,
  now: float,
  *,
  role: str | None = None,
  held_out: bool | None = None,
  active: bool | None = None,
) -> User:
  """Changes a user; one who is not active loses sessions and locks.

  Raises:
    UserError: there is no such user ("not_found") or role ("bad_role"), only
      labelers can be held out ("held_out_role"), or the project would have no
      owner ("last_owner").
  """
  users = schema.users
  with store.begin() as connection:
    before = _user_of_id(connection, user_id)
    user = dataclasses.replace(
      before,
      role=before.role if role is None else role,
      held_out=before.held_out if held_out is None else held_out,
      active=before.active if active is None else active,
    )
    _check_role_name(user.role, user.held_out)
    if before.role == "owner" and not (user.role == "owner" and user.active):
      _check_other_owner(connection, user.id)
    connection.execute(
      sa.update(users)
      .where(users.c.id == user.id)
      .values(role=user.role, held_out=user.held_out, active=user.active)
    )
    if not user.active:
      _end_sessions(connection, user.id)
      _free_places(connection, user.id, now)
    return user


def check_role(connection: sa.Connection, user_id: int, *roles: str) -> User:
  """Returns a user, within a transaction, who is active and has a role.

  Raises:
    UserError: the user has none of the roles ("not_allowed").
  """
  row = None
  if is_id(user_id):
    row = connection.execute(
      sa.select(schema.users).where(schema.users.c.id == user_id)
    ).first()
  if row is None or not row.active or row.role not in roles:
    raise UserError(
      f"only {' or '.join(roles)} may do this",
      fix="ask the owner of the project",
      code="not_allowed",
    )
  return _user(row)


# Invitations and users.


def _add_invitation(
  store: Store, now: float, seconds: float, *, note: str, **values
) -> str:
  token = secrets.token_urlsafe(_TOKEN_BYTES)
  with store.begin() as connection:
    connection.execute(
      sa.insert(schema.invitations).values(
        token_hash=_token_hash(token),
        note=_printable(note)[:MAX_NOTE],
        created_at=now,
        expires_at=now + seconds,
        **values,
      )
    )
  return token


def _usable_invitation(
  connection: sa.Connection, token: str, now: float
) -> Invitation:
  table = schema.invitations
  row = connection.execute(
    sa.select(table).where(table.c.token_hash == _token_hash(token))
  ).first()
  if row is None:
    raise _no_invitation()
  if row.used_at is not None:
    raise UserError(
      "this invitation was used",
      fix="log in, or ask the owner of the project for a new one",
      code="invitation_used",
    )
  if now >= row.expires_at:
    raise UserError(
      "this invitation has expired",
      fix="ask the owner of the project for a new one",
      code="invitation_expired",
    )
  return _invitation(row)


def _no_invitation() -> UserError:
  return UserError(
    "there is no such invitation",
    fix="open the whole link, or ask the owner of the project for a new one",
    code="no_invitation",
  )


def _add_user(
  connection: sa.Connection,
  invitation: Invitation,
  name: str,
  password_hash: str,
  now: float,
) -> int:
  users = schema.users
  key = _name_key(name)
  if connection.execute(
    sa.select(users.c.id).where(users.c.name_key == key)
  ).first():
    raise UserError(
      f"the name {name} is taken",
      field="name",
      fix="choose another name",
      code="name_taken",
    )
  row = connection.execute(
    sa.insert(users)
    .values(
      name=name,
      name_key=key,
      role=invitation.role,
      held_out=invitation.held_out,
      password=password_hash,
      active=True,
      created_at=now,
    )
    .returning(users.c.id)
  )
  return row.scalar_one()


def _user_of_id(connection: sa.Connection, user_id: int) -> User:
  row = None
  if is_id(user_id):
    row = connection.execute(
      sa.select(schema.users).where(schema.users.c.id == user_id)
    ).first()
  if row is None:
    raise UserError("there is no such user", code="not_found")
  return _user(row)


def _user(row: sa.Row) -> User:
  values = row._mapping
  return User(**{f.name: values[f.name] for f in dataclasses.fields(User)})


def _invitation(row: sa.Row) -> Invitation:
  values = dict(row._mapping)
  return Invitation(id=values.pop("token_hash"), **values)


def _check_role_name(role: str, held_out: bool) -> None:
  if role not in schema.ROLES:
    raise UserError(
      f"{role!r} is no role",
      field="role",
      fix=f"choose one of {', '.join(schema.ROLES)}",
      code="bad_role",
    )
  if held_out and role not in ("labeler", "candidate"):
    raise UserError(
      f"one with the role {role} cannot be a held-out labeler",
      field="held_out",
      fix="only labelers and candidates can be held out",
      code="held_out_role",
    )


def _check_other_owner(connection: sa.Connection, user_id: int) -> None:
  users = schema.users
  if not connection.execute(
    sa.select(users.c.id).where(
      users.c.role == "owner", users.c.active, users.c.id != user_id
    )
  ).first():
    raise UserError(
      "the project would have no owner",
      fix="make another user an owner first",
      code="last_owner",
    )


def _end_sessions(connection: sa.Connection, user_id: int) -> None:
  table = schema.sessions
  connection.execute(sa.delete(table).where(table.c.user_id == user_id))


def _free_places(connection: sa.Connection, user_id: int, now: float) -> None:
  table = schema.assignments
  connection.execute(
    sa.update(table)
    .where(table.c.user_id == user_id, table.c.state == "open")
    .values(locked_until=now)
  )


# Names.


def _printable(text: str) -> str:
  """Returns a text without control characters and lone surrogates."""
  text = unicodedata.normalize("NFC", text)
  return " ".join(
    "".join(
      c
      for c in text
      if c in _JOINERS or c.isspace() or unicodedata.category(c)[0] != "C"
    ).split()
  )


def _name_key(name: str) -> str:
  for joiner in _JOINERS:
    name = name.replace(joiner, "")
  folded = unicodedata.normalize("NFKC", name).casefold()
  # Case folding can undo the normal form.
  return " ".join(unicodedata.normalize("NFKC", folded).split())


def _checked_name(name: str) -> str:
  """Returns a name with single spaces.

  Raises:
    UserError: it is empty, too long, or has control characters.
  """
  clean = _printable(name)
  if clean != unicodedata.normalize("NFC", " ".join(name.split())):
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


# Passwords and tokens.


def _token_hash(token: str) -> str:
  return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _checked_password(password: str, name: str) -> bytes:
  """Returns the bytes of a new password.

  Raises:
    UserError: it is too short, too long, or the user's name.
  """
  size = len(password)
  if size < MIN_PASSWORD:
    problem = f"a password has at least {MIN_PASSWORD} characters"
  elif size > MAX_PASSWORD:
    problem = f"a password has at most {MAX_PASSWORD} characters"
  elif _name_key(password) == _name_key(name):
    problem = "the password is the name"
  else:
    return _password_bytes(password)
  raise UserError(
    problem, field="password", fix="choose another one", code="bad_password"
  )


def _password_bytes(password: str) -> bytes:
  # Keyboards write accents in different ways.
  return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
  with _HASHING:
    return hashlib.scrypt(
      password, salt=salt, n=n, r=r, p=p, maxmem=_MAX_MEMORY, dklen=_KEY_BYTES
    )


def _hash_password(password: bytes) -> str:
  salt = secrets.token_bytes(_SALT_BYTES)
  key = _scrypt(password, salt, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
  return _hash_text(salt, key)


def _impossible_hash() -> str:
  """Returns the hash of no password; comparing with it costs the usual time."""
  salt = secrets.token_bytes(_SALT_BYTES)
  return _hash_text(salt, secrets.token_bytes(_KEY_BYTES))


def _hash_text(salt: bytes, key: bytes) -> str:
  cost = (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
  texts = [base64.b64encode(value).decode() for value in (salt, key)]
  return "$".join(["scrypt", *map(str, cost), *texts])


def _matches(password: bytes, password_hash: str) -> bool:
  _, n, r, p, salt, key = password_hash.split("$")
  return hmac.compare_digest(
    _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p)),
    base64.b64decode(key),
  )


def _set_password(
  connection: sa.Connection, user_id: int, name: str, password_hash: str
) -> None:
  users, attempts = schema.users, schema.attempts
  connection.execute(
    sa.update(users).where(users.c.id == user_id).values(password=password_hash)
  )
  _end_sessions(connection, user_id)
  name_digest = _digest(_name_key(name))
  connection.execute(
    sa.delete(attempts).where(
      sa.or_(
        attempts.c.key == f"name:{name_digest}",
        attempts.c.key.like(f"pair:{name_digest}:%"),
      )
    )
  )


def _wrong_log_in() -> UserError:
  return UserError(
    "the name or the password is wrong",
    fix="try again, or ask the owner of the project for a new password",
    code="wrong_log_in",
  )


# The limit on failed log-ins.


def _check_password(
  store: Store, name: str, password: str, address: str, now: float
) -> int:
  """Returns the id of the user who has the name and the password.

  Raises:
    TooManyLogIns: too many log-ins have failed.
    UserError: there is none ("wrong_log_in").
  """
  limits = _limits(name, address)
  # Before the password is checked, so that parallel guesses count as well.
  attempt_ids = _count_attempt(store, limits, now)
  users = schema.users
  row = None
  if len(password) <= MAX_PASSWORD and len(name) <= 4 * MAX_NAME:
    with store.read() as connection:
      row = connection.execute(
        sa.select(users).where(users.c.name_key == _database_text(name))
      ).first()
  # Unknown names take the same time as known ones.
  stored = _impossible_hash() if row is None else row.password
  matches = _matches(_password_bytes(password[:MAX_PASSWORD]), stored)
  if row is None or not matches or not row.active:
    raise _wrong_log_in()
  attempts = schema.attempts
  pair, by_name, _ = limits
  with store.begin() as connection:
    # An account of one's own must not reset the limit of an address.
    connection.execute(
      sa.delete(attempts).where(
        sa.or_(
          attempts.c.key.in_([pair, by_name]), attempts.c.id.in_(attempt_ids)
        )
      )
    )
  return row.id


def _database_text(name: str) -> str:
  """Returns the key of a name that a log-in form sent."""
  key = _name_key(name).encode("utf-8", "replace").decode("utf-8")
  return key.replace("\0", "\ufffd")


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _limits(name: str, address: str) -> dict[str, int]:
  """Returns key → largest number of failures for a log-in."""
  try:
    host = ipaddress.ip_address(address)
    if host.version == 6 and host.ipv4_mapped is not None:
      host = host.ipv4_mapped
    # One subscriber has a whole /64 of IPv6 addresses.
    prefix = 32 if host.version == 4 else 64
    address = str(ipaddress.ip_network((host, prefix), strict=False))
  except ValueError:
    pass
  name, address = _digest(_name_key(name)), _digest(address)
  return {
    f"pair:{name}:{address}": MAX_FAILURES_OF_PAIR,
    f"name:{name}": MAX_FAILURES_OF_NAME,
    f"address:{address}": MAX_FAILURES_OF_ADDRESS,
  }


def _count_attempt(
  store: Store, limits: dict[str, int], now: float
) -> list[int]:
  """Records a log-in under each key; returns the ids of the rows.

  Raises:
    TooManyLogIns: one of the keys has reached its limit.
  """
  table = schema.attempts
  with store.begin() as connection:
    # Rows of the future were written before the clock was put back.
    connection.execute(
      sa.delete(table).where(
        sa.or_(
          table.c.at <= now - WINDOW_SECONDS, table.c.at > now + WINDOW_SECONDS
        )
      )
    )
    for key, limit in limits.items():
      times = connection.execute(
        sa.select(table.c.at).where(table.c.key == key).order_by(table.c.at)
      )
      times = list(times.scalars())
      if len(times) >= limit:
        raise TooManyLogIns(times[-limit] + WINDOW_SECONDS - now)
    return [
      connection.execute(
        sa.insert(table).values(key=key, at=now).returning(table.c.id)
      ).scalar_one()
      for key in limits
    ]
