"""Makes the table of keys that sign session cookies."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
  """Makes the table; sessions of before have to log in again."""
  op.create_table(
    "signing_keys",
    sa.Column("id", _ID, autoincrement=False, nullable=False),
    sa.Column("secret", sa.Text(), nullable=False),
    sa.Column("created_at", sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
  )
