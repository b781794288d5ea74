"""Recognises files by their first bytes, whatever their names say.

`refuse` raises an error that names what a file is (an archive, a Parquet table,
a Git LFS pointer, an error page, ...) and how to read its data.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from instructgpt_jax.errors import UserError

HEAD = 1024  # bytes that `recognise` looks at


class Signature(NamedTuple):
  """A kind of file.

  Attributes:
    code: code of the error, such as "compressed_file".
    name: kind of file with its article, as it follows "is".
    fix: how to read the data in it; may be empty.
  """

  code: str
  name: str
  fix: str = ""


_UNPACK = "unpack it, and give the files that it holds"
_TO_JSONL = "write it as JSON lines, for example with DataFrame.to_json(\
'data.jsonl', orient='records', lines=True) of pandas"
_DOWNLOAD = "download the file again; the server sent this page instead"
_RENAME = "name it {}, if it is a data file; data files are read by their names"
_OTHER = "give the file that holds the records or the text"
_WEIGHTS = "it holds weights, not data; give the file of records or text"

_LFS = Signature(
  "lfs_pointer",
  "a Git LFS pointer, not the file itself",
  "run `git lfs pull` in its repository, or download the file itself",
)
_HTML = Signature(
  "html_page",
  "an HTML page",
  "download the file itself, or extract the page's text as .txt",
)
_XML_ERROR = Signature("error_page", "an XML error message", _DOWNLOAD)
_XML = Signature("xml_file", "an XML document", "extract its text, as .txt")
_MESSAGE = Signature("error_page", "the error message of a server", _DOWNLOAD)
_TORCH = Signature("binary_file", "a PyTorch checkpoint", _WEIGHTS)
_OFFICE = "save it as plain text (.txt) or its rows as JSON lines"
BINARY = Signature("binary_file", "binary data, not text", _OTHER)


def _packed(name: str, program: str) -> Signature:
  return Signature(
    "compressed_file",
    f"compressed with {name}",
    f"unpack it ({program}), or compress it with gzip",
  )


def _table(name: str) -> Signature:
  return Signature("binary_file", name, _TO_JSONL)


def _archive(name: str) -> Signature:
  return Signature("archive", name, _UNPACK)


def _binary(name: str, fix: str = _OTHER) -> Signature:
  return Signature("binary_file", name, fix)


# Beginnings that no text has.
_MAGIC: tuple[tuple[bytes, Signature], ...] = (
  (b"\x1f\x8b", _packed("gzip", "gunzip")),
  (b"\xfd7zXZ\x00", _packed("xz", "xz -d")),
  (b"\x5d\x00\x00", _packed("lzma", "xz -d --format=lzma")),
  (b"\x28\xb5\x2f\xfd", _packed("zstd", "zstd -d")),
  (b"\x04\x22\x4d\x18", _packed("lz4", "lz4 -d")),
  (b"\x1f\x9d", _packed("compress", "uncompress")),
  (b"\xff\x06\x00\x00sNaPpY", _packed("snappy", "snzip -d")),
  (b"\x89LZO\x00", _packed("lzop", "lzop -d")),
  (b"PK\x05\x06", _archive("an empty zip archive")),
  (b"PK\x07\x08", _archive("a zip archive")),
  (b"7z\xbc\xaf\x27\x1c", _archive("a 7z archive")),
  (b"Rar!\x1a\x07", _archive("a rar archive")),
  (
    b"\xff\xff\xff\xff",
    _binary("an Arrow stream", _RENAME.format(".arrow")),
  ),
  (b"\x89HDF\r\n\x1a\n", _binary("an HDF5 file")),
  (b"\x93NUMPY", _binary("a NumPy array")),
  (b"SQLite format 3\x00", _table("an SQLite database")),
  (b"\x89PNG\r\n\x1a\n", _binary("a PNG image")),
  (b"\xff\xd8\xff", _binary("a JPEG image")),
  (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _binary("an Office document", _OFFICE)),
  (b"\x7fELF", _binary("a program (ELF)")),
  (b"\xca\xfe\xba\xbe", _binary("a program")),
  (b"\xcf\xfa\xed\xfe", _binary("a program (Mach-O)")),
  (b"\x00asm", _binary("a program (WebAssembly)")),
  (b"%PDF-", _binary("a PDF document", "extract its text (pdftotext)")),
  (b"{\\rtf", _binary("an RTF document", _OFFICE)),
)

# Beginnings in letters: they count where other bytes show that it is no text.
_LETTERS: tuple[tuple[bytes, Signature], ...] = (
  (b"BZh", _packed("bzip2", "bunzip2")),
  (b"PAR1", _binary("a Parquet table", _RENAME.format(".parquet"))),
  (b"PARE", _table("an encrypted Parquet table")),
  (b"ARROW1", _binary("an Arrow table", _RENAME.format(".arrow"))),
  (b"FEA1", _table("a Feather table")),
  (b"ORC", _table("an ORC table")),
  (b"Obj\x01", _table("an Avro file")),
  (b"GGUF", _binary("a GGUF model", _WEIGHTS)),
  (b"ggml", _binary("a GGML model", _WEIGHTS)),
  (b"GIF8", _binary("a GIF image")),
  (b"BM", _binary("a BMP image")),
  (b"II*\x00", _binary("a TIFF image")),
  (b"MM\x00*", _binary("a TIFF image")),
  (b"RIFF", _binary("an image, sound or film (RIFF)")),
  (b"ID3", _binary("a sound file (MP3)")),
  (b"OggS", _binary("a sound file (Ogg)")),
  (b"fLaC", _binary("a sound file (FLAC)")),
  (b"MZ", _binary("a program (Windows)")),
  (b"!<arch>", _archive("an ar archive")),
  (b"MSCF", _archive("a cab archive")),
  (b"PACK", _binary("a pack of Git objects")),
)

# Whole small files that servers send in place of a file that is not there.
_MESSAGES = (
  b"404: Not Found",
  b"404 Not Found",
  b"Not Found",
  b"403 Forbidden",
  b"Forbidden",
  b"Unauthorized",
  b"Entry not found",
  b"Repository not found",
  b"Invalid username or password.",
  b"Access denied",
)
_POINTER = re.compile(rb"version https?://(git-lfs|hawser)\.github\.com/spec/")
_ANNEX = re.compile(rb"/annex/objects/\S+\s*\Z")
_MARKUP = re.compile(
  rb"(?:\s|\xef\xbb\xbf|<!--.*?-->)*<(!doctype\s+html|html|head|\?xml)\b",
  re.IGNORECASE | re.DOTALL,
)
_PAGE = re.compile(rb"<(!doctype\s+html|html)\b", re.IGNORECASE)
_XML_FAULT = re.compile(rb"<\?xml[^>]*>\s*<Error[\s>]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MARKS = (
  (b"\xff\xfe\x00\x00", "utf-32"),
  (b"\x00\x00\xfe\xff", "utf-32"),
  (b"\xff\xfe", "utf-16"),
  (b"\xfe\xff", "utf-16"),
)


def recognise(head: bytes) -> Signature | None:
  """Returns the kind of file by its first bytes; None if it may be text.

  Args:
    head: its first `HEAD` bytes, or all where it is shorter.
  """
  for magic, signature in _MAGIC:
    if head.startswith(magic):
      return signature
  return _recognise_text(head) or _recognise_binary(head)


def _recognise_text(head: bytes) -> Signature | None:
  """Recognises texts that servers or Git store instead of a file."""
  if _POINTER.match(head):
    return _LFS
  if _ANNEX.match(head):
    return Signature(
      "annex_pointer",
      "a git-annex pointer, not the file itself",
      "run `git annex get` for it",
    )
  markup = _MARKUP.match(head)
  if markup:
    if not markup[1].startswith(b"?") or _PAGE.search(head):
      return _HTML
    return _XML_ERROR if _XML_FAULT.search(head) else _XML
  if len(head) < HEAD and head.strip() in _MESSAGES:
    return _MESSAGE
  return None


def _recognise_binary(head: bytes) -> Signature | None:
  """Recognises binary files whose first bytes a text might have, too."""
  if head[4:8] == b"ftyp" and _CONTROL.search(head):
    return _binary("a film (MP4)")
  if head[257:262] == b"ustar":
    return _archive("a tar archive")
  if head.startswith(b"PK\x03\x04"):
    return _recognise_zip(head)
  if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 2**32:
    return _binary("a safetensors file", _WEIGHTS)
  if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
    if b"torch" in head or b"\x6c\xfc\x9c\x46\xf9" in head:
      return _TORCH
    return _binary("a Python pickle", _TO_JSONL)
  if _CONTROL.search(head) and encoding(head) is None:
    for magic, signature in _LETTERS:
      if head.startswith(magic):
        return signature
  return None


def _recognise_zip(head: bytes) -> Signature:
  if b"data.pkl" in head:
    return _TORCH
  if b".npy" in head:
    return _binary("a NumPy archive (.npz)")
  if b"[Content_Types].xml" in head or b"xl/" in head or b"word/" in head:
    return _binary("an Office document", _OFFICE)
  if b"application/epub" in head:
    return _binary("an EPUB book", _OFFICE)
  return _archive("a zip archive")


def byte_order_mark(head: bytes) -> str | None:
  """Returns the encoding of a byte order mark of UTF-16 or UTF-32."""
  return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def encoding(head: bytes) -> str | None:
  """Returns "utf-16-le" and the like for text without a mark, or None.

  Every second byte of UTF-16 is 0 in Latin text, three in four of UTF-32 are
  in every script.
  """
  head = head[: len(head) // 4 * 4]
  count = len(head) // 4
  if count < 2 or head.startswith("\xff\xfe".encode()):
    return None  # The latter is UTF-16 that was read as Latin-1 before.
  zeros = [head[i::4].count(0) / count for i in range(4)]
  low = [share < 0.2 for share in zeros]
  high = [share > 0.6 for share in zeros]
  if zeros[2] > 0.9 and high[3] and low[0]:
    return "utf-32-le"
  if zeros[1] > 0.9 and high[0] and low[3]:
    return "utf-32-be"
  if high[1] and high[3] and low[0] and low[2]:
    return "utf-16-le"
  if high[0] and high[2] and low[1] and low[3]:
    return "utf-16-be"
  return None


def refuse(
  head: bytes, path: str | os.PathLike[str], *, line: int | None = None
) -> None:
  """Raises a UserError where the first bytes show that a file is not text.

  Args:
    head: its first `HEAD` bytes, or all where it is shorter.
    path: the file, for the error.
    line: line for the error, where the caller's errors have one.
  """
  signature = recognise(head)
  if signature is not None:
    raise as_error(signature, path, line=line)


def as_error(
  signature: Signature, path: str | os.PathLike[str], *, line: int | None = None
) -> UserError:
  """Returns the error for a file of a kind that cannot be read."""
  return UserError(
    f"is {signature.name}",
    file=os.fspath(path),
    line=line,
    fix=signature.fix,
    code=signature.code,
  )
