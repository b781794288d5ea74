"""Reads settings of requests as lm-evaluation-harness writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from instructgpt_jax.errors import UserError

_LENGTHS = (
  "max_gen_toks",
  "max_new_tokens",
  "max_tokens",
  "max_completion_tokens",
)
_SAMPLING = ("until", "do_sample", "temperature", "top_p", "top_k")
_NUMBERS: dict[str, type[int] | type[float]] = {
  **dict.fromkeys((*_LENGTHS, "top_k"), int),
  **dict.fromkeys(("temperature", "top_p"), float),
}


class GenerationSettings(NamedTuple):
  """How a request of lm-eval is continued; `TextModel.generate` checks it."""

  stop: tuple[str, ...]
  max_tokens: int
  temperature: float
  top_p: float
  top_k: int


def read_generation_settings(
  settings: Mapping[str, Any], max_gen_toks: int
) -> GenerationSettings:
  """Reads a request's settings, with the defaults of the harness.

  Args:
    settings: `generation_kwargs` of a task, updated by --gen_kwargs.
    max_gen_toks: the limit where they have none.

  Raises:
    UserError: a setting is unknown, or contradicts another.
  """
  for name in settings:
    if name not in (*_LENGTHS, *_SAMPLING):
      raise UserError(
        "is a setting that this model does not have",
        field=f"gen_kwargs {name}",
        fix=f"use {', '.join((*_SAMPLING, _LENGTHS[0]))}",
        code="unknown_gen_kwarg",
      )
  numbers = {
    name: _read_number(name, value)
    for name, value in settings.items()
    if name in _NUMBERS and value is not None
  }
  lengths = {numbers[name] for name in _LENGTHS if name in numbers}
  if len(lengths) > 1:
    raise UserError(
      f"give different lengths: {', '.join(map(str, sorted(lengths)))}",
      field="gen_kwargs " + ", ".join(n for n in _LENGTHS if n in settings),
      fix=f"give {_LENGTHS[0]} alone",
      code="contradictory_gen_kwargs",
    )
  until, sample = settings.get("until") or [], settings.get("do_sample")
  temperature = numbers.get("temperature", 1.0 if sample else 0.0)
  if sample and temperature == 0:
    raise UserError(
      "samples at temperature 0",
      field="gen_kwargs do_sample",
      fix="give do_sample=False, or a temperature above 0",
      code="contradictory_gen_kwargs",
    )
  return GenerationSettings(
    stop=(until,) if isinstance(until, str) else tuple(until),
    max_tokens=next(iter(lengths), max_gen_toks),
    temperature=0.0 if sample is False else temperature,
    top_p=numbers.get("top_p", 1.0),
    top_k=numbers.get("top_k", 0),
  )


def _read_number(name: str, value: Any) -> Any:
  """Returns the number of a setting, which may be written as text."""
  kind = _NUMBERS[name]
  try:
    number = kind(float(value))
    if number == float(value):
      return number
  except (OverflowError, TypeError, ValueError):
    pass
  raise UserError(
    f"{value!r} is not a {'whole ' if kind is int else ''}number",
    field=f"gen_kwargs {name}",
    fix="give a number, or leave it out",
    code="bad_gen_kwarg",
  )


def read_batch_size(value: int | str | None) -> int | None:
  """Returns a number of rows; None for "auto"."""
  if value is None or str(value).split(":")[0] == "auto":
    return None
  if str(value).isdecimal() and int(value) > 0:
    return int(value)
  raise UserError(
    f"{value!r} is not a number of rows",
    field="batch_size",
    fix="give a whole number, or auto",
    code="bad_batch_size",
  )
