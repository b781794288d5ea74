"""Users, invitations, passwords and sessions.

Tokens of invitations and sessions are random; the store has their hashes only.
Every refusal is a UserError whose `code` says which; its text may be shown.
"""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from instructgpt_jax.labeling.store import Store

INVITATION_SECONDS = 14 * 86400.0
SESSION_SECONDS = 14 * 86400.0


@dataclasses.dataclass(frozen=True)
class User:
  """A user.

  Attributes:
    id: number in exports (`labeler_id`).
    name: name as the user typed it; unique without regard to case.
    role: one of `schema.ROLES`.
    held_out: whether the labels stay out of training exports.
    active: whether the user may log in.
    created_at: time of the first log-in.
  """

  id: int
  name: str
  role: str
  held_out: bool
  active: bool
  created_at: float


@dataclasses.dataclass(frozen=True)
class Invitation:
  """A row of the owner's list of invitations; the token is not known."""

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
  raise NotImplementedError


def invite_to_reset(
  store: Store, user_id: int, now: float, seconds: float = 86400.0
) -> str:
  """Makes an invitation with which a user chooses a new password.

  Raises:
    UserError: there is no such user ("not_found").
  """
  raise NotImplementedError


def read_invitation(store: Store, token: str, now: float) -> Invitation:
  """Returns an invitation that can be accepted.

  Raises:
    UserError: it does not exist ("no_invitation"), was used
      ("invitation_used"), or has expired ("invitation_expired").
  """
  raise NotImplementedError


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
  raise NotImplementedError


def list_invitations(store: Store) -> list[Invitation]:
  """Returns all invitations, newest first."""
  raise NotImplementedError


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
    UserError: wrong name or password, or an inactive user ("wrong_log_in");
      too many failures ("too_many_log_ins").
  """
  raise NotImplementedError


def session_user(store: Store, token: str, now: float) -> User | None:
  """Returns the user of a session, or None if it has ended."""
  raise NotImplementedError


def log_out(store: Store, token: str) -> None:
  """Ends a session."""
  raise NotImplementedError


def change_password(
  store: Store,
  user_id: int,
  old: str,
  new: str,
  address: str,
  now: float,
) -> None:
  """Changes a password, and ends all sessions of the user.

  Raises:
    UserError: the old password is wrong, or the new one is not possible;
      codes as those of `log_in` and `accept_invitation`.
  """
  raise NotImplementedError


def list_users(store: Store) -> list[User]:
  """Returns all users in order of their ids."""
  raise NotImplementedError


def get_user(store: Store, user_id: int) -> User:
  """Returns a user.

  Raises:
    UserError: there is none ("not_found").
  """
  raise NotImplementedError


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
  raise NotImplementedError


def check_role(connection: sa.Connection, user_id: int, *roles: str) -> User:
  """Returns a user, within a transaction, who is active and has a role.

  Raises:
    UserError: the user has none of the roles ("not_allowed").
  """
  raise NotImplementedError
