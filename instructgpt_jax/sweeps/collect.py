"""The results of a sweep as rows of a table."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import plan, records

CSV = "results.csv"


def rows(root: str) -> list[dict[str, Any]]:
  """One flat dict for each complete run of a sweep.

  Args:
    root: the sweep's folder.

  Returns:
    `run`, the swept fields, `seconds`, and the run's summary with dotted names,
    in the sweep's order; `pandas.DataFrame` takes it as it is.
  """
  seconds = records.read_seconds(root)
  found = []
  for entry in plan.read(root)["jobs"]:
    name = entry["name"]
    summary = files.read_complete(os.path.join(root, *name.split("/")))
    if summary is not None:
      row = {"run": name, **entry["overrides"], "seconds": seconds.get(name)}
      found.append({**row, **flat(summary), **row})
  return found


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested tables as one, with dotted names."""
  found = {}
  for name, item in value.items():
    if isinstance(item, Mapping):
      found.update(flat(item, f"{prefix}{name}."))
    else:
      found[prefix + name] = item
  return found


def write_csv(root: str) -> str:
  """Writes `rows` to results.csv in the sweep's folder; gives its path."""
  found = rows(root)
  names = list(dict.fromkeys(name for row in found for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(found)
  path = pathlib.Path(root) / CSV
  files.write_text_atomic(path, text.getvalue())
  return str(path)


def table(
  found: Sequence[Mapping[str, Any]],
  first: Sequence[str] = (),
  width: int = 0,
) -> str:
  """The rows as aligned text, as many columns as fit.

  Args:
    found: what `rows` gave.
    first: columns that come first, after the swept fields.
    width: characters of a line; 0 takes the terminal's.
  """
  if not found:
    return "no run is complete"
  width = width or shutil.get_terminal_size((100, 24)).columns
  names = list(dict.fromkeys(name for row in found for name in row))
  begin = names.index("seconds") if "seconds" in names else 0
  names = [*names[1:begin], *first, *names[begin:]]
  columns, used = [], 0
  for name in dict.fromkeys(names):
    cells = [_cell(row.get(name)) for row in found]
    size = max(len(cell) for cell in (name, *cells))
    if used + size > width:
      continue
    used += size + 2
    columns.append([text.rjust(size) for text in (name, *cells)])
  return "\n".join("  ".join(line) for line in zip(*columns, strict=True))


def _cell(value: Any) -> str:
  if value is None:
    return ""
  return f"{value:.4g}" if isinstance(value, float) else str(value)
