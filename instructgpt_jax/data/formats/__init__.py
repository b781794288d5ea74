"""Public formats and our own: recognised by their fields, parsed to records.

A format is recognised from a file's first record. What does not fit it
afterwards is an error that names file, line and field. What public files hold
though nobody could train on it (an empty reply, a pair without a preference)
is a counted skip; in our own formats an empty reply is an error.

Every field of a record is used, listed as irrelevant, refused, or counted:
`Format.fields` and `Format.irrelevant` list those of a format, `common.FIELDS`
those that mean the same in all formats. `FileReader` counts all others.
"""

from instructgpt_jax.data.formats.file_reader import FileReader
from instructgpt_jax.data.formats.format import Format
from instructgpt_jax.data.formats.recognise import (
  LOOKAHEAD,
  is_ambiguous,
  recognise,
)
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.registry import FORMATS, PLAIN, by_name
from instructgpt_jax.data.formats.skips import EMPTY, TIES, Skip
from instructgpt_jax.data.formats.transcripts import transcript

__all__ = [
  "EMPTY",
  "FORMATS",
  "LOOKAHEAD",
  "PLAIN",
  "TIES",
  "FileReader",
  "Format",
  "RecordReader",
  "Skip",
  "by_name",
  "is_ambiguous",
  "recognise",
  "transcript",
]
