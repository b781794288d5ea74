"""The table of all formats and fields in docs/data.md.

`python -m instructgpt_jax.data.formats.table` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping

from instructgpt_jax import streams
from instructgpt_jax.data.formats import common
from instructgpt_jax.data.formats.registry import FORMATS

BEGIN = "<!-- fields: python -m instructgpt_jax.data.formats.table -->"
END = "<!-- end of fields -->"


def _names(names: tuple[str, ...] | list[str]) -> str:
  return ", ".join(f"`{name}`" for name in names)


def _rows(fields: Mapping[str, str]) -> list[str]:
  """Returns "`a`, `b`: what they are", one for each meaning."""
  by_use: dict[str, list[str]] = {}
  for name, use in fields.items():
    by_use.setdefault(use, []).append(name)
  return [f"{_names(names)}: {use}" for use, names in by_use.items()]


def markdown() -> str:
  """Returns the tables of the common fields and of each format's fields."""
  lines = ["| field, in every format | what is done with it |", "|---|---|"]
  for row in _rows(common.FIELDS):
    names, use = row.split(": ", 1)
    lines.append(f"| {names} | {use} |")
  lines.append(f"| {_names(common.IRRELEVANT)} | irrelevant |")
  lines.append("| any other field | not used; counted and shown |")
  lines += [
    "",
    "| format | read as | its fields | irrelevant |",
    "|---|---|---|---|",
  ]
  for known in FORMATS:
    fields = "; ".join(_rows(known.fields)) or "–"
    if known.common is not None:
      fields += f"; of the common fields only {_names(known.common)}"
    lines.append(
      f"| {known.name} | {known.result} | {fields} |"
      f" {_names(known.irrelevant) or '–'} |"
    )
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  streams.accept_all_text()
  print(markdown(), end="")
