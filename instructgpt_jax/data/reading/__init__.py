"""Reads the records of a path, glob, directory, comma list or data set name.

A malformed file is an error that names file, line and fix. A record that is
well formed but of no use (a ranking with only ties, an empty reply in a public
file) is skipped and counted in the `Report`. A named file without a usable
record is an error. See docs/data.md for the whole list.

`specs` splits a source into names, `paths` expands them, `listing` leaves out
files without records, `text_files` decodes a file. `values` yields the values
of a file: from `json_files`, `csv_files`, `tables`, `tfds` or `hub`.
`file_records` converts them to records, `sources` joins the files of a source.
"""

from instructgpt_jax.data.reading.file_records import (
  KIND_NAMES,
  FileRecords,
  iterate,
  read_any,
  read_kinds,
)
from instructgpt_jax.data.reading.listing import (
  expand,
  list_files,
  weighted_sources,
)
from instructgpt_jax.data.reading.paths import WeightedSource
from instructgpt_jax.data.reading.report import FileReport, Report, remarks
from instructgpt_jax.data.reading.sources import (
  read_demonstrations,
  read_documents,
  read_prompts,
  read_rankings,
  split_by_name,
)
from instructgpt_jax.data.reading.values import is_table, read_table

__all__ = [
  "KIND_NAMES",
  "FileRecords",
  "FileReport",
  "Report",
  "WeightedSource",
  "expand",
  "is_table",
  "iterate",
  "list_files",
  "read_any",
  "read_demonstrations",
  "read_documents",
  "read_kinds",
  "read_prompts",
  "read_rankings",
  "read_table",
  "remarks",
  "split_by_name",
  "weighted_sources",
]
