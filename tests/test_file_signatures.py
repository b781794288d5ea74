"""Files are recognised by their first bytes, and texts are left alone."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from instructgpt_jax import file_signatures
from instructgpt_jax.errors import UserError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"


def _zip(name):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr(name, "text")
  return file.getvalue()


def _tar():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
  return file.getvalue()


def _npy():
  file = io.BytesIO()
  np.save(file, np.arange(3))
  return file.getvalue()


def _npz():
  file = io.BytesIO()
  np.savez(file, a=np.arange(3))
  return file.getvalue()


def _sqlite():
  base = sqlite3.connect(":memory:")
  base.execute("create table t (a)")
  return base.serialize()


def _safetensors():
  header = json.dumps({"w": {"dtype": "F32", "shape": [0]}}).encode()
  return struct.pack("<Q", len(header)) + header


# name: (content, code, part of the name)
KINDS = {
  "gzip": (gzip.compress(b"a"), "compressed_file", "gzip"),
  "bzip2": (bz2.compress(b"text " * 50), "compressed_file", "bzip2"),
  "xz": (lzma.compress(b"a"), "compressed_file", "xz"),
  "lzma": (
    lzma.compress(b"a", lzma.FORMAT_ALONE), "compressed_file", "lzma",
  ),
  "zstd": (b"\x28\xb5\x2f\xfdxx", "compressed_file", "zstd"),
  "lz4": (b"\x04\x22\x4d\x18a", "compressed_file", "lz4"),
  "zip": (_zip("a.jsonl"), "archive", "zip"),
  "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "archive", "7z"),
  "rar": (b"Rar!\x1a\x07\x01\x00", "archive", "rar"),
  "tar": (_tar(), "archive", "tar"),
  "docx": (_zip("word/document.xml"), "binary_file", "Office"),
  "torch": (_zip("archive/data.pkl"), "binary_file", "PyTorch"),
  "pickle": (pickle.dumps({"a": [1, 2]}), "binary_file", "pickle"),
  "npy": (_npy(), "binary_file", "NumPy"),
  "npz": (_npz(), "binary_file", "NumPy"),
  "parquet": (b"PAR1\x15\x04\x15\x10", "binary_file", "Parquet"),
  "arrow": (b"ARROW1\x00\x00\xff\xff\xff\xff", "binary_file", "Arrow"),
  "stream": (b"\xff\xff\xff\xff\xa8\x01\x00\x00", "binary_file", "Arrow"),
  "safetensors": (_safetensors(), "binary_file", "safetensors"),
  "gguf": (b"GGUF\x03\x00\x00\x00", "binary_file", "GGUF"),
  "hdf5": (b"\x89HDF\r\n\x1a\n\x00", "binary_file", "HDF5"),
  "sqlite": (_sqlite(), "binary_file", "SQLite"),
  "png": (b"\x89PNG\r\n\x1a\n\x00\x00", "binary_file", "PNG"),
  "jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "binary_file", "JPEG"),
  "pdf": (b"%PDF-1.7\n%\xe2\xe3", "binary_file", "PDF"),
  "elf": (b"\x7fELF\x02\x01", "binary_file", "ELF"),
  "exe": (b"MZ\x90\x00\x03\x00", "binary_file", "Windows"),
  "lfs": (LFS, "lfs_pointer", "Git LFS"),
  "old lfs": (
    b"version http://hawser.github.com/spec/v1\noid", "lfs_pointer", "LFS",
  ),
  "annex": (b"/annex/objects/SHA256E-s1--ab.json\n", "annex_pointer", "annex"),
  "html": (b"<!DOCTYPE html><html>404</html>", "html_page", "HTML"),
  "html in small letters": (b"\n <html lang='en'>", "html_page", "HTML"),
  "html after a comment": (b"<!-- x --><HTML>", "html_page", "HTML"),
  "xhtml": (
    b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC><html>", "html_page", "HTML",
  ),
  "error in xml": (
    b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code></Error>',
    "error_page", "XML error",
  ),
  "xml": (b"<?xml version='1.0'?><TEI>", "xml_file", "XML"),
  "error of a server": (b"404: Not Found", "error_page", "server"),
  "error of a hub": (b"Entry not found\n", "error_page", "server"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name):
  content, code, part = KINDS[name]
  signature = file_signatures.recognise(content[: file_signatures.HEAD])
  assert signature is not None
  assert signature.code == code and part in signature.name
  with pytest.raises(UserError) as caught:
    file_signatures.refuse(content[: file_signatures.HEAD], "a.bin", line=1)
  error = caught.value
  assert (error.code, error.file, error.line) == (code, "a.bin", 1)
  assert error.fix


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{}",
    '{"a": 1}\n{"a": 2}',
    "ORC raids, a story",
    "BMW façade, MZ, PACK, RIFF and ID3",
    "GGUF is a kind of file",
    "PAR1 and ARROW1 are others",
    "BZh91 was here",
    "PK is a name",
    "version 2 of the text",
    "version https://example.com/spec",
    "<header> a tag that is none",
    "<b>bold</b> text",
    "404: Not Found is what a server says when",
    "Not Found, the novel. " * 100,
    "naïve 日本語 text",
    "\ufeff{}",
    "a form\ffeed, a \x1b[1mbold\x1b[0m word and a bell\a",
    "12345678{ a brace in the ninth place",
  ],
)
def test_texts_are_left_alone(text):
  head = text.encode()[: file_signatures.HEAD]
  assert file_signatures.recognise(head) is None
  assert file_signatures.encoding(head) is None
  file_signatures.refuse(head, "a.txt")


@pytest.mark.parametrize("text", ["Name a river.\n", '{"prompt": "a"}\n' * 99])
@pytest.mark.parametrize(
  "encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
def test_encodings_without_a_mark(text, encoding):
  head = text.encode(encoding)[: file_signatures.HEAD]
  assert file_signatures.encoding(head) == encoding
  assert file_signatures.recognise(head) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_encodings_with_a_mark(encoding):
  assert file_signatures.byte_order_mark("a river".encode(encoding)) == encoding
  assert file_signatures.recognise("a river".encode(encoding)) is None


def test_other_scripts_in_utf_32():
  head = ("日本語のテキスト。" * 9).encode("utf-32-le")
  assert file_signatures.encoding(head) == "utf-32-le"


def test_the_interpreter_itself_is_recognised():
  with open(sys.executable, "rb") as file:
    assert (
      file_signatures.recognise(file.read(file_signatures.HEAD)) is not None
    )
