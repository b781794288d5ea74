"""Reads the records of a path, glob, directory, comma list or TFDS name.

A malformed file is an error that names file, line and fix. A record that is
well formed but of no use (a ranking with only ties, an empty reply in a public
file) is skipped and counted in the `Report`. A named file without a usable
record is an error. See docs/data.md for the whole list.

`paths` expands names, `listing` leaves out files without records, `text_files`
decodes a file, `json_files`, `containers` and `tfds` yield its values,
`file_records` converts them to records, `sources` joins the files of a source.
"""

from instructgpt_jax.data.reading.file_records import (
  KIND_NAMES,
  FileRecords,
  read_any,
  read_kinds,
)
from instructgpt_jax.data.reading.listing import expand, list_files
from instructgpt_jax.data.reading.report import FileReport, Report, remarks
from instructgpt_jax.data.reading.sources import (
  read_demonstrations,
  read_documents,
  read_prompts,
  read_rankings,
  split_by_name,
)

__all__ = [
  "KIND_NAMES",
  "FileRecords",
  "FileReport",
  "Report",
  "expand",
  "list_files",
  "read_any",
  "read_demonstrations",
  "read_documents",
  "read_kinds",
  "read_prompts",
  "read_rankings",
  "remarks",
  "split_by_name",
]
