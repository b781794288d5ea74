"""What several commands do with a store."""

from __future__ import annotations

import pathlib
import time

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import project
from instructgpt_jax.labeling import snapshot as snapshot_lib
from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.labeling.people import invitations, users
from instructgpt_jax.labeling.snapshot import Snapshot
from instructgpt_jax.labeling.store import Store
from instructgpt_jax.runs import files


def check_output(path: pathlib.Path, field: str, fix: str) -> None:
  """Refuses an output that exists, or that could not be written later."""
  if path.exists():
    raise UserError(
      "exists already",
      file=str(path),
      field=field,
      fix=fix,
      code="output_exists",
    )
  files.check_output(path, field=field, overwrite=True)


def check_store(location: str) -> None:
  """Refuses a store that could not be made or opened later."""
  try:
    store_lib.open_store(location).close()
  except UserError as error:
    if error.code != "no_store":
      raise


def update(location: str, path: str, *, create: bool) -> Store:
  """Opens a store and brings it up to a project."""
  description = project.read_project(path)
  items, remarks = project.read_items(description)
  store = store_lib.open_store(location, create=create)
  try:
    changes = project.update_store(store, description, items, time.time())
  except BaseException:
    store.close()
    raise
  for remark in remarks:
    print(remark)
  print(f"{store.name}: {changes.added} of {changes.total} items are new")
  if changes.changed:
    print(
      f"{changes.changed} items have another overlap, kind or source, or other"
      " gold ranks"
    )
  if changes.others:
    print(
      f"{changes.others} items of the store are in no file of {path}; they stay"
    )
  if changes.is_new_version:
    print(f"the instructions have version {changes.instructions}")
  elif description.instructions not in (
    "",
    project.read_instructions(store)[1],
  ):
    print(
      f"the instructions of {path} are those of an older version; version"
      f" {changes.instructions} stays, until others are published on the page"
      " Instructions"
    )
  return store


def print_owner_link(store: Store, url: str) -> None:
  """Prints an invitation of an owner, unless the store has one."""
  owners = [u for u in users.list_users(store) if u.role == "owner"]
  if not owners:
    token = invitations.invite(store, "owner", time.time(), note="command line")
    print(f"owner: {url}/invitation#{token}", flush=True)


def read_snapshot(location: str) -> Snapshot:
  """Returns the labels of a store."""
  store = store_lib.open_store(location)
  try:
    with store.read() as connection:
      return snapshot_lib.read_snapshot(connection)
  finally:
    store.close()
