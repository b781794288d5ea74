"""Tables of a labeling store.

A store has one project. Times are UTC seconds since 1970. JSON columns hold
content that `forms` has validated. A change of these tables needs a new module
in `migrations/versions/`; a test compares both.
"""

from __future__ import annotations

import sqlalchemy as sa

# Stored in the header of SQLite files ("IGJL"), so that no other file is taken
# for a store.
APPLICATION_ID = 0x49474A4C
VERSION_TABLE = "labeling_version"

ROLES = ("owner", "reviewer", "labeler", "candidate")
TASKS = ("ranking", "demonstration", "comparison", "screening")

# SQLite numbers rows of INTEGER columns only.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.Double()

metadata = sa.MetaData(
  naming_convention={
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
  }
)


def _user(name: str, *, nullable: bool = False, **options) -> sa.Column:
  return sa.Column(
    name, _ID, sa.ForeignKey("users.id"), nullable=nullable, **options
  )


users = sa.Table(
  "users",
  metadata,
  sa.Column("id", _ID, primary_key=True),
  sa.Column("name", sa.Text, nullable=False),  # as it was typed
  # The name without case and variants of characters.
  sa.Column("name_key", sa.Text, nullable=False, unique=True),
  sa.Column("role", sa.Text, nullable=False),
  sa.Column("held_out", sa.Boolean, nullable=False),
  sa.Column("password", sa.Text, nullable=False),  # scrypt hash
  sa.Column("active", sa.Boolean, nullable=False),
  sa.Column("created_at", _TIME, nullable=False),
)

# An invitation makes a user, or gives the user `for_user` a new password.
invitations = sa.Table(
  "invitations",
  metadata,
  sa.Column("token_hash", sa.Text, primary_key=True),
  sa.Column("role", sa.Text, nullable=False),
  sa.Column("held_out", sa.Boolean, nullable=False),
  sa.Column("note", sa.Text, nullable=False),  # for the owner's list
  sa.Column("created_at", _TIME, nullable=False),
  sa.Column("expires_at", _TIME, nullable=False),
  _user("for_user", nullable=True),
  _user("used_by", nullable=True),
  sa.Column("used_at", _TIME),
)

sessions = sa.Table(
  "sessions",
  metadata,
  sa.Column("token_hash", sa.Text, primary_key=True),
  _user("user_id", index=True),
  sa.Column("created_at", _TIME, nullable=False),
  sa.Column("expires_at", _TIME, nullable=False),
)

# Keys that sign the cookies of sessions.
signing_keys = sa.Table(
  "signing_keys",
  metadata,
  sa.Column("id", _ID, primary_key=True, autoincrement=False),
  sa.Column("secret", sa.Text, nullable=False),  # hexadecimal
  sa.Column("created_at", _TIME, nullable=False),
)

# Failed log-ins, for the limit on their rate.
attempts = sa.Table(
  "attempts",
  metadata,
  sa.Column("id", _ID, primary_key=True),
  sa.Column("key", sa.Text, nullable=False),
  sa.Column("at", _TIME, nullable=False, index=True),
  sa.Index(None, "key", "at"),
)

project = sa.Table(
  "project",
  metadata,
  sa.Column("id", _ID, primary_key=True, autoincrement=False),  # always 1
  sa.Column("settings", sa.JSON, nullable=False),
)

instructions = sa.Table(
  "instructions",
  metadata,
  sa.Column("version", _ID, primary_key=True, autoincrement=False),
  sa.Column("markdown", sa.Text, nullable=False),
  sa.Column("created_at", _TIME, nullable=False),
)

items = sa.Table(
  "items",
  metadata,
  sa.Column("id", _ID, primary_key=True),
  sa.Column("task", sa.Text, nullable=False),
  sa.Column("payload", sa.JSON, nullable=False),
  sa.Column("kind", sa.Text, nullable=False),
  # Number of labelers; NULL is all of them, as for screening and gold items.
  sa.Column("overlap", sa.Integer),
  # Content that a labeler is expected to submit; NULL for other items.
  sa.Column("gold", sa.JSON(none_as_null=True)),
  sa.Column("closed_at", _TIME),
  sa.Column("created_at", _TIME, nullable=False),
  sa.Index(None, "task", "closed_at"),
)

# An item in the hands of one labeler. An open assignment occupies one of the
# item's places until `locked_until`, and a submitted one always.
assignments = sa.Table(
  "assignments",
  metadata,
  sa.Column("id", _ID, primary_key=True),
  sa.Column("item_id", _ID, sa.ForeignKey("items.id"), nullable=False),
  _user("user_id"),
  sa.Column("state", sa.Text, nullable=False),  # open, submitted, skipped
  # display_order[i] is the stored index of the completion shown at place i.
  sa.Column("display_order", sa.JSON, nullable=False),
  sa.Column("locked_until", _TIME, nullable=False),
  sa.Column("active_seconds", _TIME, nullable=False),
  sa.Column("active_at", _TIME, nullable=False),  # seconds are counted so far
  sa.Column("reason", sa.Text),  # of a skipped one
  sa.Column("created_at", _TIME, nullable=False),
  sa.UniqueConstraint("item_id", "user_id"),
  sa.Index(None, "user_id", "state"),
)

# What a labeler has in the form, also after it was submitted: `revision` only
# grows, so that an older page is recognized.
drafts = sa.Table(
  "drafts",
  metadata,
  sa.Column(
    "assignment_id", _ID, sa.ForeignKey("assignments.id"), primary_key=True
  ),
  sa.Column("content", sa.JSON, nullable=False),
  sa.Column("revision", sa.Integer, nullable=False),
  sa.Column("saved_at", _TIME, nullable=False),
)

# Labels that count. One that its labeler takes back is in `label_history` only.
labels = sa.Table(
  "labels",
  metadata,
  sa.Column("id", _ID, primary_key=True),
  sa.Column(
    "assignment_id",
    _ID,
    sa.ForeignKey("assignments.id"),
    nullable=False,
    unique=True,
  ),
  sa.Column(
    "item_id", _ID, sa.ForeignKey("items.id"), nullable=False, index=True
  ),
  _user("user_id", index=True),
  sa.Column("content", sa.JSON, nullable=False),
  sa.Column("instructions_version", _ID, sa.ForeignKey("instructions.version")),
  sa.Column("revision", sa.Integer, nullable=False),
  sa.Column("seconds", _TIME, nullable=False),  # active time on the item
  sa.Column("submitted_at", _TIME, nullable=False),
  sa.Column("revised_at", _TIME),
)

# Every revision of every label, the current one included. `action` is
# "submitted", "revised" or "withdrawn".
label_history = sa.Table(
  "label_history",
  metadata,
  sa.Column(
    "assignment_id", _ID, sa.ForeignKey("assignments.id"), primary_key=True
  ),
  sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
  sa.Column("action", sa.Text, nullable=False),
  sa.Column("content", sa.JSON, nullable=False),
  sa.Column("instructions_version", _ID),
  sa.Column("at", _TIME, nullable=False),
)

# The owner's verdicts on candidates; the newest counts.
decisions = sa.Table(
  "decisions",
  metadata,
  sa.Column("id", _ID, primary_key=True),
  _user("user_id", index=True),  # the candidate
  sa.Column("decision", sa.Text, nullable=False),
  _user("by"),
  sa.Column("at", _TIME, nullable=False),
  sa.Column("note", sa.Text, nullable=False),
)

# A reviewer's rating, 1 to 7, of a candidate's demonstration.
ratings = sa.Table(
  "ratings",
  metadata,
  sa.Column(
    "assignment_id", _ID, sa.ForeignKey("assignments.id"), primary_key=True
  ),
  _user("user_id", primary_key=True),
  sa.Column("rating", sa.Integer, nullable=False),
  sa.Column("at", _TIME, nullable=False),
)

# A reviewer's final label of an item.
adjudications = sa.Table(
  "adjudications",
  metadata,
  sa.Column("item_id", _ID, sa.ForeignKey("items.id"), primary_key=True),
  sa.Column("content", sa.JSON, nullable=False),
  _user("user_id"),
  sa.Column("at", _TIME, nullable=False),
)
