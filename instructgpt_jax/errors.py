"""The exception for user errors."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping

_FLAG = re.compile(r"(?<=--)\w+(?:\.\w+)*")


class UserError(Exception):
  """A user error: shown as a few lines without a traceback, exit status 2.

  The text says what is wrong, with file, line or field, and how to fix it.

  Attributes:
    problem: what is wrong.
    file: file or directory that is at fault, or None.
    line: line of that file, or None.
    field: field of the record or of the config, or None.
    fix: what to do about it; may be empty.
    code: stable name of the kind of error, such as "bad_json"; tests and
      scripts read it instead of the wording. May be empty.
  """

  def __init__(
    self,
    problem: str,
    *,
    file: str | None = None,
    line: int | None = None,
    field: str | None = None,
    fix: str = "",
    code: str = "",
  ):
    where = "" if file is None else str(file)
    if line is not None:
      where += f":{line}"
    if field is not None:
      where += f"{' ' if where else ''}[{field}]"
    text = f"{where}: {problem}" if where else problem
    if fix:
      text += f"\n  fix: {fix}"
    super().__init__(text)
    self.problem, self.file, self.line = problem, file, line
    self.field, self.fix, self.code = field, fix, code


@contextlib.contextmanager
def naming_fields(names: Mapping[str, str]) -> Iterator[None]:
  """Names in user errors the fields that the user has set.

  Args:
    names: a field, or a section with a dot at its end → what has its value in
      the user's config. "reward." → "reward_init." renames each field of the
      section.
  """
  try:
    yield
  except UserError as error:
    field = _rename(error.field or "", names)
    if field == (error.field or ""):
      raise
    raise UserError(
      error.problem,
      file=error.file,
      line=error.line,
      field=field,
      fix=_FLAG.sub(lambda flag: _rename(flag[0], names), error.fix),
      code=error.code,
    ) from error


def _rename(field: str, names: Mapping[str, str]) -> str:
  for old, new in names.items():
    if field == old or (old.endswith(".") and field.startswith(old)):
      return new + field.removeprefix(old)
  return field


def json_problem(error: Exception) -> str:
  """Describes an error of `json.loads` in a few words."""
  if isinstance(error, json.JSONDecodeError):
    return error.msg
  if isinstance(error, RecursionError):
    return "nested too deeply"
  return f"a number of more than {sys.get_int_max_str_digits()} digits"
