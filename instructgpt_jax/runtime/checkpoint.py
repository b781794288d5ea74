"""Checkpoints by orbax; the only file that imports it.

A state is stored as a flat table from each leaf's path to its array, so any
pytree can be saved and a mismatch names the leaf. Orbax writes to a temporary
folder and renames it, so a save that is cut short leaves the earlier checkpoint
as it was. Values return with the sharding of the tree they are restored into.
"""

from __future__ import annotations

import base64
import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from instructgpt_jax.errors import UserError
from instructgpt_jax.runtime import files

CHECKPOINTS = "checkpoints"
MODEL = "model"
_NEXT, _OLD = "model.next", "model.old"
_BYTES = "__bytes__"
_FULL = re.compile(
  r"no space left|quota exceeded|file too large|disk full|ENOSPC|EFBIG", re.I
)
_REFUSED = re.compile(r"permission denied|read-only file system", re.I)


class Checkpointer:
  """A run's newest checkpoints, saved while the run goes on."""

  def __init__(self, directory: str | pathlib.Path, keep: int = 2):
    """Opens `directory`/checkpoints.

    Args:
      directory: workdir of the run.
      keep: number of newest checkpoints that are kept.
    """
    self._path = pathlib.Path(directory).absolute() / CHECKPOINTS
    files.make_directory(self._path)
    with _saving(self._path):
      self._orbax = ocp.training.Checkpointer(
        self._path,
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
      )
    self._pending: Any = None

  @property
  def steps(self) -> list[int]:
    """Steps of which a whole checkpoint exists, oldest first."""
    return [checkpoint.step for checkpoint in self._orbax.checkpoints]

  def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
    """Starts to save; waits first for the save before.

    Args:
      step: number of updates done. A step that is already saved is left alone.
      state: any pytree of arrays; may be donated as soon as this returns.
      extra: JSON values (bytes are allowed too), such as the data's position.

    Raises:
      UserError: the disk is full or refuses; the checkpoint before is whole.
    """
    self.wait()
    if step in self.steps:
      return
    with _saving(self._path):
      self._pending = self._orbax.save_async(
        int(step),
        _table(state),
        force=True,
        custom_metadata={"extra": _encoded(extra)},
      )

  def restore_latest(
    self, abstract_state: Any
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest whole checkpoint, or None when there is none.

    Args:
      abstract_state: tree of arrays or ShapeDtypeStructs; each leaf's shape and
        dtype are demanded, its sharding is given to the result.

    Returns:
      (step, state, extra) as they were saved.
    """
    self.wait()
    if not self.steps:
      return None
    step = self.steps[-1]
    with _loading(self._path / str(step)):
      metadata: Any = self._orbax.metadata(step)
      stored = _stored(metadata)
    wanted = _table(abstract_state, abstract=True)
    _same_table(wanted, stored, self._path / str(step))
    with _loading(self._path / str(step)):
      table = self._orbax.load(step, wanted)
    extra = _decoded((metadata.custom_metadata or {}).get("extra") or {})
    return step, _tree(table, abstract_state), extra

  def wait(self) -> None:
    """Returns when everything is on the disk; raises what went wrong."""
    pending, self._pending = self._pending, None
    if pending is not None:
      with _saving(self._path):
        pending.result()

  def close(self) -> None:
    """Waits and closes."""
    try:
      self.wait()
    finally:
      with _saving(self._path):
        self._orbax.close()

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
  with _replacing(directory) as path:
    ocp.save(
      path,
      _table(params),
      overwrite=True,
      custom_metadata={"info": _encoded(info)},
    )


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
  with _replacing(directory) as path:
    shutil.rmtree(path, ignore_errors=True)
    for part in parts:
      ocp.partial.save(
        path, _table(part), custom_metadata={"info": _encoded(info)}
      )
      del part
    ocp.partial.finalize(path)


@contextlib.contextmanager
def _replacing(directory: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """The place of a new model, which then replaces the old one."""
  base = files.make_directory(pathlib.Path(directory).absolute())
  with _saving(base):
    _settle(base)
    yield base / _NEXT
    if (base / MODEL).exists():
      (base / MODEL).rename(base / _OLD)
    (base / _NEXT).rename(base / MODEL)
    shutil.rmtree(base / _OLD, ignore_errors=True)


def load_model(
  directory: str | pathlib.Path, abstract_params: Any = None
) -> Any:
  """The parameters that `save_model` wrote.

  Args:
    directory: workdir of a stage.
    abstract_params: tree whose leaves give shape, dtype and sharding; without
      it a nested dict on the default device.
  """
  path = _model_path(directory)
  with _loading(path):
    stored = _stored(ocp.metadata(path))
  if abstract_params is None:
    wanted = {
      name: _abstract(jax.ShapeDtypeStruct(shape, dtype))
      for name, (shape, dtype) in stored.items()
    }
  else:
    wanted = _table(abstract_params, abstract=True)
    _same_table(wanted, stored, path)
  with _loading(path):
    table: Any = ocp.load(path, wanted)
  return (
    _nested(table) if abstract_params is None else _tree(table, abstract_params)
  )


def load_model_info(directory: str | pathlib.Path) -> dict[str, Any]:
  """The `info` that `save_model` wrote."""
  path = _model_path(directory)
  with _loading(path):
    metadata: Any = ocp.metadata(path)
  return _decoded((metadata.custom_metadata or {}).get("info") or {})


def has_model(directory: str | pathlib.Path) -> bool:
  """Whether `directory` holds a saved model."""
  base = pathlib.Path(directory)
  return any((base / name).is_dir() for name in (MODEL, _NEXT, _OLD))


def _settle(base: pathlib.Path) -> None:
  """Ends the replacement that a kill interrupted, so that MODEL is whole."""
  if not (base / MODEL).exists():
    for name in (_NEXT, _OLD):
      if (base / name).exists():
        (base / name).rename(base / MODEL)
        break
  shutil.rmtree(base / _OLD, ignore_errors=True)


def _model_path(directory: str | pathlib.Path) -> pathlib.Path:
  base = pathlib.Path(directory).absolute()
  for name in (MODEL, _NEXT, _OLD):
    if (base / name).is_dir():
      return base / name
  raise UserError(
    "holds no trained model" if base.is_dir() else "there is no such folder",
    file=str(directory),
    remedy="give the --workdir of a stage that has run to its end",
  )


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _impl(key: Any) -> Any:
  """The generator of a typed key, which may be abstract."""
  found = []
  jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)
  return found[0]


def _is_32_bit(leaf: Any) -> bool:
  """False for what would come back rounded: Python and 64-bit numbers."""
  return hasattr(leaf, "dtype") and (
    leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)
  )


def _abstract(leaf: Any) -> Any:
  """Shape, dtype and sharding of a leaf; typed keys as the bits they hold."""
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(
      jax.config.jax_default_device or jax.devices()[0]
    )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _table(tree: Any, *, abstract: bool = False) -> dict[str, Any]:
  """Path → leaf of a tree."""
  table = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in table:
      raise ValueError(f"two leaves are both called {name!r}")
    if not _is_key(leaf) and not _is_32_bit(leaf):
      raise TypeError(f"{name} is no 32-bit array; put it in `extra`")
    if abstract:
      table[name] = _abstract(leaf)
    elif _is_key(leaf):
      table[name] = jax.random.key_data(leaf)
    else:
      table[name] = leaf
  return table


def _tree(table: Mapping[str, Any], like: Any) -> Any:
  """The tree shaped as `like` with the table's leaves."""

  def leaf(path, old):
    value = table[jax.tree_util.keystr(path, simple=True, separator="/")]
    if _is_key(old):
      return jax.random.wrap_key_data(value, impl=_impl(old))
    return value

  return jax.tree_util.tree_map_with_path(leaf, like)


def _nested(table: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for name, value in table.items():
    *folders, last = name.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = value
  return tree


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
  remedy = "give the model's own --preset or --config, or another folder"
  for name in [*wanted, *(n for n in stored if n not in wanted)]:
    if name not in stored or name not in wanted:
      where = "is not in the checkpoint" if name in wanted else "is not wanted"
      raise UserError(f"{name} {where}", file=str(path), remedy=remedy)
    shape, dtype = stored[name]
    leaf = wanted[name]
    if shape != leaf.shape or dtype != leaf.dtype:
      raise UserError(
        f"{name} is {dtype}{list(shape)}, not {leaf.dtype}{list(leaf.shape)}",
        file=str(path),
        remedy=remedy,
      )


def _encoded(value: Any) -> Any:
  if isinstance(value, bytes):
    return {_BYTES: base64.b64encode(value).decode()}
  if isinstance(value, Mapping):
    return {str(key): _encoded(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_encoded(item) for item in value]
  return files.plain(value)


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


@contextlib.contextmanager
def _saving(path: pathlib.Path) -> Iterator[None]:
  """A UserError for what the disk refuses; other errors pass unchanged."""
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
        remedy="free some space and give the same command again",
      ) from error
    if _REFUSED.search(text):
      raise UserError(
        "may not be written",
        file=str(path),
        remedy="choose a folder with --workdir that you may write to",
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
      remedy="delete this folder and run the stage again",
    ) from error
