"""Files are whole or absent; a workdir belongs to one run."""

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


def test_json_takes_arrays_and_names_what_is_not_finite(tmp_path):
  path = tmp_path / "a.json"
  value = {"n": np.int64(3), "a": np.arange(2), "bad": [np.nan, -np.inf]}
  files.write_json_atomic(path, value)
  assert files.read_json(path) == {
    "n": 3,
    "a": [0, 1],
    "bad": ["nan", "-inf"],
  }


def test_jsonl_has_one_value_a_line(tmp_path):
  path = tmp_path / "a.jsonl"
  files.write_jsonl_atomic(path, ({"text": f"{i}\n"} for i in range(3)))
  lines = path.read_text().splitlines()
  assert [json.loads(line)["text"] for line in lines] == ["0\n", "1\n", "2\n"]


def test_a_failing_write_keeps_the_old_file(tmp_path):
  path = tmp_path / "a.jsonl"
  files.write_text_atomic(path, "old")

  def values():
    yield {"new": 1}
    raise RuntimeError("half way")

  with pytest.raises(RuntimeError):
    files.write_jsonl_atomic(path, values())
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_full_disk_is_a_user_error_and_keeps_the_old_file(tmp_path):
  # A limit on the size of files stands in for a full disk.
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
  "code, words",
  [
    (errno.ENOSPC, "the disk is full"),
    (errno.EDQUOT, "the disk is full"),
    (errno.EROFS, "may not be written"),
    (errno.EIO, "could not be written"),
  ],
)
def test_every_disk_error_names_file_and_fix(code, words):
  with pytest.raises(UserError, match=words) as caught:
    with files.disk_errors_as_user_errors("some/file"):
      raise OSError(code, os.strerror(code))
  assert caught.value.file == "some/file"
  assert caught.value.fix


def test_a_file_where_a_folder_is_needed(tmp_path):
  (tmp_path / "a").write_text("")
  with pytest.raises(UserError, match="file stands where a folder"):
    files.write_text_atomic(tmp_path / "a" / "b", "text")


def test_read_json_names_file_and_line(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{\n"a": 1,\n}\n')
  with pytest.raises(UserError, match="is not JSON") as caught:
    files.read_json(path, fix="mend it")
  assert (caught.value.file, caught.value.line) == (str(path), 3)
  assert caught.value.fix == "mend it"


def test_read_json_of_missing_and_not_utf8(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    files.read_json(tmp_path / "a.json")
  (tmp_path / "b.json").write_bytes(b'{\n"a": "\xff"}')
  with pytest.raises(UserError, match="not UTF-8") as caught:
    files.read_json(tmp_path / "b.json")
  assert caught.value.line == 2


def test_complete_mark(tmp_path):
  assert files.read_complete(tmp_path) is None
  files.mark_complete(tmp_path, {"loss": 1.5})
  assert files.read_complete(tmp_path) == {"loss": 1.5}


CONFIG = {"seed": 0, "ppo": {"kl_coef": 0.02, "epochs": 1}, "run": {"keep": 2}}


def _changed(**changes):
  return {**CONFIG, **changes}


def test_claiming_writes_the_config_and_may_be_repeated(tmp_path):
  workdir = tmp_path / "run"
  files.claim_workdir(workdir, "ppo", CONFIG)
  first = (workdir / "config.json").read_bytes()
  files.claim_workdir(workdir, "ppo", CONFIG)
  assert (workdir / "config.json").read_bytes() == first
  assert json.loads(first) == {"experiment": "ppo", "config": CONFIG}


def test_run_settings_may_change(tmp_path):
  files.claim_workdir(tmp_path, "ppo", CONFIG)
  files.claim_workdir(tmp_path, "ppo", _changed(run={"keep": 5}))
  held = json.loads((tmp_path / "config.json").read_text())
  assert held["config"]["run"] == {"keep": 5}


@pytest.mark.parametrize(
  "experiment, config, words",
  [
    ("sft", CONFIG, "'ppo', not 'sft'"),
    (
      "ppo",
      _changed(ppo={"kl_coef": 0.1, "epochs": 1}),
      r"--ppo.kl_coef=0.02, not 0.1",
    ),
    (
      "ppo",
      _changed(seed=1, ppo={"kl_coef": 0.1, "epochs": 1}),
      r"--seed=0, not 1 and 1 more differ",
    ),
    ("ppo", _changed(new=1), r"--new=nothing, not 1"),
    (
      "ppo",
      _changed(ppo={"kl_coef": 0.02}),
      r"--ppo.epochs=1, not nothing",
    ),
  ],
)
def test_another_run_is_refused_and_nothing_lost(
  tmp_path, experiment, config, words
):
  files.claim_workdir(tmp_path, "ppo", CONFIG)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match=words) as caught:
    files.claim_workdir(tmp_path, experiment, config)
  assert str(tmp_path) in str(caught.value)
  assert "--workdir" in caught.value.fix
  assert len(str(caught.value).splitlines()) <= 3
  assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["[]", "{}", '{"experiment": "ppo"}'])
def test_a_config_that_is_not_a_runs_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match="not the config of a run"):
    files.claim_workdir(tmp_path, "ppo", CONFIG)
  assert (tmp_path / "config.json").read_text() == text


def _read_in_thread(path):
  """Reads a pipe to its end, beside the test; join the thread, then look."""
  contents = []
  thread = threading.Thread(
    target=lambda: contents.append(path.read_bytes()), daemon=True
  )
  thread.start()
  return thread, contents


def test_a_pipe_is_written_into_and_stays(tmp_path):
  path = tmp_path / "pipe"
  os.mkfifo(path)
  thread, contents = _read_in_thread(path)
  files.write_jsonl_atomic(path, [{"a": 1}, {"a": 2}])
  thread.join(10)
  assert contents == [b'{"a": 1}\n{"a": 2}\n']
  assert stat.S_ISFIFO(path.stat().st_mode)
  assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_to_a_pipe_is_written_into_and_stays(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to("pipe")
  thread, contents = _read_in_thread(tmp_path / "pipe")
  files.write_text_atomic(tmp_path / "link", "text")
  thread.join(10)
  assert contents == [b"text"]
  assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
  assert (tmp_path / "link").is_symlink()


def test_a_device_is_written_into_and_stays(tmp_path):
  path = tmp_path / "null"
  try:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    path.open("wb").close()
  except OSError:
    pytest.skip("devices cannot be made here")
  files.write_text_atomic(path, "text")
  assert stat.S_ISCHR(path.lstat().st_mode)
  assert os.listdir(tmp_path) == ["null"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there):
  target = tmp_path / "deep" / "real.txt"
  target.parent.mkdir()
  if there:
    target.write_text("old")
  (tmp_path / "middle").symlink_to(target)
  (tmp_path / "link").symlink_to("middle")
  files.write_text_atomic(tmp_path / "link", "new")
  assert target.read_text() == "new" and not target.is_symlink()
  assert os.readlink(tmp_path / "link") == "middle"
  assert os.listdir(target.parent) == ["real.txt"]


def test_a_hard_link_to_the_target_keeps_the_old_text(tmp_path):
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
def test_what_cannot_be_written_to_is_refused(tmp_path, monkeypatch, make):
  monkeypatch.chdir(tmp_path)  # names of sockets have to be short
  path = pathlib.Path("a")
  make(path)
  before = path.lstat()
  with pytest.raises(UserError) as caught:
    files.write_text_atomic(path, "text")
  assert (caught.value.code, caught.value.file) == ("not_a_file", "a")
  with pytest.raises(UserError) as caught:
    files.check_output(path, field="--output", overwrite=True)
  assert (caught.value.code, caught.value.field) == ("not_a_file", "--output")
  assert path.lstat().st_mode == before.st_mode


def test_a_link_that_leads_to_itself_is_an_error(tmp_path):
  (tmp_path / "a").symlink_to("b")
  (tmp_path / "b").symlink_to("a")
  with pytest.raises(UserError, match="leads to itself") as caught:
    files.write_text_atomic(tmp_path / "a", "text")
  assert caught.value.file == str(tmp_path / "a")
  assert (tmp_path / "a").is_symlink()


def test_modes(tmp_path):
  """A new file follows the umask; one that is replaced keeps its mode."""
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


def test_a_descriptor_is_written_into_where_it_stands(tmp_path):
  path = tmp_path / "log"
  with open(path, "wb") as file:
    file.write(b"before\n")
    file.flush()
    name = f"/dev/fd/{file.fileno()}"
    files.check_output(name, field="--output", overwrite=False)
    files.write_text_atomic(name, "text\n")
    file.write(b"after\n")
  assert path.read_bytes() == b"before\ntext\nafter\n"


def test_a_long_name_can_be_written(tmp_path):
  path = tmp_path / ("ü" * 127)
  files.write_text_atomic(path, "text")
  assert path.read_text() == "text"
  with pytest.raises(UserError, match="too long a name"):
    files.write_text_atomic(tmp_path / ("x" * 300), "text")


def test_outputs_are_checked_before_there_are_any(tmp_path):
  path = tmp_path / "a"
  check = functools.partial(files.check_output, field="--output")
  check(path, overwrite=False)
  check(tmp_path / "new" / "a", overwrite=False)
  path.write_text("old")
  check(path, overwrite=True)
  with pytest.raises(UserError) as caught:
    check(path, overwrite=False)
  assert caught.value.code == "output_exists"
  assert (caught.value.file, caught.value.field) == (str(path), "--output")
  with pytest.raises(UserError) as caught:
    check(path / "b", overwrite=True)
  assert caught.value.field == "--output"
  os.mkfifo(tmp_path / "pipe")
  check(tmp_path / "pipe", overwrite=False)


def test_a_directory_without_permission_is_refused_early(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "access", lambda *args: False)
  with pytest.raises(UserError) as caught:
    files.check_output(tmp_path / "a", field="--output", overwrite=False)
  assert caught.value.code == "output_unwritable"
  assert caught.value.file == str(tmp_path)


def test_names_that_are_not_utf8_are_written_and_read_back(tmp_path):
  value = {"path": "caf\udce9", "half": "\ud800"}
  files.write_json_atomic(tmp_path / "a.json", value)
  assert files.read_json(tmp_path / "a.json") == value
  files.write_jsonl_atomic(tmp_path / "a.jsonl", [value])
  assert json.loads((tmp_path / "a.jsonl").read_text()) == value
  files.write_text_atomic(tmp_path / "a.txt", value["path"])
  assert (tmp_path / "a.txt").read_text() == "caf\\udce9"


@pytest.mark.parametrize(
  "text, words",
  [("9" * 5000, "4300 digits"), ("[" * 100_000, "nested too deeply")],
)
def test_json_that_python_cannot_hold(tmp_path, text, words):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(UserError, match=words) as caught:
    files.read_json(tmp_path / "a.json")
  assert (caught.value.code, caught.value.line) == ("bad_json", 1)


def test_a_pointer_in_place_of_a_file_is_named(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n")
  with pytest.raises(UserError) as caught:
    files.read_json(path)
  assert (caught.value.code, caught.value.file) == ("lfs_pointer", str(path))


def test_the_umask_is_read_and_never_set(tmp_path, monkeypatch):
  """Files that other threads make meanwhile keep their modes."""
  before = os.umask(0o027)
  try:
    monkeypatch.setattr(os, "umask", pytest.fail)
    files.write_text_atomic(tmp_path / "a.txt", "text")
  finally:
    monkeypatch.undo()
    os.umask(before)
  assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_directory_is_on_the_disk_before_it_is_in_its_place(
  tmp_path, monkeypatch
):
  new, place = tmp_path / "new", tmp_path / "place"
  (new / "inner").mkdir(parents=True)
  for name in ("a", "b", "inner/c"):
    (new / name).write_text(name)
  flushed, honest = [], os.fsync

  def fsync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    flushed.append((os.path.relpath(path, tmp_path), place.exists()))
    honest(descriptor)

  monkeypatch.setattr(os, "fsync", fsync)
  files.publish_directory(new, place)
  within = {"new/a", "new/b", "new/inner/c", "new/inner", "new"}
  assert {name for name, published in flushed if not published} == within
  assert flushed[-1] == (".", True)
  assert (place / "inner" / "c").read_text() == "inner/c"
