"""Reads the JSON values of a file, each with its line."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator
from typing import Any

from instructgpt_jax import streams
from instructgpt_jax.data import formats
from instructgpt_jax.data.reading import containers, text_files
from instructgpt_jax.errors import UserError, json_problem

SUFFIXES = (".jsonl", ".json", ".txt")
# The beginning of an array of texts, each on a line of its own.
_PRETTY_TEXTS = re.compile(r'\s*\[\s*"(?:[^"\\\n]|\\.)*"[ \t]*,[ \t]*\n')
_START = 100_000  # characters of a .txt file that are looked at
_FEW_NULS = 20  # characters of a record for each NUL in it
_ESCAPE = re.compile(r"\\(u0000|.)", re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _bad_json(e: Exception, path: str, line: int, own_line: bool) -> UserError:
  if isinstance(e, RecursionError):
    fix = "write it with fewer levels"
  elif isinstance(e, json.JSONDecodeError):
    fix = (
      "write one JSON value a line"
      if own_line
      else "write the file as one JSON array of records"
    )
  else:
    fix = "write the number as a text, or shorten it"
  return UserError(
    f"is not JSON ({json_problem(e)})",
    file=path,
    line=line,
    fix=fix,
    code="bad_json",
  )


def _has_lone_surrogates(value: Any) -> bool:
  return not streams.is_utf8(json.dumps(value, ensure_ascii=False))


def _count_nuls(raw: str) -> int:
  """Counts the NUL characters that a JSON text escapes."""
  if raw.count(r"\u0000") <= text_files.STRAY_NULS:
    return 0
  # Escape by escape: "\\u0000" is a backslash before a word.
  return _ESCAPE.findall(raw).count("u0000")


def as_record(value: Any, raw: str, at: formats.RecordReader) -> Any:
  """Returns a JSON value as a record, or refuses what is no text.

  Args:
    value: the value.
    raw: its JSON.
    at: where it is.

  Raises:
    UserError: it has many NUL characters, or half of a surrogate pair.
  """
  problem = ""
  nuls = _count_nuls(raw)
  if nuls > text_files.STRAY_NULS and nuls * _FEW_NULS > len(raw):
    problem = "holds many NUL characters (\\u0000), so it is not text"
    fix = "convert the original text from its encoding (UTF-16?) to UTF-8"
    code = "nul_characters"
  elif _SURROGATE.search(raw) and _has_lone_surrogates(value):
    problem = "half of a surrogate pair is no character"
    fix = "escape both halves, or write the character itself"
    code = "lone_surrogate"
  if problem:
    raise UserError(problem, file=at.file, line=at.line, fix=fix, code=code)
  return containers.with_messages(value)


def json_lines(text: str, path: str) -> Iterator[tuple[int, Any]]:
  """Yields (line, value) of each line with a JSON value."""
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise _bad_json(e, path, number, True) from e
    yield number, as_record(value, line, formats.RecordReader(path, number))


def _json_array(
  text: str, path: str, inside: bool = False
) -> Iterator[tuple[int, Any]]:
  """Yields the elements of an array, each with the line it starts on.

  Args:
    text: the file's text.
    path: the file.
    inside: whether more may follow the array.
  """
  decoder = json.JSONDecoder()
  blank = re.compile(r"[ \t\r\n]*")

  def skip(at: int) -> int:
    space = blank.match(text, at)
    return space.end() if space else at

  at = skip(0) + 1
  line, counted = 1, 0
  while True:
    at = skip(at)
    line += text.count("\n", counted, at)
    counted = at
    if text[at : at + 1] == "]":
      break
    try:
      value, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as e:
      wrong = line + text.count("\n", counted, getattr(e, "pos", at))
      raise _bad_json(e, path, wrong, False) from e
    yield (
      line,
      as_record(value, text[at:end], formats.RecordReader(path, line)),
    )
    at = skip(end)
    if text[at : at + 1] == ",":
      at += 1
    elif text[at : at + 1] != "]":
      line += text.count("\n", counted, at)
      e = json.JSONDecodeError("a comma or ] is missing", text, at)
      raise _bad_json(e, path, line, False)
  rest = len(text) if inside else skip(at + 1)
  if rest != len(text):
    e = json.JSONDecodeError("there is more after the array", text, rest)
    raise _bad_json(e, path, line + text.count("\n", counted, rest), False)


def _json_container(
  text: str, path: str, lists: list[str], split: str
) -> Iterator[tuple[int, Any]]:
  """Yields the elements of an object's lists, with line and split."""
  for name, start in containers.list_starts(text, lists):
    before = text.count("\n", 0, start)
    for line, value in _json_array(text[start:], path, inside=True):
      yield before + line, containers.with_split(value, split or name)


def read_values(
  path: str, unused: collections.Counter[str] | None = None
) -> Iterator[tuple[int, Any]] | str:
  """Returns (line, JSON value) pairs of a file, or the text if not JSON.

  Fields of an object around a list of records are added to `unused`.
  """
  text = text_files.read_text(path)
  suffix = text_files.suffix(path)
  if suffix not in SUFFIXES:
    suffix = _sniff_suffix(text)
  if suffix == ".txt":
    refuse_json_in_txt(text, path)
    return text
  start = text.lstrip()[:1]
  if suffix == ".json" and start == "[":
    return _json_array(text, path)
  if suffix == ".json" and start == "{":
    try:
      value = json.loads(text)
    except (ValueError, RecursionError):
      return json_lines(text, path)
    lists = containers.record_lists(containers.with_messages(value))
    if lists:
      if unused is not None:
        unused.update(containers.other_fields(value, lists))
      split = containers.outer_split(value)
      return _json_container(text, path, lists, split)
    return iter([(1, as_record(value, text, formats.RecordReader(path, 1)))])
  return json_lines(text, path)


def refuse_json_in_txt(text: str, path: str) -> None:
  """Refuses JSON lines in a .txt file, which would be read as one text."""
  lines = [line for line in text[:_START].split("\n") if line.strip()]
  whole = lines if len(text) <= _START else lines[:-1]
  start = text.lstrip()[:_START]
  array = re.match(r'\[\s*[{"]', start) and text.rstrip().endswith("]")
  if not array and (not whole or not whole[0].startswith("{")):
    return
  try:
    values = json.loads(text) if array else [json.loads(w) for w in whole]
  except (ValueError, RecursionError):
    return
  texts = array and all(isinstance(value, str) for value in values)
  if texts or all(isinstance(value, dict) for value in values):
    raise UserError(
      "is a .txt file, which is read as one text, but holds JSON"
      + ("" if array else " lines"),
      file=path,
      line=1,
      fix=f"name it {'.json' if array else '.jsonl'}",
      code="json_in_txt",
    )


def _sniff_suffix(text: str) -> str:
  """Returns the suffix that fits a text; pipes have none.

  A text that begins like JSON has to be JSON: an error in it is reported, and
  the text is not read as plain text.
  """
  if re.match(r'\s*(\{\s*["}]|\[\s*[{\]])', text):
    return ".json"
  if _PRETTY_TEXTS.match(text) or _is_array(text):
    return ".json"
  first = text.lstrip().split("\n", 1)[0]
  if first.startswith(('"', "[")):
    try:
      json.loads(first)
    except (ValueError, RecursionError):
      return ".txt"
    return ".json" if first.startswith("[") else ".jsonl"
  return ".txt"


def _is_array(text: str) -> bool:
  """Returns whether a text is one JSON array."""
  if not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
    return False
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True
