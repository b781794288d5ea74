"""Folders of arrays by orbax; the only file that imports it.

A tree is stored as a flat table from each leaf's path to its array, so any
pytree can be saved and a mismatch names the leaf. A folder is written beside
its place, with the checksums of its files, and renamed: whatever cuts it short,
it is whole or absent. Values return with the sharding of the tree they are
loaded into.
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

OLD = ".old"  # what a folder is called that is being deleted
_SAVING = ".saving"
# Orbax adds to the name of what it has not ended.
_TEMPORARY = re.compile(r"\d+\.(?:saving(?:\.(?:partial_save|orbax-).*)?|old)")
_BYTES = "__bytes__"
_FULL = re.compile(
  r"no space left|quota exceeded|file too large|disk full|ENOSPC|EFBIG", re.I
)
_REFUSED = re.compile(r"permission denied|read-only file system", re.I)


def save(
  folder: pathlib.Path, tree: Any, values: Mapping[str, Any], **scores: Any
) -> Callable[[], None]:
  """Starts to write a folder.

  Args:
    folder: replaced if it is there. The one that holds it has to exist.
    tree: any pytree of arrays; may be donated as soon as this returns.
    values: JSON values (bytes are allowed too).
    scores: JSON values that `manifest.read` gives back.

  Returns:
    A function, which any thread may call: it returns when the folder is whole
    and in its place, and raises what went wrong.
  """
  scratch = sibling(folder, _SAVING)
  response = ocp.save_async(
    scratch,
    trees.flatten_with_paths(tree),
    overwrite=True,
    custom_metadata={"info": _encoded(values)},
  )

  def finish() -> None:
    response.result()
    _publish(scratch, folder, **scores)

  return finish


def save_parts(
  folder: pathlib.Path, parts: Iterable[Any], values: Mapping[str, Any]
) -> None:
  """Writes a folder of a tree that is not held all at once.

  Args:
    folder: as in `save`.
    parts: disjoint trees; each is written before the next is asked for.
    values: as in `save`.
  """
  scratch = sibling(folder, _SAVING)
  remove(scratch)
  for part in parts:
    ocp.partial.save(
      scratch,
      trees.flatten_with_paths(part),
      custom_metadata={"info": _encoded(values)},
    )
    del part
  ocp.partial.finalize(scratch)
  _publish(scratch, folder)


def load(folder: pathlib.Path, like: Any = None, *, part: bool = False) -> Any:
  """The tree that `save` was given.

  Args:
    folder: a whole one.
    like: tree of arrays or ShapeDtypeStructs; each leaf's shape and dtype are
      demanded, its sharding is given to the result. Without it the result is a
      nested dict on the default device.
    part: `like` may lack leaves, which are then not read.

  Raises:
    UserError: it is another tree, or cannot be read.
  """
  with _loading(folder):
    stored = _stored(ocp.metadata(folder))
  if like is None:
    wanted = {
      name: trees.abstract_leaf(jax.ShapeDtypeStruct(shape, dtype))
      for name, (shape, dtype) in stored.items()
    }
  else:
    wanted = trees.flatten_with_paths(like, abstract=True)
    _same_table(
      wanted,
      {n: x for n, x in stored.items() if n in wanted or not part},
      folder,
    )
    wanted = {name: wanted.get(name, ocp.PLACEHOLDER) for name in stored}
  with _loading(folder):
    table: Any = ocp.load(folder, wanted)
  return (
    trees.unflatten_dict(table)
    if like is None
    else trees.unflatten_like(table, like)
  )


def load_values(folder: pathlib.Path) -> dict[str, Any]:
  """The values that `save` was given."""
  with _loading(folder):
    metadata: Any = ocp.metadata(folder)
  return _decoded((metadata.custom_metadata or {}).get("info") or {})


def find_damage(folder: pathlib.Path, *, deep: bool = True) -> str:
  """`manifest.find_damage`, looked for by all processes and told to all."""
  count = processes.process_count()
  found = manifest.find_damage(folder, jax.process_index(), count, deep=deep)
  if count == 1:
    return found
  told = np.frombuffer(found.encode()[:200].ljust(200), np.uint8)
  everyone = np.asarray(multihost_utils.process_allgather(told))
  texts = (row.tobytes().decode(errors="replace").strip() for row in everyone)
  return next(filter(None, texts), "")


def sibling(folder: pathlib.Path, suffix: str) -> pathlib.Path:
  """The folder of the same name with a suffix."""
  return folder.with_name(folder.name + suffix)


def is_temporary(folder: pathlib.Path) -> bool:
  """Whether a name is that of an unfinished save or deletion."""
  return _TEMPORARY.fullmatch(folder.name) is not None


def remove(folder: pathlib.Path) -> None:
  """Deletes a folder, if it is there."""
  shutil.rmtree(folder, ignore_errors=True)


def _publish(new: pathlib.Path, folder: pathlib.Path, **scores: Any) -> None:
  if not processes.is_main_process():
    return
  manifest.write(new, **scores)
  old = sibling(folder, OLD)
  if folder.exists():
    remove(old)
    folder.rename(old)
  new.rename(folder)
  remove(old)


def _stored(metadata: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Path → (shape, dtype) of a checkpoint on the disk."""
  if metadata.metadata is None:
    raise ValueError("its arrays are missing or damaged")
  return {
    name: (tuple(leaf.shape), np.dtype(leaf.dtype))
    for name, leaf in metadata.metadata.items()
  }


def _same_table(
  wanted: Mapping[str, Any],
  stored: Mapping[str, tuple[tuple[int, ...], Any]],
  path: pathlib.Path,
) -> None:
  fix = "give the model's own --preset or --config, or another directory"
  for name in [*wanted, *(n for n in stored if n not in wanted)]:
    if name not in stored or name not in wanted:
      where = "is not in the checkpoint" if name in wanted else "is not wanted"
      raise UserError(f"{name} {where}", file=str(path), fix=fix)
    shape, dtype = stored[name]
    leaf = wanted[name]
    if shape != leaf.shape or dtype != leaf.dtype:
      raise UserError(
        f"{name} is {dtype}{list(shape)}, not {leaf.dtype}{list(leaf.shape)}",
        file=str(path),
        fix=fix,
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
  """The error and what led to it, each once: orbax's chains can be circles."""
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def check_same_inode(opened: int, path: pathlib.Path) -> None:
  """Raises a UserError where `path` is no longer what was opened."""
  try:
    if os.path.samestat(os.fstat(opened), os.stat(path)):
      return
  except OSError:
    pass
  raise UserError(
    "the folder has vanished",
    file=str(path),
    fix="see that the disk is there, and give the same command again",
  )


@contextlib.contextmanager
def saving(path: pathlib.Path) -> Iterator[None]:
  """A UserError for what the disk refuses; other errors pass unchanged.

  Args:
    path: the folder that is written to; one that vanishes is told as such,
      since orbax fails in many ways then, or begins a new one.
  """
  opened = os.open(path, os.O_RDONLY)
  with contextlib.ExitStack() as ending:
    ending.callback(os.close, opened)
    ending.callback(check_same_inode, opened, path)
    with _disk_errors(path):
      yield


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
  """A UserError for a disk that is full or may not be written."""
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
        fix="free some space and give the same command again",
      ) from error
    if _REFUSED.search(text):
      raise UserError(
        "may not be written",
        file=str(path),
        fix="choose a --workdir that you may write to",
      ) from error
    raise


@contextlib.contextmanager
def _loading(path: pathlib.Path) -> Iterator[None]:
  """A UserError for a checkpoint that cannot be read."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    problem = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"cannot be read as a checkpoint: {problem[:200]}",
      file=str(path),
      fix="delete this directory and run the stage again",
    ) from error
