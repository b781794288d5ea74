"""Parses `--sweep` into the runs of a grid or the space of a search.

text   = part;part;…             each part is one axis of the grid
part   = field=item,item,…       or (field,field)=(value,value),…
item   = value | LOW..HIGH | log:LOW:HIGH:COUNT | lin:LOW:HIGH:COUNT
search = field=item,… | field=log:LOW:HIGH | lin:LOW:HIGH | int:LOW:HIGH
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import renamed
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps.jobs import format_flag

_EXAMPLE = "for example --sweep='ppo.kl_coef=0.01,0.02;seed=0..2'"
_MAX_NAME = 150  # characters of a run's name; file systems allow 255 bytes


@dataclasses.dataclass(frozen=True)
class Range:
  """Closed range of numbers.

  Attributes:
    low: lower end.
    high: upper end.
    log: whether sampling is uniform in the logarithm.
    integer: whether values are whole numbers.
  """

  low: float
  high: float
  log: bool
  integer: bool


@dataclasses.dataclass(frozen=True)
class Choices:
  """List of values."""

  values: tuple[Any, ...]


def expand_names(text: str, named: Callable[[], Mapping[str, str]]) -> str:
  """Replaces names of sweeps in a text by their definitions.

  Args:
    text: fields with values, and names, separated by ";".
    named: returns the experiment's named sweeps; called only if needed.
  """
  parts = [part.strip() for part in text.split(";") if part.strip()]
  for i, part in enumerate(parts):
    if "=" not in part:
      if part not in named():
        _reject(
          part,
          "there is no such sweep",
          configs.nearest(part, named()) or f"give {_list_names(named())}",
          "unknown_sweep",
        )
      parts[i] = named()[part]
  if not parts:
    raise UserError(
      "is missing",
      field="--sweep",
      fix=f"give {_list_names(named())}",
      code="missing_sweep",
    )
  return ";".join(parts)


def _list_names(named: Mapping[str, str]) -> str:
  return f"one of {', '.join(named)}, or field=value,value"


def swept_fields(text: str) -> list[str]:
  """Returns the swept fields."""
  return [field for part in _split_axes(text) for field in _split_axis(part)[0]]


def grid_runs(text: str, config: Any) -> dict[str, dict[str, Any]]:
  """Returns the runs of a grid: name → swept field → value.

  Args:
    text: axes separated by ";"; the last one changes fastest.
    config: the experiment's config, which defines fields and ranges.

  Raises:
    UserError: a part of the text is wrong; the error quotes it.
  """
  parts = _split_axes(text)
  axes = [_axis_points(part, config) for part in parts]
  runs = []
  for points in itertools.product(*axes):
    overrides = {name: v for point in points for name, v in point.items()}
    if overrides not in runs:
      _check(parts, config, overrides)
      runs.append(overrides)
  short = _short_names(list(runs[0]))
  return {run_name(overrides, short): overrides for overrides in runs}


def search_space(text: str, config: Any) -> dict[str, Range | Choices]:
  """Returns the space of a search: field → range or values."""
  space: dict[str, Range | Choices] = {}
  for part in _split_axes(text):
    field, *others = _split_axis(part)[0]
    if others:
      _reject(
        part,
        "a search has one field a part",
        "give field=values",
        "several_fields",
      )
    pattern = r"(log|lin|int):([^:]*):([^:]*)"
    match = re.fullmatch(pattern, part.partition("=")[2].strip())
    if match is None:
      values = [point[field] for point in _axis_points(part, config)]
      for value in values:
        _check([part], config, {field: value})
      space[field] = Choices(tuple(values))
      continue
    kind = _field_type(part, field, config)
    if kind not in (int, float):
      _reject(part, f"{field} has no range", "list its values: a,b", "no_range")
    if match[1] == "int" and kind is float:
      _reject(
        part, f"{field} is no whole number", "give lin:LOW:HIGH", "no_range"
      )
    low, high = (_parse_number(part, text, kind) for text in match.groups()[1:])
    if not low < high:
      _reject(
        part,
        f"{low} is not below {high}",
        "give the lower end first",
        "empty_range",
      )
    if match[1] == "log" and low <= 0:
      _reject(
        part, "a log range starts above 0", "give lin:LOW:HIGH", "log_of_zero"
      )
    for end in (low, high):
      _check([part], config, {field: end})
    space[field] = Range(low, high, match[1] == "log", kind is int)
  return space


def run_name(overrides: Mapping[str, Any], short: Mapping[str, str]) -> str:
  """Returns the name of a run, such as `kl_coef=0.02,seed=1`."""
  name = ",".join(
    f"{short[field]}={_path_text(value)}" for field, value in overrides.items()
  )
  if len(name) <= _MAX_NAME:
    return name
  return name[: _MAX_NAME - 9] + "~" + _short_hash(name)


def _split_axes(text: str) -> list[str]:
  parts = [part.strip() for part in text.split(";") if part.strip()]
  if not parts:
    _reject(text, "is empty", _EXAMPLE, "missing_sweep")
  counts = Counter(field for part in parts for field in _split_axis(part)[0])
  for part in parts:
    for field in _split_axis(part)[0]:
      if counts[field] > 1:
        _reject(part, f"{field} is set twice", "give it once", "set_twice")
  return parts


def _split_axis(part: str) -> tuple[list[str], str]:
  """Splits an axis into its fields and the text of their values."""
  fields, equals, values = part.partition("=")
  names = [name.strip() for name in fields.strip(" ()").split(",")]
  if not equals or not all(names) or not values.strip():
    _reject(part, "is not field=value,value", _EXAMPLE, "not_an_axis")
  if len(names) > 1 and not fields.startswith("("):
    _reject(
      part,
      "has several fields",
      "put them in brackets: (a,b)=(1,2)",
      "missing_brackets",
    )
  return names, values.strip()


def _axis_points(part: str, config: Any) -> list[dict[str, Any]]:
  """Returns the points of an axis: field → value."""
  fields, text = _split_axis(part)
  kinds = [_field_type(part, field, config) for field in fields]
  if not part.startswith("("):
    rows = [
      [value]
      for item in text.split(",")
      for value in _expand_item(part, item.strip(), kinds[0])
    ]
  else:
    point_pattern = r"\(([^()]*)\)"
    if not re.fullmatch(rf"{point_pattern}(\s*,\s*{point_pattern})*", text):
      _reject(
        part,
        "is not (a,b)=(1,2),(3,4)",
        "put each point in brackets",
        "missing_brackets",
      )
    rows = []
    for point in re.findall(point_pattern, text):
      row = [value.strip() for value in point.split(",")]
      if len(row) != len(fields):
        _reject(
          part,
          f"({point}) does not have {len(fields)} values",
          "give each field one",
          "point_size",
        )
      rows.append(
        [_parse_value(*pair) for pair in zip(row, kinds, strict=True)]
      )
  points = []
  for row in rows:
    point = dict(zip(fields, row, strict=True))
    if point not in points:
      points.append(point)
  return points


def _expand_item(part: str, item: str, kind: type) -> Iterator[Any]:
  """Yields the values of an item."""
  span = re.fullmatch(r"(\d+)\.\.(\d+)", item)
  if span and kind is int:
    low, high = int(span[1]), int(span[2])
    if low > high:
      _reject(
        part, f"{item} is empty", "give the lower end first", "empty_range"
      )
    yield from range(low, high + 1)
  elif item.startswith(("log:", "lin:")) and kind in (int, float):
    spacing, *ends = item.split(":")
    if len(ends) != 3:
      _reject(
        part,
        f"{item} has no count",
        f"give {spacing}:LOW:HIGH:COUNT",
        "missing_count",
      )
    low, high = (_parse_number(part, end, float) for end in ends[:2])
    count = _parse_number(part, ends[2], int)
    if count < 1 or spacing == "log" and min(low, high) <= 0:
      _reject(
        part,
        f"{item} has no points",
        "a count starts at 1, log above 0",
        "no_points",
      )
    for value in _spaced(spacing, low, high, count):
      yield round(value) if kind is int else value
  else:
    yield _parse_value(item, kind)


def _spaced(kind: str, low: float, high: float, count: int) -> list[float]:
  """Returns equally spaced points, with six digits and exact ends.

  Args:
    kind: "log" for equal ratios, "lin" for equal differences.
    low: first point.
    high: last point.
    count: number of points.
  """
  shares = [i / (count - 1) for i in range(1, count - 1)]
  if kind == "log":
    inner = [low * (high / low) ** share for share in shares]
  else:
    inner = [low + (high - low) * share for share in shares]
  return [low, *(float(f"{v:.6g}") for v in inner), high][:count]


def _parse_number(part: str, text: str, kind: type) -> Any:
  try:
    return kind(text)
  except ValueError:
    noun = "whole number" if kind is int else "number"
    _reject(part, f"{text!r} is not a {noun}", f"give a {noun}", "wrong_type")


def _parse_value(text: str, kind: type) -> Any:
  """Parses a value; returns invalid text as it is, for `_check` to refuse."""
  if kind is bool:
    return {"true": True, "false": False}.get(text.lower(), text)
  try:
    return kind(text)
  except ValueError:
    return text


def _field_type(part: str, field: str, config: Any) -> type:
  """Returns the type of a field of the config."""
  known = {name: option.type for name, _, option in flags.leaves(config)}
  new = renamed.new_name(field, known)
  if new is not None:
    _reject(
      part,
      f"{field} has been renamed to {new}",
      f"give {new}",
      "renamed_flag",
    )
  if field not in known:
    near = configs.nearest(field, known)
    _reject(
      part,
      f"there is no field {field!r}",
      near or "--help lists them",
      "unknown_field",
    )
  return known[field]


def _check(
  parts: Sequence[str], config: Any, overrides: Mapping[str, Any]
) -> None:
  """Raises the config's error for invalid values, and quotes their axes."""
  try:
    flags.replace(config, overrides)
  except UserError as error:
    blamed = [part for part in parts if error.field in _split_axis(part)[0]]
    _reject(
      ";".join(blamed or parts),
      f"{error.field}: {error.problem}",
      error.fix,
      error.code,
    )


def _reject(part: str, problem: str, fix: str, code: str) -> NoReturn:
  raise UserError(f"{part!r}: {problem}", field="--sweep", fix=fix, code=code)


def _short_names(fields: Sequence[str]) -> dict[str, str]:
  """Returns the last part of each field's name where that is unique."""
  count = Counter(field.rpartition(".")[2] for field in fields)
  return {
    field: leaf if count[leaf := field.rpartition(".")[2]] == 1 else field
    for field in fields
  }


def _value_text(value: Any) -> str:
  if isinstance(value, float) and float(f"{value:g}") == value:
    return f"{value:g}"
  return format_flag(value)


def _path_text(value: Any) -> str:
  """Formats a value for a directory's name; different values differ."""
  text = _value_text(value)
  safe = re.sub(r"[^\w.+-]", "_", text)[-40:]
  return safe if safe == text else f"{safe}~{_short_hash(text)}"


def _short_hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]
