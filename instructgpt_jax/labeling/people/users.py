"""Users and their roles.

Every refusal is a UserError whose `code` says which; its text may be shown.
"""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import names
from instructgpt_jax.labeling.store import Store, is_id


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


def list_users(store: Store) -> list[User]:
  """Returns all users in order of their ids."""
  with store.read() as connection:
    rows = connection.execute(
      sa.select(schema.users).order_by(schema.users.c.id)
    )
    return [user_of_row(row) for row in rows]


def get_user(store: Store, user_id: int) -> User:
  """Returns a user.

  Raises:
    UserError: there is none ("not_found").
  """
  with store.read() as connection:
    return user_of_id(connection, user_id)


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
      labelers can be held out ("held_out_role"), the project would have no
      owner ("last_owner"), or labels of a held-out labeler would become those
      of a training labeler ("held_out_labels").
  """
  with store.begin() as connection:
    return change_user(
      connection, user_id, now, role=role, held_out=held_out, active=active
    )


def change_user(
  connection: sa.Connection,
  user_id: int,
  now: float,
  *,
  role: str | None = None,
  held_out: bool | None = None,
  active: bool | None = None,
) -> User:
  """Changes a user, within a transaction; see `update_user`."""
  table = schema.users
  before = user_of_id(connection, user_id)
  user = dataclasses.replace(
    before,
    role=before.role if role is None else role,
    held_out=before.held_out if held_out is None else held_out,
    active=before.active if active is None else active,
  )
  check_role_name(user.role, user.held_out)
  if before.role == "owner" and not (user.role == "owner" and user.active):
    _check_other_owner(connection, user.id)
  if before.held_out and not user.held_out:
    _check_no_labels(connection, user.id)
  connection.execute(
    sa.update(table)
    .where(table.c.id == user.id)
    .values(role=user.role, held_out=user.held_out, active=user.active)
  )
  if not user.active:
    end_sessions(connection, user.id)
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
  return user_of_row(row)


def add_user(
  connection: sa.Connection,
  name: str,
  password_hash: str,
  now: float,
  *,
  role: str,
  held_out: bool,
) -> int:
  """Adds a user within a transaction, and returns the id.

  Raises:
    UserError: another user has the name ("name_taken").
  """
  table = schema.users
  key = names.name_key(name)
  if connection.execute(
    sa.select(table.c.id).where(table.c.name_key == key)
  ).first():
    raise UserError(
      f"the name {name} is taken",
      field="name",
      fix="choose another name",
      code="name_taken",
    )
  row = connection.execute(
    sa.insert(table)
    .values(
      name=name,
      name_key=key,
      role=role,
      held_out=held_out,
      password=password_hash,
      active=True,
      created_at=now,
    )
    .returning(table.c.id)
  )
  return row.scalar_one()


def user_of_id(connection: sa.Connection, user_id: int) -> User:
  """Returns a user, within a transaction; see `get_user`."""
  row = None
  if is_id(user_id):
    row = connection.execute(
      sa.select(schema.users).where(schema.users.c.id == user_id)
    ).first()
  if row is None:
    raise UserError("there is no such user", code="not_found")
  return user_of_row(row)


def user_of_row(row: sa.Row) -> User:
  """Returns the user of a row of `schema.users`."""
  values = row._mapping
  return User(**{f.name: values[f.name] for f in dataclasses.fields(User)})


def check_role_name(role: str, held_out: bool) -> None:
  """Refuses a role that does not exist, or cannot be held out.

  Raises:
    UserError: there is no such role ("bad_role"), or only labelers can be
      held out ("held_out_role").
  """
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
  table = schema.users
  if not connection.execute(
    sa.select(table.c.id).where(
      table.c.role == "owner", table.c.active, table.c.id != user_id
    )
  ).first():
    raise UserError(
      "the project would have no owner",
      fix="make another user an owner first",
      code="last_owner",
    )


def _check_no_labels(connection: sa.Connection, user_id: int) -> None:
  """Refuses a held-out labeler whose labels would reach a training export."""
  labels, items = schema.labels, schema.items
  if connection.execute(
    sa.select(labels.c.id)
    .join(items, items.c.id == labels.c.item_id)
    .where(labels.c.user_id == user_id, items.c.task != "screening")
  ).first():
    raise UserError(
      "the labels of a held-out labeler never become training labels",
      fix="invite the person once more, under another name",
      code="held_out_labels",
    )


def end_sessions(connection: sa.Connection, user_id: int) -> None:
  """Ends all sessions of a user, within a transaction."""
  table = schema.sessions
  connection.execute(sa.delete(table).where(table.c.user_id == user_id))


def _free_places(connection: sa.Connection, user_id: int, now: float) -> None:
  table = schema.assignments
  connection.execute(
    sa.update(table)
    .where(table.c.user_id == user_id, table.c.state == "open")
    .values(locked_until=now)
  )
