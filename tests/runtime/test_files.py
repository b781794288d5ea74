"""Files are whole or absent; a workdir belongs to one run."""

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runtime import files


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
    from instructgpt_jax.runtime import files
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
    with files.writing("some/file"):
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


def test_without_the_systems_word_the_umask_is_that_of_the_start(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(files, "_STATUS", str(tmp_path / "none"))
  monkeypatch.setattr(files, "_UMASK", 0o077)
  monkeypatch.setattr(os, "umask", pytest.fail)
  files.write_text_atomic(tmp_path / "a.txt", "text")
  assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o600


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
