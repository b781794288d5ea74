"""Makes the first version's tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
  """Makes the tables."""
  op.create_table(
    "attempts",
    sa.Column("id", _ID, nullable=False),
    sa.Column("key", sa.Text(), nullable=False),
    sa.Column("at", sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
  )
  op.create_index(op.f("ix_attempts_at"), "attempts", ["at"], unique=False)
  op.create_index(
    op.f("ix_attempts_key_at"), "attempts", ["key", "at"], unique=False
  )
  op.create_table(
    "instructions",
    sa.Column("version", _ID, autoincrement=False, nullable=False),
    sa.Column("markdown", sa.Text(), nullable=False),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint("version", name=op.f("pk_instructions")),
  )
  op.create_table(
    "items",
    sa.Column("id", _ID, nullable=False),
    sa.Column("task", sa.Text(), nullable=False),
    sa.Column("payload", sa.JSON(), nullable=False),
    sa.Column("kind", sa.Text(), nullable=False),
    sa.Column("overlap", sa.Integer(), nullable=True),
    sa.Column("gold", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("closed_at", sa.Double(), nullable=True),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_items")),
  )
  op.create_index(
    op.f("ix_items_task_closed_at"),
    "items",
    ["task", "closed_at"],
    unique=False,
  )
  op.create_table(
    "project",
    sa.Column("id", _ID, autoincrement=False, nullable=False),
    sa.Column("settings", sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
  )
  op.create_table(
    "users",
    sa.Column("id", _ID, nullable=False),
    sa.Column("name", sa.Text(), nullable=False),
    sa.Column("name_key", sa.Text(), nullable=False),
    sa.Column("role", sa.Text(), nullable=False),
    sa.Column("held_out", sa.Boolean(), nullable=False),
    sa.Column("password", sa.Text(), nullable=False),
    sa.Column("active", sa.Boolean(), nullable=False),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    sa.UniqueConstraint("name_key", name=op.f("uq_users_name_key")),
  )
  op.create_table(
    "adjudications",
    sa.Column("item_id", _ID, nullable=False),
    sa.Column("content", sa.JSON(), nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("at", sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(
      ["item_id"], ["items.id"], name=op.f("fk_adjudications_item_id")
    ),
    sa.ForeignKeyConstraint(
      ["user_id"], ["users.id"], name=op.f("fk_adjudications_user_id")
    ),
    sa.PrimaryKeyConstraint("item_id", name=op.f("pk_adjudications")),
  )
  op.create_table(
    "assignments",
    sa.Column("id", _ID, nullable=False),
    sa.Column("item_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("state", sa.Text(), nullable=False),
    sa.Column("display_order", sa.JSON(), nullable=False),
    sa.Column("locked_until", sa.Double(), nullable=False),
    sa.Column("active_seconds", sa.Double(), nullable=False),
    sa.Column("active_at", sa.Double(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=True),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(
      ["item_id"], ["items.id"], name=op.f("fk_assignments_item_id")
    ),
    sa.ForeignKeyConstraint(
      ["user_id"], ["users.id"], name=op.f("fk_assignments_user_id")
    ),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_assignments")),
    sa.UniqueConstraint(
      "item_id", "user_id", name=op.f("uq_assignments_item_id_user_id")
    ),
  )
  op.create_index(
    op.f("ix_assignments_user_id_state"),
    "assignments",
    ["user_id", "state"],
    unique=False,
  )
  op.create_table(
    "decisions",
    sa.Column("id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("decision", sa.Text(), nullable=False),
    sa.Column("by", _ID, nullable=False),
    sa.Column("at", sa.Double(), nullable=False),
    sa.Column("note", sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(["by"], ["users.id"], name=op.f("fk_decisions_by")),
    sa.ForeignKeyConstraint(
      ["user_id"], ["users.id"], name=op.f("fk_decisions_user_id")
    ),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
  )
  op.create_index(
    op.f("ix_decisions_user_id"), "decisions", ["user_id"], unique=False
  )
  op.create_table(
    "invitations",
    sa.Column("token_hash", sa.Text(), nullable=False),
    sa.Column("role", sa.Text(), nullable=False),
    sa.Column("held_out", sa.Boolean(), nullable=False),
    sa.Column("note", sa.Text(), nullable=False),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.Column("expires_at", sa.Double(), nullable=False),
    sa.Column("for_user", _ID, nullable=True),
    sa.Column("used_by", _ID, nullable=True),
    sa.Column("used_at", sa.Double(), nullable=True),
    sa.ForeignKeyConstraint(
      ["for_user"], ["users.id"], name=op.f("fk_invitations_for_user")
    ),
    sa.ForeignKeyConstraint(
      ["used_by"], ["users.id"], name=op.f("fk_invitations_used_by")
    ),
    sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_invitations")),
  )
  op.create_table(
    "sessions",
    sa.Column("token_hash", sa.Text(), nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.Column("expires_at", sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(
      ["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")
    ),
    sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
  )
  op.create_index(
    op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False
  )
  op.create_table(
    "drafts",
    sa.Column("assignment_id", _ID, nullable=False),
    sa.Column("content", sa.JSON(), nullable=False),
    sa.Column("revision", sa.Integer(), nullable=False),
    sa.Column("saved_at", sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(
      ["assignment_id"],
      ["assignments.id"],
      name=op.f("fk_drafts_assignment_id"),
    ),
    sa.PrimaryKeyConstraint("assignment_id", name=op.f("pk_drafts")),
  )
  op.create_table(
    "label_history",
    sa.Column("assignment_id", _ID, nullable=False),
    sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
    sa.Column("action", sa.Text(), nullable=False),
    sa.Column("content", sa.JSON(), nullable=False),
    sa.Column("instructions_version", _ID, nullable=True),
    sa.Column("at", sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(
      ["assignment_id"],
      ["assignments.id"],
      name=op.f("fk_label_history_assignment_id"),
    ),
    sa.PrimaryKeyConstraint(
      "assignment_id", "revision", name=op.f("pk_label_history")
    ),
  )
  op.create_table(
    "labels",
    sa.Column("id", _ID, nullable=False),
    sa.Column("assignment_id", _ID, nullable=False),
    sa.Column("item_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("content", sa.JSON(), nullable=False),
    sa.Column("instructions_version", _ID, nullable=True),
    sa.Column("revision", sa.Integer(), nullable=False),
    sa.Column("seconds", sa.Double(), nullable=False),
    sa.Column("submitted_at", sa.Double(), nullable=False),
    sa.Column("revised_at", sa.Double(), nullable=True),
    sa.ForeignKeyConstraint(
      ["assignment_id"],
      ["assignments.id"],
      name=op.f("fk_labels_assignment_id"),
    ),
    sa.ForeignKeyConstraint(
      ["instructions_version"],
      ["instructions.version"],
      name=op.f("fk_labels_instructions_version"),
    ),
    sa.ForeignKeyConstraint(
      ["item_id"], ["items.id"], name=op.f("fk_labels_item_id")
    ),
    sa.ForeignKeyConstraint(
      ["user_id"], ["users.id"], name=op.f("fk_labels_user_id")
    ),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
    sa.UniqueConstraint("assignment_id", name=op.f("uq_labels_assignment_id")),
  )
  op.create_index(
    op.f("ix_labels_item_id"), "labels", ["item_id"], unique=False
  )
  op.create_index(
    op.f("ix_labels_user_id"), "labels", ["user_id"], unique=False
  )
  op.create_table(
    "ratings",
    sa.Column("assignment_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("rating", sa.Integer(), nullable=False),
    sa.Column("at", sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(
      ["assignment_id"],
      ["assignments.id"],
      name=op.f("fk_ratings_assignment_id"),
    ),
    sa.ForeignKeyConstraint(
      ["user_id"], ["users.id"], name=op.f("fk_ratings_user_id")
    ),
    sa.PrimaryKeyConstraint(
      "assignment_id", "user_id", name=op.f("pk_ratings")
    ),
  )
