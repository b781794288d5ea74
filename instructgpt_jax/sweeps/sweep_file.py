"""Reads and writes sweep.json: the settings and runs of a sweep."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import claims, files
from instructgpt_jax.sweeps import jobs, records

NAME = "sweep.json"


def read_sweep(root: str) -> dict[str, Any]:
  """Reads sweep.json.

  Raises:
    UserError: the directory holds no sweep.
  """
  path = pathlib.Path(root) / NAME
  value = files.read_json(path, fix="give the --workdir of a sweep")
  if not isinstance(value, dict) or not isinstance(value.get("jobs"), list):
    raise UserError(
      "is not a sweep", file=str(path), fix="delete it", code="not_a_sweep"
    )
  return value


def write_sweep(
  root: str,
  head: Mapping[str, Any],
  entries: Sequence[Mapping[str, Any]],
  defaults: Mapping[str, Mapping[str, Any]] | None = None,
  inputs: Mapping[str, str] | None = None,
) -> None:
  """Writes sweep.json, or adds runs to an existing one.

  Args:
    root: the sweep's directory.
    head: settings of all runs. An existing sweep must have the same, except for
      flags that a run may change from call to call, such as run.keep.
    entries: {"name": …, "overrides": {field: value}} of each run.
    defaults: name of a part of `head` → the preset's value of each flag in it.
      An error names this value for a flag that only one of two calls sets.
    inputs: "FIELD=PATH" → hash of what the runs read. It must equal the hash in
      an existing sweep.

  Raises:
    UserError: the directory holds another sweep, or what it reads has changed.
  """
  with records.locked(records.lock_path(root, "plan")):
    if not (pathlib.Path(root) / NAME).exists():
      if (pathlib.Path(root) / files.CONFIG).exists():
        raise UserError(
          "is the workdir of a run",
          file=root,
          fix="choose another --workdir for the sweep",
          code="workdir_of_a_run",
        )
      sweep = {**head, "jobs": []}
    else:
      sweep = read_sweep(root)
      for name, value in files.to_json_values(head).items():
        if name in sweep:  # files of earlier versions may lack it
          _check_same(
            root, name, sweep[name], value, (defaults or {}).get(name)
          )
      _check_inputs(root, sweep.get("inputs", {}), inputs or {})
      sweep |= head
    sweep["inputs"] = {**sweep.get("inputs", {}), **(inputs or {})}
    known = {entry["name"]: entry for entry in sweep["jobs"]}
    for entry in entries:
      old = known.setdefault(entry["name"], dict(entry))
      overrides = files.to_json_values(entry["overrides"])
      _check_same(root, entry["name"], old["overrides"], overrides)
    _write(root, {**sweep, "jobs": list(known.values())})


def update_entry(root: str, name: str, **values: Any) -> None:
  """Adds values to the entry of a run."""
  with records.locked(records.lock_path(root, "plan")):
    sweep = read_sweep(root)
    for entry in sweep["jobs"]:
      if entry["name"] == name:
        entry.update(values)
    _write(root, sweep)


def _check_inputs(
  root: str, old: Mapping[str, str], new: Mapping[str, str]
) -> None:
  for key in sorted(old.keys() & new.keys()):
    if old[key] != new[key]:
      field, _, path = key.partition("=")
      raise UserError(
        f"{path} has changed after this sweep began",
        file=root,
        field=field,
        fix="restore the earlier content, or choose another --workdir",
        code="data_changed",
      )


def _write(root: str, sweep: Mapping[str, Any]) -> None:
  files.write_json_atomic(pathlib.Path(root) / NAME, sweep)


def _check_same(
  root: str,
  what: str,
  old: Any,
  new: Any,
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Raises a UserError if a value differs from that of the earlier call."""
  if isinstance(old, dict) and isinstance(new, dict):
    for name in dict.fromkeys([*new, *old]):
      default = (defaults or {}).get(name)
      before, now = (values.get(name, default) for values in (old, new))
      if before != now and not claims.may_change(name):
        _reject(root, name, before, now)
  elif old != new:
    _reject(root, what, old, new)


def _reject(root: str, what: str, old: Any, new: Any) -> NoReturn:
  before, now = ("nothing" if v is None else jobs.format_flag(v)
                 for v in (old, new))  # fmt: skip
  raise UserError(
    f"holds a sweep that was begun with {what}={before}, not {now}",
    file=root,
    field=what,
    fix="use the earlier value, or choose another --workdir",
    code="other_sweep",
  )
