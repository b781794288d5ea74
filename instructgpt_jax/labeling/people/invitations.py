"""Invitations: links with which people become users.

The token of an invitation is random, and the store has its hash only.
"""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import (
  names,
  passwords,
  sessions,
  tokens,
  users,
)
from instructgpt_jax.labeling.people.users import User
from instructgpt_jax.labeling.store import Store

INVITATION_SECONDS = 14 * 86400.0
MAX_NOTE = 200


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
  users.check_role_name(role, held_out)
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
  user = users.get_user(store, user_id)
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
    name = names.checked_name(name)
  else:
    name = users.get_user(store, invitation.for_user).name
  checked = passwords.checked_password(password, name)
  password_hash = passwords.hash_password(checked)
  with store.begin() as connection:
    # Another request may have used it in the meantime.
    invitation = _usable_invitation(connection, token, now)
    if invitation.for_user is None:
      user_id = users.add_user(
        connection,
        name,
        password_hash,
        now,
        role=invitation.role,
        held_out=invitation.held_out,
      )
    else:
      user_id = invitation.for_user
      sessions.set_password(connection, user_id, name, password_hash)
    connection.execute(
      sa.update(schema.invitations)
      .where(schema.invitations.c.token_hash == tokens.hash_token(token))
      .values(used_by=user_id, used_at=now)
    )
    return users.user_of_id(connection, user_id)


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


def _add_invitation(
  store: Store, now: float, seconds: float, *, note: str, **values
) -> str:
  token = tokens.new_token()
  with store.begin() as connection:
    connection.execute(
      sa.insert(schema.invitations).values(
        token_hash=tokens.hash_token(token),
        note=names.printable(note)[:MAX_NOTE],
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
    sa.select(table).where(table.c.token_hash == tokens.hash_token(token))
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


def _invitation(row: sa.Row) -> Invitation:
  values = dict(row._mapping)
  return Invitation(id=values.pop("token_hash"), **values)
