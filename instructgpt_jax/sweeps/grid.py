"""The grammar of `--sweep`: from its text to runs, or to what is searched.

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
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps.jobs import flag_text

_EXAMPLE = "for example --sweep='ppo.kl_coef=0.01,0.02;seed=0..2'"
_LONGEST = 150  # characters of a run's name; file systems allow 255 bytes


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers between two ends, both among them."""

  low: float
  high: float
  log: bool  # uniform in the logarithm
  whole: bool


@dataclasses.dataclass(frozen=True)
class Choices:
  """Some values."""

  values: tuple[Any, ...]


def expand(text: str, named: Callable[[], Mapping[str, str]]) -> str:
  """The text with what the names of sweeps in it stand for.

  Args:
    text: fields with values, and names, separated by ";".
    named: gives the experiment's own sweeps; only called where it is needed.
  """
  parts = [part.strip() for part in text.split(";") if part.strip()]
  for i, part in enumerate(parts):
    if "=" not in part:
      if part not in named():
        _refuse(
          part,
          "there is no such sweep",
          configs.nearest(part, named()) or f"give {_some(named())}",
        )
      parts[i] = named()[part]
  if not parts:
    raise UserError("is missing", field="--sweep", fix=f"give {_some(named())}")
  return ";".join(parts)


def _some(named: Mapping[str, str]) -> str:
  return f"one of {', '.join(named)}, or field=value,value"


def fields(text: str) -> list[str]:
  """What is swept."""
  return [field for part in _parts(text) for field in _split(part)[0]]


def runs(text: str, config: Any) -> dict[str, dict[str, Any]]:
  """Every run of a grid: its name → what it sets.

  Args:
    text: axes separated by ";"; the last one changes fastest.
    config: the experiment's config, which knows fields, types and ranges.

  Raises:
    UserError: names the part of the text that is wrong.
  """
  parts = _parts(text)
  axes = [_points(part, config) for part in parts]
  found = []
  for chosen in itertools.product(*axes):
    overrides = {name: v for point in chosen for name, v in point.items()}
    if overrides not in found:
      _check(parts, config, overrides)
      found.append(overrides)
  short = _short(list(found[0]))
  return {run_name(overrides, short): overrides for overrides in found}


def space(text: str, config: Any) -> dict[str, Range | Choices]:
  """What a search may choose: field → its range or its values."""
  found: dict[str, Range | Choices] = {}
  for part in _parts(text):
    field, *others = _split(part)[0]
    if others:
      _refuse(part, "a search has one field a part", "give field=values")
    pattern = r"(log|lin|int):([^:]*):([^:]*)"
    match = re.fullmatch(pattern, part.partition("=")[2].strip())
    if match is None:
      values = [point[field] for point in _points(part, config)]
      for value in values:
        _check([part], config, {field: value})
      found[field] = Choices(tuple(values))
      continue
    like = _leaf(part, field, config)
    if type(like) not in (int, float):
      _refuse(part, f"{field} has no range", "list its values: a,b")
    if match[1] == "int" and type(like) is float:
      _refuse(part, f"{field} is no whole number", "give lin:LOW:HIGH")
    low, high = (_number(part, text, type(like)) for text in match.groups()[1:])
    if not low < high:
      _refuse(part, f"{low} is not below {high}", "give the lower end first")
    if match[1] == "log" and low <= 0:
      _refuse(part, "a log range starts above 0", "give lin:LOW:HIGH")
    for end in (low, high):
      _check([part], config, {field: end})
    found[field] = Range(low, high, match[1] == "log", type(like) is int)
  return found


def run_name(overrides: Mapping[str, Any], short: Mapping[str, str]) -> str:
  """A run's folder: `kl_coef=0.02,seed=1`."""
  name = ",".join(
    f"{short[field]}={_safe(value)}" for field, value in overrides.items()
  )
  if len(name) <= _LONGEST:
    return name
  return name[: _LONGEST - 9] + "~" + _hash(name)


def _parts(text: str) -> list[str]:
  parts = [part.strip() for part in text.split(";") if part.strip()]
  if not parts:
    _refuse(text, "names nothing", _EXAMPLE)
  seen = Counter(field for part in parts for field in _split(part)[0])
  for part in parts:
    for field in _split(part)[0]:
      if seen[field] > 1:
        _refuse(part, f"{field} stands there twice", "give it once")
  return parts


def _split(part: str) -> tuple[list[str], str]:
  """The fields of a part, and the text of their values."""
  fields, equals, values = part.partition("=")
  names = [name.strip() for name in fields.strip(" ()").split(",")]
  if not equals or not all(names) or not values.strip():
    _refuse(part, "is not field=value,value", _EXAMPLE)
  if len(names) > 1 and not fields.startswith("("):
    _refuse(part, "has several fields", "put them in brackets: (a,b)=(1,2)")
  return names, values.strip()


def _points(part: str, config: Any) -> list[dict[str, Any]]:
  """What a part sets, point by point."""
  fields, text = _split(part)
  likes = [_leaf(part, field, config) for field in fields]
  if not part.startswith("("):
    rows = [
      [value]
      for item in text.split(",")
      for value in _values(part, item.strip(), likes[0])
    ]
  else:
    one = r"\(([^()]*)\)"
    if not re.fullmatch(rf"{one}(\s*,\s*{one})*", text):
      _refuse(part, "is not (a,b)=(1,2),(3,4)", "put each point in brackets")
    rows = []
    for point in re.findall(one, text):
      row = [value.strip() for value in point.split(",")]
      if len(row) != len(fields):
        _refuse(
          part,
          f"({point}) does not have {len(fields)} values",
          "give each field one",
        )
      rows.append([_typed(*pair) for pair in zip(row, likes, strict=True)])
  points = []
  for row in rows:
    point = dict(zip(fields, row, strict=True))
    if point not in points:
      points.append(point)
  return points


def _values(part: str, item: str, like: Any) -> Iterator[Any]:
  """What one item stands for."""
  span = re.fullmatch(r"(\d+)\.\.(\d+)", item)
  if span and type(like) is int:
    low, high = int(span[1]), int(span[2])
    if low > high:
      _refuse(part, f"{item} is empty", "give the lower end first")
    yield from range(low, high + 1)
  elif item.startswith(("log:", "lin:")) and type(like) in (int, float):
    kind, *ends = item.split(":")
    if len(ends) != 3:
      _refuse(part, f"{item} has no count", f"give {kind}:LOW:HIGH:COUNT")
    low, high = (_number(part, end, float) for end in ends[:2])
    count = _number(part, ends[2], int)
    if count < 1 or kind == "log" and min(low, high) <= 0:
      _refuse(part, f"{item} has no points", "a count starts at 1, log above 0")
    for value in _between(kind, low, high, count):
      yield round(value) if type(like) is int else value
  else:
    yield _typed(item, like)


def _between(kind: str, low: float, high: float, count: int) -> list[float]:
  """Points in equal steps, or steps of equal ratio; six digits, exact ends."""
  shares = [i / (count - 1) for i in range(1, count - 1)]
  if kind == "log":
    inner = [low * (high / low) ** share for share in shares]
  else:
    inner = [low + (high - low) * share for share in shares]
  return [low, *(float(f"{v:.6g}") for v in inner), high][:count]


def _number(part: str, text: str, kind: type) -> Any:
  try:
    return kind(text)
  except ValueError:
    what = "whole number" if kind is int else "number"
    _refuse(part, f"{text!r} is not a {what}", "mend it")


def _typed(text: str, like: Any) -> Any:
  """The value, or the text itself, which `_check` then refuses."""
  kind = type(like)
  if kind is bool:
    return {"true": True, "false": False}.get(text.lower(), text)
  try:
    return kind(text)
  except ValueError:
    return text


def _leaf(part: str, field: str, config: Any) -> Any:
  """The field's value in the config."""
  known = {name: value for name, value, _ in flags.leaves(config)}
  if field not in known:
    near = configs.nearest(field, known)
    _refuse(part, f"there is no field {field!r}", near or "--help lists them")
  return known[field]


def _check(
  parts: Sequence[str], config: Any, overrides: Mapping[str, Any]
) -> None:
  """Refuses what the config does, and names the part that it comes from."""
  try:
    flags.replace(config, overrides)
  except UserError as error:
    blamed = [part for part in parts if error.field in _split(part)[0]]
    _refuse(
      ";".join(blamed or parts),
      f"{error.field}: {error.problem}",
      error.fix,
    )


def _refuse(part: str, problem: str, fix: str) -> NoReturn:
  raise UserError(f"{part!r}: {problem}", field="--sweep", fix=fix)


def _short(fields: Sequence[str]) -> dict[str, str]:
  """The last part of each name, where no other field has the same."""
  count = Counter(field.rpartition(".")[2] for field in fields)
  return {
    field: leaf if count[leaf := field.rpartition(".")[2]] == 1 else field
    for field in fields
  }


def _text(value: Any) -> str:
  if isinstance(value, float) and float(f"{value:g}") == value:
    return f"{value:g}"
  return flag_text(value)


def _safe(value: Any) -> str:
  """A value as part of a folder's name; two values never look the same."""
  text = _text(value)
  safe = re.sub(r"[^\w.+-]", "_", text)[-40:]
  return safe if safe == text else f"{safe}~{_hash(text)}"


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]
