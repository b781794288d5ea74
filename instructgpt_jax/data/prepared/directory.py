"""The directory of a preparation: opened, locked, with its tokenizer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax.data import tokenizers
from instructgpt_jax.data.prepared import layout
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError


def require_apart(directory: pathlib.Path, paths: Sequence[str]) -> None:
  """Refuses to write into a directory that is read."""
  for path in paths:
    source = pathlib.Path(path).expanduser()
    if source.is_dir() and directory.resolve().is_relative_to(source.resolve()):
      raise UserError(
        f"is in {path}, which is read",
        file=str(directory),
        fix="give a directory elsewhere as --to",
        code="output_in_source",
      )


def tokenizer_hash(tokenizer: Tokenizer) -> str:
  """Returns a hash of a tokenizer's files."""
  digest = hashlib.sha256()
  for name, content in sorted(tokenizer.files.items()):
    digest.update(f"{name} {len(content)} ".encode())
    digest.update(content)
  return digest.hexdigest()


def open_directory(
  directory: pathlib.Path,
  description: Mapping[str, Any],
  subdirectories: Sequence[str],
) -> None:
  """Makes the directory, or refuses one that holds something else.

  Args:
    directory: the directory.
    description: all that its content depends on, as JSON values.
    subdirectories: names of directories that are made in it.

  Raises:
    UserError: `output_exists`, `other_preparation` or `cannot_write`.
  """
  plan_path = directory / layout.PLAN
  if plan_path.is_file():
    saved = manifest_lib.read_json(plan_path)
    differing = [
      name
      for name in sorted({*saved, *description})
      if saved.get(name) != description.get(name)
    ]
    if differing:
      raise UserError(
        "its preparation began with other settings or files"
        f" ({', '.join(differing)})",
        file=str(directory),
        fix="give the same ones to continue it, or another --to",
        code="other_preparation",
      )
    return
  try:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
      raise UserError(
        "is not empty, and was not written by this command",
        file=str(directory),
        fix="give another --to",
        code="output_exists",
      )
    for name in subdirectories:
      (directory / name).mkdir()
    manifest_lib.write_json(plan_path, description)
  except OSError as error:
    raise UserError(
      f"cannot be written: {error.strerror}",
      file=str(directory),
      fix="give a directory that can be written as --to",
      code="cannot_write",
    ) from error


@contextlib.contextmanager
def lock(directory: pathlib.Path) -> Iterator[None]:
  """Holds the directory.

  Raises:
    UserError: `preparation_running`, another process prepares it.
  """
  with open(directory / layout.PLAN, "rb") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        "another process prepares it",
        file=str(directory),
        fix="wait until it has finished, or give another --to",
        code="preparation_running",
      ) from error
    yield


def put_tokenizer(
  directory: pathlib.Path, make: Callable[[], Tokenizer]
) -> Tokenizer:
  """Saves a tokenizer in the directory, unless one is there; returns it.

  Args:
    directory: the directory.
    make: loads or trains the tokenizer.
  """
  path = directory / layout.TOKENIZER
  if not path.is_dir():
    scratch = path.with_name(path.name + ".next")
    shutil.rmtree(scratch, ignore_errors=True)
    make().save(scratch)
    os.replace(scratch, path)
  return tokenizers.load_tokenizer(path)
