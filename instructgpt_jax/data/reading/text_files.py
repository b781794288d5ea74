"""Reads the text of a file, unpacked and decoded, or refuses the file."""

from __future__ import annotations

import os
import pathlib
import re
import stat
import zlib

from instructgpt_jax import file_signatures
from instructgpt_jax.errors import UserError

STDIN = "/dev/stdin"
GZIP = b"\x1f\x8b"
_GZIP_RATIO = 4  # of a text
_MARK = "\ufeff"
_MARKS = re.compile(f"^{_MARK}+", re.MULTILINE)
STRAY_NULS = 3  # NUL characters that any text may hold
_FEW_NULS = 1000  # characters of a text for each NUL in it
# Texts that are no plain text and that their first bytes do not show.
_OTHER_TEXTS = {
  ".html": ("an HTML page", "extract its text, as .txt"),
  ".htm": ("an HTML page", "extract its text, as .txt"),
  ".xml": ("an XML document", "extract its text, as .txt"),
  ".yaml": ("a YAML file", "write its records as JSON lines"),
  ".yml": ("a YAML file", "write its records as JSON lines"),
}

# A pipe can be read once, and stages read a source again: for the tokenizer,
# for the data. By device and inode: a pipe has several names.
_pipes: dict[tuple[int, int], bytes] = {}


def suffix(path: str | os.PathLike[str]) -> str:
  """Returns the suffix of a name in lower case, without .gz."""
  name = pathlib.PurePath(path).name.lower().removesuffix(".gz")
  return pathlib.PurePath(name).suffix


def text_bytes(path: str) -> int:
  """Returns about how many bytes of text a file holds."""
  if not os.path.isfile(path):
    return 0
  with open(path, "rb") as file:
    packed = file.read(2) == GZIP
  return os.path.getsize(path) * (_GZIP_RATIO if packed else 1)


def read_text(path: str) -> str:
  """Reads a file's text, with Unix newlines and without byte order marks.

  The file may be a pipe, gzip data, and UTF-16 or UTF-32 with its mark.

  Raises:
    UserError: the file is something else, or cannot be read.
  """
  content = unpacked_bytes(path)
  file_signatures.refuse(content[: file_signatures.HEAD], path, line=1)
  _refuse_other_text(content, path)
  if not content.strip():
    raise UserError(
      "is empty",
      file=path,
      line=1,
      fix="give a file with records, or leave this one out",
      code="empty_file",
    )
  return decode(content, path)


def decode(content: bytes, path: str) -> str:
  """Decodes a file's bytes, or a part of them, as `read_text` does.

  Raises:
    UserError: they are no text.
  """
  text = _decode(content, path)
  _refuse_nuls(text, path)
  if _MARK in text:
    text = _MARKS.sub("", text)
  text = text.replace("\r\n", "\n")
  return text if "\n" in text else text.replace("\r", "\n")


# Bytes.


def _read_bytes(path: str) -> bytes:
  try:
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
      with open(path, "rb") as file:
        return file.read()
    if stat.S_ISFIFO(status.st_mode):
      return _read_pipe(path, status)
  except OSError as error:
    raise UserError(
      f"cannot be read: {error.strerror}",
      file=path,
      line=1,
      fix="check the path and its permissions",
      code="unreadable",
    ) from error
  raise UserError(
    f"is {_kind(status.st_mode, path)}, not a file",
    file=path,
    line=1,
    fix="give a file or a pipe",
    code="not_a_file",
  )


def _kind(mode: int, path: str) -> str:
  if stat.S_ISSOCK(mode):
    return "a socket"
  if stat.S_ISDIR(mode):
    return "a directory"
  if stat.S_ISCHR(mode):
    with open(path, "rb", buffering=0) as file:
      if file.isatty():
        return "a terminal"
  return "a device"


def _read_pipe(path: str, status: os.stat_result) -> bytes:
  """Reads a pipe to its end the first time, and remembers its content."""
  key = (status.st_dev, status.st_ino)
  if key not in _pipes:
    import jax

    if jax.distributed.is_initialized():
      raise UserError(
        "is a pipe, and each process would read a different part of it",
        file=path,
        line=1,
        fix="write it to a file that all processes can read",
        code="shared_pipe",
      )
    with open(path, "rb") as file:
      _pipes[key] = file.read()
  return _pipes[key]


def unpacked_bytes(path: str) -> bytes:
  """Reads the bytes of a file or a pipe, unpacked from gzip."""
  content = _read_bytes(path)
  if content.startswith(GZIP):
    content = _gunzip(content, path)
    if content.startswith(GZIP):
      raise UserError(
        "is compressed with gzip twice",
        file=path,
        line=1,
        fix="unpack it once (gunzip)",
        code="compressed_file",
      )
  elif content and path.lower().endswith(".gz"):
    file_signatures.refuse(content[: file_signatures.HEAD], path, line=1)
    raise UserError(
      "is no valid gzip data",
      file=path,
      line=1,
      fix="name it without .gz where it is not compressed; otherwise copy it"
      " again (gzip -t checks it)",
      code="bad_gzip",
    )
  return content


def _gunzip(packed: bytes, path: str) -> bytes:
  """Unpacks all members of a gzip file; a broken one is an error."""
  parts: list[bytes] = []
  while packed:
    unpack = zlib.decompressobj(wbits=31)
    problem = ""
    try:
      parts.append(unpack.decompress(packed))
      parts.append(unpack.flush())
    except zlib.error:
      problem = "is no valid gzip data"
    else:
      if not unpack.eof:
        problem = "the gzip data is cut short"
    if problem:
      raise UserError(
        problem,
        file=path,
        line=b"".join(parts).count(b"\n") + 1,
        fix="copy or compress the file again (gzip -t checks it)",
        code="bad_gzip",
      )
    packed = unpack.unused_data.lstrip(b"\0")
  return b"".join(parts)


def _refuse_other_text(content: bytes, path: str) -> None:
  name, fix = _OTHER_TEXTS.get(suffix(path), ("", ""))
  if name and content.strip():
    raise UserError(
      f"is {name}", file=path, line=1, fix=fix, code="unknown_kind"
    )


# Text.


def _decode(content: bytes, path: str) -> str:
  head = content[: file_signatures.HEAD]
  encoding = file_signatures.byte_order_mark(head)
  if encoding is None:
    unmarked = file_signatures.encoding(head)
    if unmarked:
      name = unmarked[:-3].upper() + unmarked[-2:].upper()  # as iconv has it
      raise UserError(
        f"is {name} without a byte order mark",
        file=path,
        line=1,
        fix=f"convert it to UTF-8 (iconv -f {name} -t UTF-8)",
        code="utf16",
      )
  try:
    return content.decode(encoding or "utf-8-sig")
  except UnicodeDecodeError as error:
    raise _undecodable(error, content, path, encoding) from error


def _undecodable(
  error: UnicodeDecodeError, content: bytes, path: str, encoding: str | None
) -> UserError:
  """Returns the error for bytes that are not in the expected encoding."""
  line = error.object.count(b"\n", 0, error.start) + 1
  if encoding:
    problem = f"is damaged or cut short: no whole {encoding.upper()}"
    fix, code = "copy the file again, or convert it to UTF-8", "not_utf8"
  elif error.reason == "unexpected end of data":
    problem = "is cut short: it ends in the middle of a character"
    fix, code = "copy the file again", "cut_short"
  elif _is_binary(content):
    return file_signatures.as_error(file_signatures.BINARY, path, line=1)
  else:
    problem = f"byte 0x{error.object[error.start]:02x} is not valid UTF-8"
    fix = "convert the file from its encoding to UTF-8, for example with iconv"
    fix += " -f cp1252 -t utf-8 for Western European text of Windows"
    code = "not_utf8"
  return UserError(problem, file=path, line=line, fix=fix, code=code)


def _is_binary(content: bytes) -> bool:
  """Returns whether the first bytes have too many control characters."""
  head = content[: file_signatures.HEAD]
  controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
  return controls * 50 > len(head)


def _refuse_nuls(text: str, path: str) -> None:
  """Refuses NUL characters, as from UTF-16 misread or from a crash."""
  if "\0" not in text:
    return
  problem = ""
  inside = text.rstrip("\0 \t\r\n")
  count = inside.count("\0")
  if count > STRAY_NULS and count * _FEW_NULS > len(inside):
    problem = f"holds {count} NUL characters, so it is not text in UTF-8"
    fix = "convert the original file from its encoding (UTF-16?) to UTF-8"
  elif "\0" in text[len(inside) :]:
    problem = "ends in NUL characters, as a crash or a broken copy leaves them"
    fix = "copy the file again, or remove them (tr -d '\\0')"
  if problem:
    raise UserError(
      problem,
      file=path,
      line=text.count("\n", 0, text.index("\0")) + 1,
      fix=fix,
      code="nul_characters",
    )
