"""Infers the split of a file from its name: train.jsonl, test/part-0.jsonl."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from instructgpt_jax.data.formats.common import split_name
from instructgpt_jax.data.reading import specs, text_files

_NAMED_SPLIT = re.compile(r":([A-Za-z_]\w*(?:\[[^\]]*\])?)\Z")
# The names of pipes: they say nothing.
_NO_NAMES = ("/dev/", "/proc/")
_SEPARATORS = re.compile(r"[-_. ()]+")
# train-00000-of-00002, validation_1
_SHARD = re.compile(r"(?:[-_. ]+(?:\d+|of))+\Z")


def by_name(names: Iterable[str], roots: Mapping[str, str]) -> dict[str, str]:
  """Returns the split of each file whose name says one.

  Names count only where they say different splits: a source of test.jsonl alone
  may be training data.

  Args:
    names: paths, TFDS and hub names of one source.
    roots: name -> directory below which the names of directories count.

  Returns:
    Name -> split, or {} where fewer than two splits are named.
  """
  names = list(names)
  others = (specs.TFDS, specs.HUB, *_NO_NAMES)
  files = [os.path.abspath(n) for n in names if not n.startswith(others)]
  # Directories above all files say nothing about one of them.
  top = _common_directory(files)
  splits = {}
  for name in names:
    if name.startswith((specs.TFDS, specs.HUB)):
      match = _NAMED_SPLIT.search(name)
      split = (split_name(match.group(1)) or "") if match else ""
    elif name.startswith(_NO_NAMES):
      continue
    else:
      path = os.path.abspath(name)
      root = max(top, os.path.abspath(roots.get(name, top)), key=len)
      split = _split_of(os.path.relpath(path, root))
    if split:
      splits[name] = split
  return splits if len(set(splits.values())) > 1 else {}


def _common_directory(files: list[str]) -> str:
  return os.path.commonpath(map(os.path.dirname, files)) if files else ""


def _split_of(path: str) -> str:
  """Returns the split that a file's name, or else a directory's, says."""
  *directories, name = path.split(os.sep)
  split = _in_stem(_stem(name))
  for directory in reversed(directories):
    split = split or split_name(directory) or ""
  return split


def _stem(name: str) -> str:
  name = name.lower().removesuffix(".gz")
  return name.removesuffix(text_files.suffix(name))


def _in_stem(stem: str) -> str:
  """Returns the split in train, train-00000-of-00002 or questions_train_1."""
  stem = _SHARD.sub("", stem)
  words = [word for word in _SEPARATORS.split(stem) if word]
  for word in (stem, *words[:1], *words[-1:]):
    split = split_name(word)
    if split:
      return split
  return ""
