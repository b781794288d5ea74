"""Directories of arrays, written and read by orbax.

This is the only file that imports orbax. A tree is stored as a flat dict from
each leaf's path to its array, so any pytree can be saved, and an error names
the leaf. A directory is written under a temporary name, gets checksums of its
files, and is renamed, so it is complete or absent whenever the process is
killed. Arrays are restored with the shardings of the tree that they fill.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from instructgpt_jax.checkpoint import manifest, trees
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

OLD = ".old"  # suffix of a directory that is being deleted
_SAVING = ".saving"  # suffix of a directory that is being written
# Orbax appends to the name of a directory that it has not finished.
_TEMPORARY = re.compile(r"\d+\.(?:saving(?:\.(?:partial_save|orbax-).*)?|old)")
_BYTES = "__bytes__"
_FULL = re.compile(
  r"no space left|quota exceeded|file too large|disk full|ENOSPC|EFBIG", re.I
)
_REFUSED = re.compile(r"permission denied|read-only file system", re.I)


def save(
  directory: pathlib.Path, tree: Any, values: Mapping[str, Any], **scores: Any
) -> Callable[[], None]:
  """Starts to save a tree in a directory.

  Args:
    directory: replaced if it exists. Its parent must exist.
    tree: any pytree of arrays; may be donated as soon as this returns.
    values: JSON values that `load_values` returns; bytes are allowed.
    scores: JSON values that `manifest.read` returns.

  Returns:
    A function that waits until the directory is complete and has its name. It
    raises the errors of the save, and may be called in any thread.
  """
  scratch = sibling(directory, _SAVING)
  response = ocp.save_async(
    scratch,
    trees.flatten_with_paths(tree),
    overwrite=True,
    custom_metadata={"info": _encoded(values)},
  )

  def finish() -> None:
    response.result()
    _publish(scratch, directory, **scores)

  return finish


def save_parts(
  directory: pathlib.Path, parts: Iterable[Any], values: Mapping[str, Any]
) -> None:
  """Saves a tree that does not fit memory at once.

  Args:
    directory: replaced if it exists. Its parent must exist.
    parts: disjoint trees; each is written before the next is requested.
    values: JSON values that `load_values` returns; bytes are allowed.
  """
  scratch = sibling(directory, _SAVING)
  remove(scratch)
  for part in parts:
    ocp.partial.save(
      scratch,
      trees.flatten_with_paths(part),
      custom_metadata={"info": _encoded(values)},
    )
    del part
  ocp.partial.finalize(scratch)
  _publish(scratch, directory)


def load(
  directory: pathlib.Path, like: Any = None, *, part: bool = False
) -> Any:
  """Loads the tree that `save` wrote.

  Args:
    directory: a complete directory.
    like: tree of arrays or ShapeDtypeStructs. The stored leaves must have its
      shapes and dtypes, and get its shardings. Without it the result is a
      nested dict on the default device.
    part: whether `like` may lack leaves, which are then not read.

  Raises:
    UserError: the stored tree differs from `like`, or cannot be read.
  """
  with _loading(directory):
    stored = _stored(ocp.metadata(directory))
  if like is None:
    requested = {
      name: trees.abstract_leaf(jax.ShapeDtypeStruct(shape, dtype))
      for name, (shape, dtype) in stored.items()
    }
  else:
    requested = trees.flatten_with_paths(like, abstract=True)
    _check_same_leaves(
      requested,
      {n: x for n, x in stored.items() if n in requested or not part},
      directory,
    )
    requested = {name: requested.get(name, ocp.PLACEHOLDER) for name in stored}
  with _loading(directory):
    leaves: Any = ocp.load(directory, requested)
  return (
    trees.unflatten_dict(leaves)
    if like is None
    else trees.unflatten_like(leaves, like)
  )


def load_values(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the values that were passed to `save`."""
  with _loading(directory):
    metadata: Any = ocp.metadata(directory)
  return _decoded((metadata.custom_metadata or {}).get("info") or {})


def find_damage(directory: pathlib.Path, *, deep: bool = True) -> str:
  """Checks a directory's checksums, with the work shared by all processes.

  Returns:
    A short description of the first damage, or ""; the same in all processes.
  """
  count = processes.process_count()
  damage = manifest.find_damage(
    directory, jax.process_index(), count, deep=deep
  )
  if count == 1:
    return damage
  # Processes exchange their texts as arrays of one size.
  encoded = np.frombuffer(damage.encode()[:200].ljust(200), np.uint8)
  gathered = np.asarray(multihost_utils.process_allgather(encoded))
  texts = (row.tobytes().decode(errors="replace").strip() for row in gathered)
  return next(filter(None, texts), "")


def sibling(directory: pathlib.Path, suffix: str) -> pathlib.Path:
  """Returns the path of the same name with a suffix."""
  return directory.with_name(directory.name + suffix)


def is_temporary(directory: pathlib.Path) -> bool:
  """Returns whether a path is of an unfinished save or deletion."""
  return _TEMPORARY.fullmatch(directory.name) is not None


def remove(directory: pathlib.Path) -> None:
  """Deletes a directory if it exists."""
  shutil.rmtree(directory, ignore_errors=True)


def _publish(new: pathlib.Path, directory: pathlib.Path, **scores: Any) -> None:
  """Writes the checksums, and renames a directory to its final name."""
  if not processes.is_main_process():
    return
  manifest.write(new, **scores)
  old = sibling(directory, OLD)
  if directory.exists():
    remove(old)
    directory.rename(old)
  new.rename(directory)
  remove(old)


def _stored(metadata: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns path → (shape, dtype) of a stored tree."""
  if metadata.metadata is None:
    raise ValueError("the arrays are missing or damaged")
  return {
    name: (tuple(leaf.shape), np.dtype(leaf.dtype))
    for name, leaf in metadata.metadata.items()
  }


def _check_same_leaves(
  requested: Mapping[str, Any],
  stored: Mapping[str, tuple[tuple[int, ...], Any]],
  path: pathlib.Path,
) -> None:
  """Checks that stored leaves have the requested paths, shapes and dtypes."""
  fix = "use the model's own --preset or --config, or another directory"
  for name in [*requested, *(n for n in stored if n not in requested)]:
    if name not in stored or name not in requested:
      problem = (
        f"{name} is not in the checkpoint"
        if name in requested
        else f"{name} is in the checkpoint, but not in this model"
      )
      raise UserError(problem, file=str(path), fix=fix, code="other_model")
    shape, dtype = stored[name]
    leaf = requested[name]
    if shape != leaf.shape or dtype != leaf.dtype:
      raise UserError(
        f"{name} is {dtype}{list(shape)}, not {leaf.dtype}{list(leaf.shape)}",
        file=str(path),
        fix=fix,
        code="other_model",
      )


def _encoded(value: Any) -> Any:
  if isinstance(value, bytes):
    return {_BYTES: base64.b64encode(value).decode()}
  if isinstance(value, Mapping):
    return {str(key): _encoded(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_encoded(item) for item in value]
  return files.to_json_values(value)


def _decoded(value: Any) -> Any:
  if isinstance(value, Mapping):
    if set(value) == {_BYTES}:
      return base64.b64decode(value[_BYTES])
    return {key: _decoded(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_decoded(item) for item in value]
  return value


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and its causes, each once; orbax's can form a cycle."""
  visited: set[int] = set()
  while error is not None and id(error) not in visited:
    visited.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def check_same_inode(descriptor: int, path: pathlib.Path) -> None:
  """Checks that `path` is still the directory that was opened.

  Raises:
    UserError: it has been moved, deleted or replaced.
  """
  try:
    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
      return
  except OSError:
    pass
  raise _vanished(path)


def _vanished(path: pathlib.Path) -> UserError:
  return UserError(
    "the directory has been moved or deleted",
    file=str(path),
    fix="check that the disk is available, and rerun the same command",
    code="directory_vanished",
  )


@contextlib.contextmanager
def saving(path: pathlib.Path) -> Iterator[None]:
  """Raises a UserError for errors of the disk during a save.

  A directory that disappears is such an error. Orbax would fail in one of many
  ways, or make a new directory.

  Args:
    path: directory that is written to.
  """
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except FileNotFoundError as error:
    raise _vanished(path) from error
  with contextlib.ExitStack() as stack:
    stack.callback(os.close, descriptor)
    stack.callback(check_same_inode, descriptor, path)
    with _disk_errors_as_user_errors(path):
      yield


@contextlib.contextmanager
def _disk_errors_as_user_errors(path: pathlib.Path) -> Iterator[None]:
  """Raises a UserError if the disk is full or read-only."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    for cause in _causes(error):
      if isinstance(cause, OSError) and cause.errno is not None:
        raise files.disk_error(cause, path) from error
    text = " ".join(str(cause) for cause in _causes(error))
    if _FULL.search(text):
      raise UserError(
        "the disk is full",
        file=str(path),
        fix="free some space and rerun the same command",
        code="disk_full",
      ) from error
    if _REFUSED.search(text):
      raise UserError(
        "is not writable",
        file=str(path),
        fix="choose a --workdir that you may write to",
        code="not_writable",
      ) from error
    raise


@contextlib.contextmanager
def _loading(path: pathlib.Path) -> Iterator[None]:
  """Raises a UserError if a checkpoint cannot be read."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    problem = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"cannot be read as a checkpoint: {problem[:200]}",
      file=str(path),
      fix="delete this directory and rerun the stage",
      code="unreadable_checkpoint",
    ) from error
