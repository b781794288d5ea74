"""Files are complete or absent."""

import errno
import functools
import json
import os
import pathlib
import socket
import stat
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files


def test_json_round_trip_makes_parents_and_leaves_no_temporary(tmp_path):
  path = tmp_path / "a" / "b.json"
  files.write_json_atomic(path, {"x": [1, 2.5, None, True, "é"]})
  assert files.read_json(path) == {"x": [1, 2.5, None, True, "é"]}
  assert os.listdir(path.parent) == ["b.json"]


def test_json_of_arrays_and_nonfinite_numbers(tmp_path):
  path = tmp_path / "a.json"
  value = {"n": np.int64(3), "a": np.arange(2), "bad": [np.nan, -np.inf]}
  files.write_json_atomic(path, value)
  assert files.read_json(path) == {
    "n": 3,
    "a": [0, 1],
    "bad": ["nan", "-inf"],
  }


def test_jsonl_has_one_value_per_line(tmp_path):
  path = tmp_path / "a.jsonl"
  files.write_jsonl_atomic(path, ({"text": f"{i}\n"} for i in range(3)))
  lines = path.read_text().splitlines()
  assert [json.loads(line)["text"] for line in lines] == ["0\n", "1\n", "2\n"]


def test_failing_write_keeps_the_old_file(tmp_path):
  path = tmp_path / "a.jsonl"
  files.write_text_atomic(path, "old")

  def values():
    yield {"new": 1}
    raise RuntimeError("half way")

  with pytest.raises(RuntimeError):
    files.write_jsonl_atomic(path, values())
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.jsonl"]


def test_full_disk_is_a_user_error_and_keeps_the_old_file(tmp_path):
  # A limit on the size of files simulates a full disk.
  script = """
    import resource, sys
    from instructgpt_jax.errors import UserError
    from instructgpt_jax.runs import files
    path = sys.argv[1]
    files.write_text_atomic(path, "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
      files.write_text_atomic(path, "x" * 100_000)
    except UserError as error:
      print(error)
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), tmp_path / "a.txt"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "a.txt: the disk is full" in done.stdout
  assert "fix: free some space" in done.stdout
  assert (tmp_path / "a.txt").read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
  "number, code",
  [
    (errno.ENOSPC, "disk_full"),
    (errno.EDQUOT, "disk_full"),
    (errno.EROFS, "not_writable"),
    (errno.EIO, "disk_error"),
  ],
)
def test_disk_errors_name_file_and_fix(number, code):
  with pytest.raises(UserError) as error:
    with files.disk_errors_as_user_errors("some/file"):
      raise OSError(number, os.strerror(number))
  assert (error.value.code, error.value.file) == (code, "some/file")
  assert error.value.fix


def test_file_instead_of_a_directory(tmp_path):
  (tmp_path / "a").write_text("")
  with pytest.raises(UserError) as error:
    files.write_text_atomic(tmp_path / "a" / "b", "text")
  assert error.value.code == "wrong_kind"


def test_read_json_names_file_and_line(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{\n"a": 1,\n}\n')
  with pytest.raises(UserError) as error:
    files.read_json(path, fix="correct it")
  assert error.value.code == "bad_json"
  assert (error.value.file, error.value.line) == (str(path), 3)
  assert error.value.fix == "correct it"


def test_read_json_of_missing_and_non_utf8_files(tmp_path):
  with pytest.raises(UserError) as error:
    files.read_json(tmp_path / "a.json")
  assert error.value.code == "no_file"
  (tmp_path / "b.json").write_bytes(b'{\n"a": "\xff"}')
  with pytest.raises(UserError) as error:
    files.read_json(tmp_path / "b.json")
  assert (error.value.code, error.value.line) == ("not_utf8", 2)


def test_complete_mark(tmp_path):
  assert files.read_complete(tmp_path) is None
  files.mark_complete(tmp_path, {"loss": 1.5})
  assert files.read_complete(tmp_path) == {"loss": 1.5}


def _read_in_thread(path):
  """Reads a pipe to its end in a thread, which is to be joined."""
  contents = []
  thread = threading.Thread(
    target=lambda: contents.append(path.read_bytes()), daemon=True
  )
  thread.start()
  return thread, contents


def test_pipe_is_written_to(tmp_path):
  path = tmp_path / "pipe"
  os.mkfifo(path)
  thread, contents = _read_in_thread(path)
  files.write_jsonl_atomic(path, [{"a": 1}, {"a": 2}])
  thread.join(10)
  assert contents == [b'{"a": 1}\n{"a": 2}\n']
  assert stat.S_ISFIFO(path.stat().st_mode)
  assert os.listdir(tmp_path) == ["pipe"]


def test_link_to_a_pipe_is_written_to(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to("pipe")
  thread, contents = _read_in_thread(tmp_path / "pipe")
  files.write_text_atomic(tmp_path / "link", "text")
  thread.join(10)
  assert contents == [b"text"]
  assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
  assert (tmp_path / "link").is_symlink()


def test_device_is_written_to(tmp_path):
  path = tmp_path / "null"
  try:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    path.open("wb").close()
  except OSError:
    pytest.skip("devices cannot be made here")
  files.write_text_atomic(path, "text")
  assert stat.S_ISCHR(path.lstat().st_mode)
  assert os.listdir(tmp_path) == ["null"]


@pytest.mark.parametrize("exists", [True, False])
def test_target_of_a_link_is_replaced(tmp_path, exists):
  target = tmp_path / "deep" / "real.txt"
  target.parent.mkdir()
  if exists:
    target.write_text("old")
  (tmp_path / "middle").symlink_to(target)
  (tmp_path / "link").symlink_to("middle")
  files.write_text_atomic(tmp_path / "link", "new")
  assert target.read_text() == "new" and not target.is_symlink()
  assert os.readlink(tmp_path / "link") == "middle"
  assert os.listdir(target.parent) == ["real.txt"]


def test_hard_link_keeps_the_old_text(tmp_path):
  (tmp_path / "a").write_text("old")
  os.link(tmp_path / "a", tmp_path / "b")
  files.write_text_atomic(tmp_path / "a", "new")
  assert (tmp_path / "b").read_text() == "old"


def _socket(path):
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(path))


@pytest.mark.parametrize(
  "make", [pathlib.Path.mkdir, _socket], ids=["directory", "socket"]
)
def test_directories_and_sockets_are_refused(tmp_path, monkeypatch, make):
  monkeypatch.chdir(tmp_path)  # Names of sockets must be short.
  path = pathlib.Path("a")
  make(path)
  before = path.lstat()
  with pytest.raises(UserError) as error:
    files.write_text_atomic(path, "text")
  assert (error.value.code, error.value.file) == ("not_a_file", "a")
  with pytest.raises(UserError) as error:
    files.check_output(path, field="--output", overwrite=True)
  assert (error.value.code, error.value.field) == ("not_a_file", "--output")
  assert path.lstat().st_mode == before.st_mode


def test_link_to_itself_is_an_error(tmp_path):
  (tmp_path / "a").symlink_to("b")
  (tmp_path / "b").symlink_to("a")
  with pytest.raises(UserError, match="link to itself") as error:
    files.write_text_atomic(tmp_path / "a", "text")
  assert error.value.code == "link_loop"
  assert error.value.file == str(tmp_path / "a")
  assert (tmp_path / "a").is_symlink()


def test_file_modes(tmp_path):
  """New files follow the umask; replaced files keep their mode."""
  mask = os.umask(0o027)
  try:
    files.write_text_atomic(tmp_path / "new", "text")
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o600)
    files.write_text_atomic(tmp_path / "secret", "new")
  finally:
    os.umask(mask)
  assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
  assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_descriptor_is_written_at_its_position(tmp_path):
  path = tmp_path / "log"
  with open(path, "wb") as file:
    file.write(b"before\n")
    file.flush()
    name = f"/dev/fd/{file.fileno()}"
    files.check_output(name, field="--output", overwrite=False)
    files.write_text_atomic(name, "text\n")
    file.write(b"after\n")
  assert path.read_bytes() == b"before\ntext\nafter\n"


def test_long_names(tmp_path):
  path = tmp_path / ("ü" * 127)
  files.write_text_atomic(path, "text")
  assert path.read_text() == "text"
  with pytest.raises(UserError) as error:
    files.write_text_atomic(tmp_path / ("x" * 300), "text")
  assert error.value.code == "long_name"


def test_check_output(tmp_path):
  path = tmp_path / "a"
  check = functools.partial(files.check_output, field="--output")
  check(path, overwrite=False)
  check(tmp_path / "new" / "a", overwrite=False)
  path.write_text("old")
  check(path, overwrite=True)
  with pytest.raises(UserError) as error:
    check(path, overwrite=False)
  assert error.value.code == "output_exists"
  assert (error.value.file, error.value.field) == (str(path), "--output")
  with pytest.raises(UserError) as error:
    check(path / "b", overwrite=True)
  assert error.value.field == "--output"
  os.mkfifo(tmp_path / "pipe")
  check(tmp_path / "pipe", overwrite=False)


def test_check_output_refuses_an_unwritable_directory(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "access", lambda *args: False)
  with pytest.raises(UserError) as error:
    files.check_output(tmp_path / "a", field="--output", overwrite=False)
  assert error.value.code == "output_unwritable"
  assert error.value.file == str(tmp_path)


def test_names_that_are_not_utf8_are_restored(tmp_path):
  value = {"path": "caf\udce9", "half": "\ud800"}
  files.write_json_atomic(tmp_path / "a.json", value)
  assert files.read_json(tmp_path / "a.json") == value
  files.write_jsonl_atomic(tmp_path / "a.jsonl", [value])
  assert json.loads((tmp_path / "a.jsonl").read_text()) == value
  files.write_text_atomic(tmp_path / "a.txt", value["path"])
  assert (tmp_path / "a.txt").read_text() == "caf\\udce9"


@pytest.mark.parametrize(
  "text, message",
  [("9" * 5000, "4300 digits"), ("[" * 100_000, "nested too deeply")],
)
def test_json_that_exceeds_pythons_limits(tmp_path, text, message):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(UserError, match=message) as error:
    files.read_json(tmp_path / "a.json")
  assert (error.value.code, error.value.line) == ("bad_json", 1)


def test_git_lfs_pointer_is_named(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n")
  with pytest.raises(UserError) as error:
    files.read_json(path)
  assert (error.value.code, error.value.file) == ("lfs_pointer", str(path))


def test_umask_is_never_set(tmp_path, monkeypatch):
  """Setting it would affect files made by other threads."""
  before = os.umask(0o027)
  try:
    monkeypatch.setattr(os, "umask", pytest.fail)
    files.write_text_atomic(tmp_path / "a.txt", "text")
  finally:
    monkeypatch.undo()
    os.umask(before)
  assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_publish_directory_flushes_before_renaming(tmp_path, monkeypatch):
  new, final = tmp_path / "new", tmp_path / "final"
  (new / "inner").mkdir(parents=True)
  for name in ("a", "b", "inner/c"):
    (new / name).write_text(name)
  flushed, original = [], os.fsync

  def fsync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    flushed.append((os.path.relpath(path, tmp_path), final.exists()))
    original(descriptor)

  monkeypatch.setattr(os, "fsync", fsync)
  files.publish_directory(new, final)
  within = {"new/a", "new/b", "new/inner/c", "new/inner", "new"}
  assert {name for name, published in flushed if not published} == within
  assert flushed[-1] == (".", True)
  assert (final / "inner" / "c").read_text() == "inner/c"
