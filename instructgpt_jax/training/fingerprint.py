"""Fingerprints of a run's data, saved in its checkpoints.

A position in the data is valid only for the same records in the same batches.
A run that resumes compares the fingerprint in its checkpoint with that of the
data it has just read, and ends with an error where they differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax.checkpoint import manifest
from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs.progress import log_line

_MODEL = "model"  # `checkpoint.MODEL`, without importing JAX
# Files of another library's model that decide what it computes.
_MODEL_SUFFIXES = (
  ".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".bpe",
)  # fmt: skip
_WHOLE = 1 << 26  # bytes of a file that are hashed at its beginning and end
KEY = "inputs"  # of a fingerprint in what a checkpoint keeps
_FIX = "put back what the run began with, or choose another --workdir"


@dataclasses.dataclass(frozen=True)
class Source:
  """Fingerprint of one source of a run.

  Attributes:
    files: [name, size in bytes] of each file.
    records: split → number of records that the run uses.
    hash: hash of these records, as the run uses them.
  """

  files: Sequence[Sequence[Any]]
  records: Mapping[str, int]
  hash: str


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """Values that a position in the data of a run depends on.

  Attributes:
    batch: name → value, what a step holds.
    sources: field that names a source, such as "data.prompts" → the source.
    counted: whether a checkpoint that does not say what a step holds is
      accepted: nothing but the config decides it.
  """

  batch: Mapping[str, int | float]
  sources: Mapping[str, Source]
  counted: bool = True

  def as_dict(self) -> dict[str, Any]:
    """Returns the JSON values that a checkpoint keeps."""
    return {
      "batch": dict(self.batch),
      "sources": {k: dataclasses.asdict(v) for k, v in self.sources.items()},
    }

  def with_base(self, mark: int | None) -> Fingerprint:
    """Adds the hash of the model that adapters are trained on, if any are."""
    if mark is None:
      return self
    base = Source((), {}, f"{mark:08x}")
    return dataclasses.replace(
      self, sources={**self.sources, "init_from": base}
    )

  def require_same(
    self, extra: Mapping[str, Any], directory: str | os.PathLike[str]
  ) -> None:
    """Refuses to resume on other data or with other batches.

    Args:
      extra: what the checkpoint keeps beside the state, `as_dict` under KEY; a
        checkpoint that is older than fingerprints lacks it.
      directory: workdir of the run, for errors.

    Raises:
      UserError: `data_changed` or `batch_changed`.
    """
    saved = extra.get(KEY)
    if saved is None:
      self._without(directory)
      return
    if dict(saved["batch"]) != dict(self.batch):
      names = sorted({*saved["batch"], *self.batch})
      changes = [
        f"{name} {saved['batch'].get(name)}, now {self.batch.get(name)}"
        for name in names
        if saved["batch"].get(name) != self.batch.get(name)
      ]
      # Other data make other batches; the data are then what to name.
      self._require_sources(saved["sources"], directory)
      raise UserError(
        f"its checkpoint counts other batches ({'; '.join(changes)})",
        file=str(directory),
        fix=_FIX,
        code="batch_changed",
      )
    self._require_sources(saved["sources"], directory)

  def _require_sources(
    self, saved: Mapping[str, Any], directory: str | os.PathLike[str]
  ) -> None:
    for field in sorted({*saved, *self.sources}):
      old = Source(**saved[field]) if field in saved else None
      new = self.sources.get(field)
      if old is None or new is None or old.hash != new.hash:
        raise UserError(
          f"is not what this run began with: {_changes(old, new)}",
          file=str(directory),
          field=field,
          fix=_FIX,
          code="data_changed",
        )

  def _without(self, directory: str | os.PathLike[str]) -> None:
    if self.counted:
      log_line(
        f"warning: the checkpoints of {directory} do not say which data they"
        " belong to; resuming on these data"
      )
      return
    raise UserError(
      "its checkpoint does not say how many rows a step has: it was written by"
      " a version in which that depended on the number of devices",
      file=str(directory),
      fix="run the stage again in a new --workdir",
      code="batch_changed",
    )


def fingerprint_source(spec: str, values: Any, **records: int) -> Source:
  """Computes the fingerprint of a source.

  Args:
    spec: the source's flag, as `data.sources` reads it; "" for a source without
      files.
    values: the encoded records that the run uses: arrays, numbers and texts in
      mappings and sequences.
    **records: split → number of records.
  """
  digest = hashlib.blake2b(digest_size=16)
  _add(digest, values)
  return Source(_files(spec), records, digest.hexdigest())


def fingerprint_files(spec: str) -> Source:
  """Computes the fingerprint of a source from its files' bytes.

  Of a large file the beginning, the end and the size count.

  Args:
    spec: the source's flag, as `data.sources` reads it.
  """
  digest = hashlib.blake2b(digest_size=16)
  for path in reading.expand(spec):
    _add_file(digest, pathlib.Path(path))
  return Source(_files(spec), {}, digest.hexdigest())


def fingerprint_prepared(directory: str, **records: int) -> Source:
  """Computes the fingerprint of prepared data.

  Their manifest has the checksums of all files.

  Args:
    directory: the prepared directory.
    **records: split → number of records.
  """
  source = fingerprint_files(directory)
  return Source(source.files, records, source.hash)


def fingerprint_model(path: str | os.PathLike[str]) -> Source:
  """Computes the fingerprint of a model from its files.

  Args:
    path: workdir of a stage, a directory of another library, or a GGUF file.
  """
  folder = pathlib.Path(path)
  if (folder / _MODEL).is_dir():
    folder /= _MODEL
    manifest_path = folder / manifest.MANIFEST  # a checksum of each file
    paths = [manifest_path] if manifest_path.exists() else folder.rglob("*")
  elif folder.is_file():  # a GGUF model
    paths = [folder]
  else:  # Notes, caches and runs may lie there as well.
    paths = [p for p in folder.glob("*") if p.suffix in _MODEL_SUFFIXES]
  digest = hashlib.blake2b(digest_size=16)
  for file in sorted(p for p in paths if p.is_file()):
    _add_file(digest, file)
  return Source((), {}, digest.hexdigest())


def _add_file(digest: Any, path: pathlib.Path) -> None:
  """Adds a file's name, size and content, or the two ends of a large one."""
  if not path.is_file():  # A pipe can be read once only.
    _add(digest, str(path))
    return
  size = path.stat().st_size
  _add(digest, [path.name, size])
  with path.open("rb") as file:
    digest.update(file.read(_WHOLE))
    if size > _WHOLE:
      file.seek(max(_WHOLE, size - _WHOLE))
      digest.update(file.read(_WHOLE))


def _files(spec: str) -> list[list[Any]]:
  result = []
  for path in reading.expand(spec) if spec else []:
    size = os.path.getsize(path) if os.path.exists(path) else 0
    result.append([os.path.basename(path), size])
  return result


def _add(digest: Any, value: Any) -> None:
  """Adds a value to a hash, with its type and length."""
  if isinstance(value, np.ndarray):
    digest.update(f"array {value.dtype.str} {value.shape} ".encode())
    digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
  elif isinstance(value, Mapping):
    digest.update(f"mapping {len(value)} ".encode())
    for key in sorted(value):
      _add(digest, key)
      _add(digest, value[key])
  elif isinstance(value, (list, tuple)):
    digest.update(f"sequence {len(value)} ".encode())
    for item in value:
      _add(digest, item)
  else:
    digest.update(f"{type(value).__name__} {value!r} ".encode())


def _changes(old: Source | None, new: Source | None) -> str:
  """Describes how two sources differ."""
  if old is None:
    return "the run had no such source"
  if new is None:
    return "the source is missing now"
  old_files, new_files = (
    {str(name): size for name, size in s.files} for s in (old, new)
  )
  changes = [
    f"{name} had {old_files[name]:,} bytes, now {new_files[name]:,}"
    for name in old_files
    if name in new_files and old_files[name] != new_files[name]
  ]
  changes += [f"{n} is missing now" for n in old_files if n not in new_files]
  changes += [f"{n} is new" for n in new_files if n not in old_files]
  if len(changes) > 3:
    changes = [*changes[:3], f"{len(changes) - 3} more files"]
  counts = [
    f"{split} had {old.records.get(split, 0):,} records, now"
    f" {new.records.get(split, 0):,}"
    for split in sorted({*old.records, *new.records})
    if old.records.get(split, 0) != new.records.get(split, 0)
  ]
  return "; ".join([*changes, *counts]) or "its contents differ"
