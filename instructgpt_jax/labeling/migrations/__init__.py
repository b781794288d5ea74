"""Versions of a store's tables, and the upgrade from one to the next.

A new version is a module in `versions/`, with the `revision` of the next number
and `down_revision` of the one before, as Alembic documents it.
"""

from __future__ import annotations

import functools
import pathlib
import threading
from typing import Any

import sqlalchemy as sa
from alembic import config
from alembic.runtime import environment, migration
from alembic.script import ScriptDirectory

from instructgpt_jax.labeling import schema

_DIRECTORY = pathlib.Path(__file__).parent
NEWEST = "0002"
# Alembic's context is global.
_upgrading = threading.Lock()


@functools.cache
def _scripts() -> ScriptDirectory:
  return ScriptDirectory(str(_DIRECTORY))


def versions() -> set[str]:
  """Returns the versions that this program knows."""
  return {script.revision for script in _scripts().walk_revisions()}


def current_version(connection: sa.Connection) -> str | None:
  """Returns the version of a store's tables, or None where there are none."""
  context = migration.MigrationContext.configure(
    connection, opts={"version_table": schema.VERSION_TABLE}
  )
  return context.get_current_revision()


def upgrade(connection: sa.Connection) -> None:
  """Makes or upgrades all tables, within the connection's transaction."""

  def steps(revision: Any, context: Any) -> Any:
    return _scripts()._upgrade_revs("head", revision)

  with (
    _upgrading,
    environment.EnvironmentContext(
      config.Config(), _scripts(), fn=steps, destination_rev="head"
    ) as context,
  ):
    context.configure(
      connection=connection,
      version_table=schema.VERSION_TABLE,
      transactional_ddl=True,
    )
    context.run_migrations()
