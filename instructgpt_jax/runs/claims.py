"""A run's claim on its workdir: a lock, and the config that it records."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.configs import renamed
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files, locks

# Fields that a later call of the same run may change: logging, and how far it
# runs and on which processes.
_MAY_CHANGE = ("run.", "until", "processes.", "data.explicit")
_MISSING = object()


@contextlib.contextmanager
def claim(
  directory: str | os.PathLike[str],
  experiment: str,
  config: Mapping[str, Any],
) -> Iterator[None]:
  """Locks a workdir for a run during the block, and records its config.

  If an error or interrupt precedes any other output, the workdir is restored,
  so that a corrected command can use it.

  Args:
    directory: the workdir; made if missing.
    experiment: name of the experiment, such as "sft".
    config: the config as nested JSON values.

  Raises:
    UserError: another run writes the workdir, or it belongs to another
      experiment or config.
  """
  with locks.lock_workdir(directory):
    existed = os.path.exists(os.path.join(directory, files.CONFIG))
    claim_workdir(directory, experiment, config)
    try:
      yield
    except BaseException:
      if not existed:
        _remove_config(directory)
      raise


def claim_workdir(
  workdir: str | os.PathLike[str],
  experiment: str,
  config: Mapping[str, Any],
) -> pathlib.Path:
  """Records a run's config in its workdir, or compares it with the record.

  Args:
    workdir: directory of the run; made if missing.
    experiment: name of the experiment, such as "sft".
    config: the config as nested JSON values. It may differ from the record in
      fields for which `may_change` is true.

  Returns:
    The workdir.

  Raises:
    UserError: the workdir belongs to another experiment or config.
  """
  directory = pathlib.Path(workdir)
  path = directory / files.CONFIG
  requested = {"experiment": experiment, "config": files.to_json_values(config)}
  if path.exists():
    recorded = files.read_json(
      path, fix="delete it, or choose another --workdir"
    )
    _check_same_run(recorded, requested, path)
    if recorded == requested:
      return directory
  files.make_directory(directory)
  files.write_json_atomic(path, requested)
  return directory


def may_change(name: str) -> bool:
  """Returns whether a later call of the same run may change a field."""
  return name.startswith(_MAY_CHANGE)


def _check_same_run(
  recorded: Any, requested: Mapping[str, Any], path: pathlib.Path
) -> None:
  if not isinstance(recorded, dict) or not isinstance(
    recorded.get("config"), dict
  ):
    raise UserError(
      "is not the config of a run",
      file=str(path),
      fix="choose another --workdir",
      code="not_a_config",
    )
  experiment = requested["experiment"]
  if recorded.get("experiment") != experiment:
    raise UserError(
      f"belongs to the experiment {recorded.get('experiment')!r}, not"
      f" {experiment!r}",
      file=str(path.parent),
      fix="choose another --workdir, or delete this one",
      code="other_experiment",
    )
  # A config of an earlier version is compared by today's names. A field that it
  # lacks is none.
  old_config = renamed.upgrade(recorded["config"], requested["config"])
  changed = [
    (name, old, new)
    for name, old, new in _differences(old_config, requested["config"])
    if not may_change(name) and not (old is _MISSING and new is None)
  ]
  if changed:
    name, old, new = changed[0]
    more = f" and {len(changed) - 1} more differ" if len(changed) > 1 else ""
    raise UserError(
      f"the existing run used --{name}={_value_text(old)}, not"
      f" {_value_text(new)}{more}",
      file=str(path.parent),
      field=name,
      fix="use the old value to resume, or choose another --workdir",
      code="config_differs",
    )


def _differences(
  old: Any, new: Any, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (dotted name, old value, new value) where two configs differ."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    for key in list(new) + [key for key in old if key not in new]:
      name = f"{path}.{key}" if path else str(key)
      yield from _differences(
        old.get(key, _MISSING), new.get(key, _MISSING), name
      )
  elif old != new:
    yield path, old, new


def _value_text(value: Any) -> str:
  if value is None:
    return "none"
  return "nothing" if value is _MISSING else repr(value)


def _remove_config(workdir: str | os.PathLike[str]) -> None:
  """Removes the config if it is the only file.

  Hidden files do not count: they are locks and temporary files.
  """
  with contextlib.suppress(OSError):
    names = [n for n in os.listdir(workdir) if not n.startswith(".")]
    if names == [files.CONFIG]:
      os.unlink(pathlib.Path(workdir) / files.CONFIG)
