"""What a run saves: checkpoints to go on from, and the model at its end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from instructgpt_jax.checkpoint import manifest, storage
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files, locks
from instructgpt_jax.runs.progress import log_line

CHECKPOINTS = "checkpoints"
MODEL = "model"
_PATIENCE = 1.0  # seconds that another process may look at the checkpoints


@dataclasses.dataclass(frozen=True)
class RetentionPolicy:
  """Which checkpoints outlive the next save.

  Attributes:
    newest: so many.
    every: the first one at or after each multiple of this step; 0 is none.
    best: the one of the highest score, of those that were given one.
  """

  newest: int = 2
  every: int = 0
  best: bool = False

  def chosen(self, scores: Mapping[int, float | None]) -> set[int]:
    """The steps to keep of those in `scores`."""
    steps = sorted(scores)
    kept = set(steps[-self.newest :])
    if self.every:
      first: dict[int, int] = {}
      for step in steps:
        first.setdefault(step // self.every, step)
      kept.update(step for place, step in first.items() if place)
    scored = {step: s for step, s in scores.items() if s is not None}
    if self.best and scored:
      kept.add(max(scored, key=lambda step: scored[step]))
    return kept


class Checkpointer:
  """A run's checkpoints, saved while the run goes on."""

  def __init__(
    self, directory: str | pathlib.Path, keep: RetentionPolicy | None = None
  ):
    """Opens `directory`/checkpoints, and deletes remains of killed saves.

    While another process saves there, this one can only read.

    Args:
      directory: workdir of the run.
      keep: which checkpoints are kept; the two newest when None.
    """
    self._path = pathlib.Path(directory).absolute() / CHECKPOINTS
    self._keep = keep or RetentionPolicy()
    files.make_directory(self._path)
    self._scores: dict[int, float | None] = {}
    for folder in self._path.iterdir():
      step = _step(folder)
      if step is not None:
        values = _values(folder)
        if values.get("step", step) != step:
          raise _misnamed(folder, values["step"])
        self._scores[step] = values.get("score")
    # The number of an open directory is not reused.
    self._opened = os.open(self._path, os.O_RDONLY)
    self._locked = self._lock()
    self._background = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future | None = None

  def _lock(self) -> bool:
    """Tries to become the writer, and deletes remains of killed saves."""
    if not processes.is_main_process():
      return True
    try:
      locked = locks.lock(self._opened, _PATIENCE)
    except OSError:  # This file system has no locks of directories.
      locked = True
    if locked:
      for folder in self._path.iterdir():
        if storage.is_temporary(folder):
          storage.remove(folder)
    return locked

  @property
  def steps(self) -> list[int]:
    """Steps of which there is a checkpoint, oldest first."""
    return sorted(self._scores)

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any],
    score: float | None = None,
  ) -> None:
    """Starts to save; waits first for the save before.

    Args:
      step: number of updates done. A step that is already saved is left alone.
      state: any pytree of arrays; may be donated as soon as this returns.
      extra: JSON values (bytes are allowed too), such as the data's position.
      score: how good the state is, for `Keep.best`.

    Raises:
      UserError: the disk is full, refuses or has vanished, or another run saves
        there; the checkpoints before are as they were.
    """
    self.wait()
    if step in self._scores:
      return
    self._look()
    if not self._locked:
      raise locks.in_use(self._path)
    with storage.saving(self._path):
      finish = storage.save(
        self._path / str(step), state, extra, step=step, score=score
      )
    self._pending = self._background.submit(self._end, finish, step, score)

  def _end(
    self, finish: Callable[[], None], step: int, score: float | None
  ) -> None:
    """Ends a save, and deletes the checkpoints that are no longer kept."""
    finish()
    scores = self._scores | {step: score}
    kept = self._keep.chosen(scores)
    self._scores = {step: scores[step] for step in kept}
    if processes.is_main_process():
      for folder in self._path.iterdir():
        if _step(folder) not in {None, *kept}:
          # Renamed first: what is deleted by halves is no checkpoint.
          old = storage.sibling(folder, storage.OLD)
          storage.remove(folder.rename(old))

  def restore_latest(
    self,
    abstract_state: Any,
    check: Callable[[dict[str, Any]], None] = lambda extra: None,
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest whole checkpoint; None when there is none at all.

    Args:
      abstract_state: tree of arrays or ShapeDtypeStructs; each leaf's shape and
        dtype are demanded, its sharding is given to the result. Or a function
        that gives the tree of a step.
      check: called with `extra` before the state is read; what it raises ends
        the restore.

    Returns:
      (step, state, extra) as they were saved.

    Raises:
      UserError: all are damaged, or the newest whole one is of another state.
    """
    self.wait()
    damage: dict[pathlib.Path, str] = {}
    for step in reversed(self.steps):
      path = self._path / str(step)
      problem = storage.find_damage(path)
      if not problem:
        for other, what in damage.items():
          log_line(
            f"warning: {other} is damaged ({what}); going on from {path}"
          )
        extra = storage.load_values(path)
        check(extra)
        like = abstract_state
        state = storage.load(path, like(step) if callable(like) else like)
        return step, state, extra
      damage[path] = problem
      del self._scores[step]  # A later save takes its place.
    if not damage:
      return None
    path, problem = next(iter(damage.items()))
    raise UserError(
      f"is damaged ({problem}), and no older checkpoint is whole",
      file=str(path),
      fix=f"delete {self._path} and run the stage again",
    )

  def wait(self) -> None:
    """Returns when everything is on the disk; raises what went wrong."""
    pending, self._pending = self._pending, None
    if pending is not None:
      self._look()
      with storage.saving(self._path):
        pending.result()
      processes.barrier("checkpoint")

  def _look(self) -> None:
    """Refuses to begin anew where the folder was, as orbax would."""
    storage.check_same_inode(self._opened, self._path)

  def close(self) -> None:
    """Waits and closes; may be called twice."""
    try:
      self.wait()
    finally:
      self._background.shutdown()
      opened, self._opened = self._opened, -1
      if opened >= 0:
        os.close(opened)

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, kind: Any, *unused: object) -> None:
    if kind is None:
      self.close()
    else:
      with contextlib.suppress(Exception):
        self.close()


def save_model(
  directory: str | pathlib.Path, params: Any, info: Mapping[str, Any]
) -> None:
  """Saves parameters in `directory`/model, replacing what was there.

  Args:
    directory: workdir of a stage.
    params: nested dict of arrays.
    info: JSON values that `load_model_info` gives back.
  """
  base = files.make_directory(pathlib.Path(directory).absolute())
  with storage.saving(base):
    storage.save(base / MODEL, params, info)()
  processes.barrier("model")


def save_model_parts(
  directory: str | pathlib.Path, parts: Iterable[Any], info: Mapping[str, Any]
) -> None:
  """`save_model` of parameters that are not held all at once.

  Args:
    directory: workdir of a stage.
    parts: nested dicts of arrays, disjoint; each is written before the next is
      asked for.
    info: JSON values that `load_model_info` gives back.
  """
  base = files.make_directory(pathlib.Path(directory).absolute())
  with storage.saving(base):
    storage.save_parts(base / MODEL, parts, info)
  processes.barrier("model")


def load_model(
  directory: str | pathlib.Path, abstract_params: Any = None
) -> Any:
  """The parameters that `save_model` wrote.

  Args:
    directory: workdir of a stage.
    abstract_params: tree whose leaves give shape, dtype and sharding; without
      it a nested dict on the default device.

  Raises:
    UserError: there is no model, it is damaged, or it is another one.
  """
  return storage.load(_whole_model(directory), abstract_params)


def model_reader(directory: str | pathlib.Path) -> Callable[[Any], Any]:
  """`load_model` of some leaves at a time; the model is verified now, once."""
  path = _whole_model(directory)
  return lambda abstract: storage.load(path, abstract, part=True)


def load_model_info(directory: str | pathlib.Path) -> dict[str, Any]:
  """The `info` that `save_model` wrote."""
  return storage.load_values(_whole_model(directory, deep=False))


def has_model(directory: str | pathlib.Path) -> bool:
  """Whether `directory` holds a saved model."""
  return _model_path(pathlib.Path(directory)) is not None


def _model_path(base: pathlib.Path) -> pathlib.Path | None:
  """Where the model lies; a kill may have come while one replaced another."""
  path = base / MODEL
  for found in (path, storage.sibling(path, storage.OLD)):
    if found.is_dir():
      return found
  return None


def _whole_model(
  directory: str | pathlib.Path, *, deep: bool = True
) -> pathlib.Path:
  """Returns the model's directory once its checksums are verified.

  Raises:
    UserError: there is no model, it is damaged, or it has no checksums.
  """
  base = pathlib.Path(directory).absolute()
  path = _model_path(base)
  if path is None:
    raise UserError(
      "holds no trained model"
      if base.is_dir()
      else "there is no such directory",
      file=str(directory),
      fix="give the --workdir of a stage that has run to its end",
    )
  if not (path / manifest.MANIFEST).exists():
    raise UserError(
      f"has no {manifest.MANIFEST}, so damage to it would not be noticed",
      file=str(path),
      fix="put the file back, or accept the model as it is with"
      f" python -m instructgpt_jax.checkpoint.accept {directory}",
      code="no_checksums",
    )
  if problem := storage.find_damage(path, deep=deep):
    raise UserError(
      f"is damaged ({problem})",
      file=str(path),
      fix=f"put back a copy, or delete {base} and run the stage again",
      code="damaged_model",
    )
  return path


def _step(folder: pathlib.Path) -> int | None:
  """Returns the step that a directory's name says; None for another name."""
  name = folder.name
  whole = name.isascii() and name.isdecimal() and name == str(int(name))
  return int(name) if whole else None


def _values(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a checkpoint's step and score; nothing where it is damaged."""
  with contextlib.suppress(UserError):
    return manifest.read(folder)
  return {}


def _misnamed(folder: pathlib.Path, step: int) -> UserError:
  return UserError(
    f"holds step {step}, so it is a copy under the name of another step",
    file=str(folder),
    fix="rename it to what is not a number, such as copy-of-"
    f"{step}, or remove it",
    code="misnamed_checkpoint",
  )
