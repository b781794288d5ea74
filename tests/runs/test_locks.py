"""Only one run at a time may write a workdir."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from instructgpt_jax.cli import launch
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import claims, files, locks

HOLDER = """
import sys, time
from instructgpt_jax.runs import locks
with locks.lock_workdir(sys.argv[1]):
  print("locked", flush=True)
  time.sleep(60)
"""


def refused(directory):
  with pytest.raises(UserError) as error:
    with claims.claim(directory, "sft", {"seed": 0}):
      pytest.fail("two runs in one workdir")
  assert error.value.code == "workdir_in_use"
  assert error.value.file == str(directory)
  return error.value.problem


def test_second_run_is_refused_until_the_first_is_killed(tmp_path):
  run = tmp_path / "run"
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    message = refused(run)
    assert f"process {process.pid} on {socket.gethostname()}" in message
    assert os.listdir(run) == [".lock"], "the refused run has written"
  finally:
    process.kill()
    process.communicate()
  with claims.claim(run, "sft", {"seed": 0}):
    assert "process" in refused(run)
  assert os.listdir(run) == ["config.json"]


def test_lock_is_removed_with_its_run(tmp_path):
  for _ in range(2):
    with locks.lock_workdir(tmp_path / "run"):
      assert os.listdir(tmp_path / "run") == [".lock"]
    assert not (tmp_path / "run").exists()


def test_only_the_main_process_locks(tmp_path, monkeypatch):
  with locks.lock_workdir(tmp_path):
    monkeypatch.setattr(processes, "_index", 1)
    with locks.lock_workdir(tmp_path):
      pass
    assert os.listdir(tmp_path) == [".lock"]


def test_file_system_without_locks_causes_a_warning(
  tmp_path, monkeypatch, capsys
):
  def none(descriptor, kind):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", none)
  with claims.claim(tmp_path, "sft", {"seed": 0}):
    pass
  assert "warning" in capsys.readouterr().err
  with pytest.raises(UserError) as error:
    locks.acquire(tmp_path / "sweep.lock")
  assert error.value.code == "no_locks"


def test_refused_command_prints_a_short_error(tmp_path, capsys):
  with locks.lock_workdir(tmp_path):
    status = launch.run_with_errors(lambda: refused_command(tmp_path))
  assert status == 2
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].startswith("error: ") and "is in use by" in lines[0]
  assert lines[1].startswith("  fix: ") and len(lines) == 2


def refused_command(directory):
  with claims.claim(directory, "sft", {}):
    pytest.fail("two runs in one workdir")


def test_error_before_any_output_restores_the_workdir(tmp_path):
  run = tmp_path / "run"
  with pytest.raises(UserError, match="mistyped"):
    with claims.claim(run, "sft", {"seed": 0}):
      raise UserError("mistyped")
  assert not run.exists()
  with pytest.raises(KeyboardInterrupt):
    with claims.claim(run, "sft", {"seed": 0}):
      raise KeyboardInterrupt
  assert not run.exists()
  with claims.claim(run, "sft", {"seed": 1}):
    (run / "metrics.jsonl").touch()
  with pytest.raises(UserError, match="mistyped"):
    with claims.claim(run, "sft", {"seed": 1}):
      raise UserError("mistyped")
  assert sorted(os.listdir(run)) == ["config.json", "metrics.jsonl"]
  assert files.read_json(run / "config.json")["config"] == {"seed": 1}


def test_error_keeps_existing_files(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="mistyped"):
    with claims.claim(tmp_path, "sft", {"seed": 0}):
      (tmp_path / "model").mkdir()
      raise UserError("mistyped")
  assert sorted(os.listdir(tmp_path)) == ["config.json", "model", "notes.txt"]
