"""Results of a sweep as rows of a table."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import records, sweep_file

CSV = "results.csv"


def read_rows(root: str) -> list[dict[str, Any]]:
  """Returns a flat dict for each complete run of a sweep.

  Args:
    root: the sweep's directory.

  Returns:
    `run`, the swept fields, `seconds`, and the run's summary with dotted names,
    in the order of the sweep. `pandas.DataFrame` accepts the list.
  """
  seconds = records.read_seconds(root)
  rows = []
  for entry in sweep_file.read_sweep(root)["jobs"]:
    name = entry["name"]
    summary = files.read_complete(os.path.join(root, *name.split("/")))
    if summary is not None:
      row = {"run": name, **entry["overrides"], "seconds": seconds.get(name)}
      rows.append({**row, **flatten(summary), **row})
  return rows


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens nested dicts to one with dotted names."""
  flat = {}
  for name, item in value.items():
    if isinstance(item, Mapping):
      flat.update(flatten(item, f"{prefix}{name}."))
    else:
      flat[prefix + name] = item
  return flat


def write_csv(root: str) -> str:
  """Writes results.csv in the sweep's directory, and returns its path."""
  rows = read_rows(root)
  names = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  path = pathlib.Path(root) / CSV
  files.write_text_atomic(path, text.getvalue())
  return str(path)


def format_table(
  rows: Sequence[Mapping[str, Any]],
  first: Sequence[str] = (),
  width: int = 0,
) -> str:
  """Formats rows as aligned text, with as many columns as fit.

  Args:
    rows: rows, as `read_rows` returns them.
    first: columns to show first, after the swept fields.
    width: characters of a line; 0 uses the terminal's width.
  """
  if not rows:
    return "no run is complete"
  width = width or shutil.get_terminal_size((100, 24)).columns
  names = list(dict.fromkeys(name for row in rows for name in row))
  num_swept = names.index("seconds") if "seconds" in names else 0
  names = [*names[1:num_swept], *first, *names[num_swept:]]
  columns, used_width = [], 0
  for name in dict.fromkeys(names):
    cells = [_format_cell(row.get(name)) for row in rows]
    size = max(len(cell) for cell in (name, *cells))
    if used_width + size > width:
      continue
    used_width += size + 2
    columns.append([text.rjust(size) for text in (name, *cells)])
  return "\n".join("  ".join(line) for line in zip(*columns, strict=True))


def _format_cell(value: Any) -> str:
  if value is None:
    return ""
  return f"{value:.4g}" if isinstance(value, float) else str(value)
