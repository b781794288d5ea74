"""Splits the text of a source into its parts: names with or without weights.

A source is a comma list. A part is a name, or a name, a colon and a weight:
`a.jsonl:0.7,b.parquet:0.3`. A text that names an existing file is that name,
whatever commas and colons it holds. Otherwise only a number after the last
colon is a weight, so `C:\\data\\a.jsonl`, `tfds:mine:train` and
`hf:org/name:train` have none. A name in double quotation marks is taken as it
is: `"a,b:1.jsonl":0.7`.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from instructgpt_jax.data.formats.json_values import as_number
from instructgpt_jax.errors import UserError

TFDS = "tfds:"
HUB = "hf:"
# A name in quotation marks with what follows it, or a text without commas.
_PART = re.compile(r'\s*(?:"([^"]*)"([^,]*)|[^,]*)(?:,|\Z)')


class Part(NamedTuple):
  """A part of a source."""

  name: str
  weight: float | None = None


def parse(*specs: str) -> list[Part]:
  """Returns the parts of a source, all with a weight or all without.

  Raises:
    UserError: `no_data`, there is no part; `bad_weight`, a weight is no finite
      number of at least 0; `missing_weight`, one part has a weight and another
      none; `zero_weights`, all weights are 0.
  """
  parts = [part for spec in specs for part in _parts(spec)]
  if not parts:
    raise UserError(
      "no data is given",
      fix="give a file, directory, quoted glob, comma list, tfds:name:split or"
      " hf:org/name",
      code="no_data",
    )
  missing = [part.name for part in parts if part.weight is None]
  if missing and len(missing) < len(parts):
    weighted = next(part for part in parts if part.weight is not None)
    raise UserError(
      f"has no weight, but {weighted.name} has {weighted.weight:g}",
      file=missing[0],
      fix=f"write {missing[0]}:1 or another weight, or give none a weight",
      code="missing_weight",
    )
  if not missing and not any(part.weight for part in parts):
    raise UserError(
      "all weights are 0",
      file=",".join(f"{part.name}:{part.weight:g}" for part in parts),
      fix="give at least one source a weight above 0",
      code="zero_weights",
    )
  return parts


def join(parts: Iterable[Part]) -> str:
  """Returns the text of a source, which `parse` reads as these parts."""
  return ",".join(
    _quote(part.name) + ("" if part.weight is None else f":{part.weight!r}")
    for part in parts
  )


def _quote(name: str) -> str:
  return f'"{name}"' if "," in name or ":" in name else name


def _parts(spec: str) -> list[Part]:
  if _exists(spec):
    return [Part(spec)]
  parts = []
  for match in _PART.finditer(spec):
    text = match.group().strip().removesuffix(",").strip()
    quoted, rest = match.groups()
    if quoted is not None and not _exists(text):
      parts.append(_quoted(quoted, rest.strip()))
    elif text:
      parts.append(_plain(text))
  return parts


def _quoted(name: str, rest: str) -> Part:
  if not rest:
    return Part(name)
  if not rest.startswith(":"):
    raise _bad_weight(name, rest)
  return Part(name, _weight(name, rest[1:]))


def _plain(text: str) -> Part:
  name, colon, weight = text.rpartition(":")
  if not colon or _exists(text):
    return Part(text)
  if as_number(weight) is None:
    is_path = not text.startswith((TFDS, HUB))
    if is_path and (_exists(name) or _is_glob_before(name, weight)):
      raise _bad_weight(name, weight)
    return Part(text)
  return Part(name, _weight(name, weight))


def _is_glob_before(name: str, weight: str) -> bool:
  """Returns whether a glob ends before a colon that no path follows."""
  return glob.has_magic(name) and not re.search(r"[/\\*?\[\]]", weight)


def _weight(name: str, text: str) -> float:
  weight = as_number(text)
  if weight is None or math.isinf(weight) or weight < 0:
    raise _bad_weight(name, text)
  return weight


def _bad_weight(name: str, text: str) -> UserError:
  return UserError(
    f"{text!r} is no weight",
    file=name,
    fix="give a number of at least 0 after the colon, such as"
    f" {os.path.basename(name) or name}:0.5; a name that holds a colon or a"
    " comma is written in double quotation marks",
    code="bad_weight",
  )


def _exists(text: str) -> bool:
  return os.path.lexists(os.path.expanduser(text))
