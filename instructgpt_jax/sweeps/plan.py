"""sweep.json: what a sweep consists of, kept in its folder."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.runtime import files
from instructgpt_jax.sweeps import jobs, records

NAME = "sweep.json"


def read(root: str) -> dict[str, Any]:
  """The plan; a UserError where the folder holds no sweep."""
  path = pathlib.Path(root) / NAME
  held = files.read_json(path, fix="give the --workdir of a sweep")
  if not isinstance(held, dict) or not isinstance(held.get("jobs"), list):
    raise UserError("is not a sweep", file=str(path), fix="delete it")
  return held


def begin(
  root: str, head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the plan, or adds runs to one that is there.

  Args:
    root: the sweep's folder.
    head: what all runs share. A plan that is there must have the same.
    entries: {"name": …, "overrides": {field: value}} of each run.

  Raises:
    UserError: the folder holds another sweep.
  """
  with records.held(records.lock_path(root, "plan")):
    if not (pathlib.Path(root) / NAME).exists():
      held = {**head, "jobs": []}
    else:
      held = read(root)
      for name, value in files.plain(head).items():
        _same(root, name, held.get(name), value)
    known = {entry["name"]: entry for entry in held["jobs"]}
    for entry in entries:
      old = known.setdefault(entry["name"], dict(entry))
      _same(root, entry["name"], old["overrides"], entry["overrides"])
    _write(root, {**held, "jobs": list(known.values())})


def note(root: str, name: str, **values: Any) -> None:
  """Adds values to the entry of a run."""
  with records.held(records.lock_path(root, "plan")):
    held = read(root)
    for entry in held["jobs"]:
      if entry["name"] == name:
        entry.update(values)
    _write(root, held)


def _write(root: str, held: Mapping[str, Any]) -> None:
  files.write_json_atomic(pathlib.Path(root) / NAME, held)


def _same(root: str, what: str, old: Any, new: Any) -> None:
  if old == new:
    return
  if isinstance(old, dict) and isinstance(new, dict):
    for name in [*new, *old]:
      if old.get(name) != new.get(name):
        what, old, new = name, old.get(name), new.get(name)
        break
  before, now = ("nothing" if v is None else jobs.flag_text(v)
                 for v in (old, new))  # fmt: skip
  raise UserError(
    f"holds a sweep that was begun with {what}={before}, not {now}",
    file=root,
    fix="give the old value, or choose another --workdir",
  )
