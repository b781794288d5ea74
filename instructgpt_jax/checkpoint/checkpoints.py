"""Checkpoints that a run resumes from, and the model that it produces."""

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
_LOCK_TIMEOUT = 1.0  # seconds; a process that only reads has the lock shortly


@dataclasses.dataclass(frozen=True)
class RetentionPolicy:
  """Selects the checkpoints that are kept after a save.

  Attributes:
    newest: number of newest checkpoints to keep.
    every: keeps the first checkpoint at or after each multiple of this step; 0
      disables.
    best: whether to keep the checkpoint with the highest score.
  """

  newest: int = 2
  every: int = 0
  best: bool = False

  def steps_to_keep(self, scores: Mapping[int, float | None]) -> set[int]:
    """Returns which of the steps in `scores` (step → score) to keep."""
    steps = sorted(scores)
    keep = set(steps[-self.newest :])
    if self.every:
      first: dict[int, int] = {}
      for step in steps:
        first.setdefault(step // self.every, step)
      keep.update(step for multiple, step in first.items() if multiple)
    scored = {step: s for step, s in scores.items() if s is not None}
    if self.best and scored:
      keep.add(max(scored, key=lambda step: scored[step]))
    return keep


class Checkpointer:
  """Saves and restores the checkpoints of a run, asynchronously."""

  def __init__(
    self, directory: str | pathlib.Path, keep: RetentionPolicy | None = None
  ):
    """Opens `directory`/checkpoints, and deletes unfinished saves.

    While another process has it open, this one can only read.

    Args:
      directory: workdir of the run.
      keep: checkpoints to keep; the two newest when None.

    Raises:
      UserError: a checkpoint has the name of another step.
    """
    self._path = pathlib.Path(directory).absolute() / CHECKPOINTS
    self._retention = keep or RetentionPolicy()
    files.make_directory(self._path)
    self._scores: dict[int, float | None] = {}
    for path in self._path.iterdir():
      step = _step(path)
      if step is not None:
        values = _values(path)
        if values.get("step", step) != step:
          raise _misnamed(path, values["step"])
        self._scores[step] = values.get("score")
    # The inode of an open directory is not reused.
    self._descriptor = os.open(self._path, os.O_RDONLY)
    self._locked = self._lock()
    self._background = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future | None = None

  def _lock(self) -> bool:
    """Tries to become the writer, and then deletes unfinished saves."""
    if not processes.is_main_process():
      return True
    try:
      locked = locks.lock(self._descriptor, _LOCK_TIMEOUT)
    except OSError:  # The file system cannot lock directories.
      locked = True
    if locked:
      for path in self._path.iterdir():
        if storage.is_temporary(path):
          storage.remove(path)
    return locked

  @property
  def steps(self) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(self._scores)

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any],
    score: float | None = None,
  ) -> None:
    """Starts to save, after the previous save has ended.

    Args:
      step: number of updates done. If it is saved already, nothing happens.
      state: any pytree of arrays; may be donated as soon as this returns.
      extra: JSON values, such as the position in the data; bytes are allowed.
      score: quality of the state, for `RetentionPolicy.best`.

    Raises:
      UserError: the disk is full or unavailable, or another run saves in the
        same directory. Earlier checkpoints are unchanged.
    """
    self.wait()
    if step in self._scores:
      return
    self._check_directory()
    if not self._locked:
      raise locks.in_use(self._path)
    with storage.saving(self._path):
      finish = storage.save(
        self._path / str(step), state, extra, step=step, score=score
      )
    self._pending = self._background.submit(self._finish, finish, step, score)

  def _finish(
    self, finish: Callable[[], None], step: int, score: float | None
  ) -> None:
    """Ends a save, and deletes checkpoints that are not kept."""
    finish()
    scores = self._scores | {step: score}
    keep = self._retention.steps_to_keep(scores)
    self._scores = {step: scores[step] for step in keep}
    if processes.is_main_process():
      for path in self._path.iterdir():
        if _step(path) not in {None, *keep}:
          # The new name marks a partly deleted directory.
          old = storage.sibling(path, storage.OLD)
          storage.remove(path.rename(old))

  def restore_latest(
    self,
    abstract_state: Any,
    check: Callable[[dict[str, Any]], None] = lambda extra: None,
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest undamaged checkpoint.

    Args:
      abstract_state: tree of arrays or ShapeDtypeStructs. The stored leaves
        must have its shapes and dtypes, and get its shardings. Or a function
        from a step to such a tree.
      check: called with `extra` before the state is read; may raise an error.

    Returns:
      (step, state, extra) as they were saved, or None if there is no
      checkpoint.

    Raises:
      UserError: all checkpoints are damaged, or the newest undamaged one has
        another state.
    """
    self.wait()
    damage: dict[pathlib.Path, str] = {}
    for step in reversed(self.steps):
      path = self._path / str(step)
      problem = storage.find_damage(path)
      if not problem:
        for other, what in damage.items():
          log_line(
            f"warning: {other} is damaged ({what}); resuming from {path}"
          )
        extra = storage.load_values(path)
        check(extra)
        like = abstract_state
        state = storage.load(path, like(step) if callable(like) else like)
        return step, state, extra
      damage[path] = problem
      del self._scores[step]  # A later save replaces it.
    if not damage:
      return None
    path, problem = next(iter(damage.items()))
    raise UserError(
      f"is damaged ({problem}), and no older checkpoint is undamaged",
      file=str(path),
      fix=f"delete {self._path} and rerun the stage",
      code="damaged_checkpoints",
    )

  def wait(self) -> None:
    """Waits until the last save is on the disk, and raises its errors."""
    pending, self._pending = self._pending, None
    if pending is not None:
      self._check_directory()
      with storage.saving(self._path):
        pending.result()
      processes.barrier("checkpoint")

  def _check_directory(self) -> None:
    """Raises a UserError if the directory has been moved or deleted.

    Orbax would make a new one.
    """
    storage.check_same_inode(self._descriptor, self._path)

  def close(self) -> None:
    """Waits and closes; may be called twice."""
    try:
      self.wait()
    finally:
      self._background.shutdown()
      descriptor, self._descriptor = self._descriptor, -1
      if descriptor >= 0:
        os.close(descriptor)

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
  """Saves parameters in `directory`/model, replacing an earlier model.

  Args:
    directory: workdir of a stage.
    params: nested dict of arrays.
    info: JSON values that `load_model_info` returns.
  """
  base = files.make_directory(pathlib.Path(directory).absolute())
  with storage.saving(base):
    storage.save(base / MODEL, params, info)()
  processes.barrier("model")


def save_model_parts(
  directory: str | pathlib.Path, parts: Iterable[Any], info: Mapping[str, Any]
) -> None:
  """Saves parameters that do not fit memory at once, as `save_model` does.

  Args:
    directory: workdir of a stage.
    parts: disjoint nested dicts of arrays; each is written before the next is
      requested.
    info: JSON values that `load_model_info` returns.
  """
  base = files.make_directory(pathlib.Path(directory).absolute())
  with storage.saving(base):
    storage.save_parts(base / MODEL, parts, info)
  processes.barrier("model")


def load_model(
  directory: str | pathlib.Path, abstract_params: Any = None
) -> Any:
  """Loads the parameters that `save_model` wrote.

  Args:
    directory: workdir of a stage.
    abstract_params: tree of leaves with shape, dtype and sharding. Without it
      the result is a nested dict on the default device.

  Raises:
    UserError: there is no model, it is damaged, or it has other parameters.
  """
  return storage.load(_verified_model(directory), abstract_params)


def model_reader(directory: str | pathlib.Path) -> Callable[[Any], Any]:
  """Verifies a model, and returns a function that loads some of its leaves."""
  path = _verified_model(directory)
  return lambda abstract: storage.load(path, abstract, part=True)


def load_model_info(directory: str | pathlib.Path) -> dict[str, Any]:
  """Returns the `info` that `save_model` wrote."""
  return storage.load_values(_verified_model(directory, deep=False))


def newest_values(directory: str | pathlib.Path) -> dict[str, Any]:
  """Returns the `extra` of the newest intact checkpoint; {} if there is none.

  Args:
    directory: workdir of the run.
  """
  path = pathlib.Path(directory).absolute() / CHECKPOINTS
  steps = [_step(p) for p in path.iterdir()] if path.is_dir() else []
  for step in sorted((s for s in steps if s is not None), reverse=True):
    if _values(path / str(step)):
      return storage.load_values(path / str(step))
  return {}


def has_model(directory: str | pathlib.Path) -> bool:
  """Returns whether `directory` has a saved model."""
  return _model_path(pathlib.Path(directory)) is not None


def _model_path(base: pathlib.Path) -> pathlib.Path | None:
  """Returns the model's directory, or None.

  A process that was killed while replacing a model leaves only the old one.
  """
  path = base / MODEL
  for candidate in (path, storage.sibling(path, storage.OLD)):
    if candidate.is_dir():
      return candidate
  return None


def _verified_model(
  directory: str | pathlib.Path, *, deep: bool = True
) -> pathlib.Path:
  """Verifies a model's checksums, and returns its directory.

  Raises:
    UserError: there is no model, it is damaged, or it has no checksums.
  """
  base = pathlib.Path(directory).absolute()
  path = _model_path(base)
  if path is None:
    raise UserError(
      "has no trained model" if base.is_dir() else "there is no such directory",
      file=str(directory),
      fix="use the --workdir of a stage that has finished",
      code="no_model",
    )
  if not (path / manifest.MANIFEST).exists():
    raise UserError(
      f"has no {manifest.MANIFEST}, so damage cannot be detected",
      file=str(path),
      fix="restore the file, or accept the model as it is with"
      f" python -m instructgpt_jax.checkpoint.accept {directory}",
      code="no_checksums",
    )
  if problem := storage.find_damage(path, deep=deep):
    raise UserError(
      f"is damaged ({problem})",
      file=str(path),
      fix=f"restore a copy, or delete {base} and rerun the stage",
      code="damaged_model",
    )
  return path


def _step(path: pathlib.Path) -> int | None:
  """Returns the step that is a directory's name; None for other names."""
  name = path.name
  is_step = name.isascii() and name.isdecimal() and name == str(int(name))
  return int(name) if is_step else None


def _values(path: pathlib.Path) -> dict[str, Any]:
  """Returns a checkpoint's step and score; {} if it is damaged."""
  with contextlib.suppress(UserError):
    return manifest.read(path)
  return {}


def _misnamed(path: pathlib.Path, step: int) -> UserError:
  return UserError(
    f"contains step {step}, so its name is wrong",
    file=str(path),
    fix="rename it to something other than a number, such as"
    f" copy-of-{step}, or delete it",
    code="misnamed_checkpoint",
  )
