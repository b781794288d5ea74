"""A full disk damages no file, and the run resumes afterwards."""

import re
import shutil
import subprocess

import pytest

from tests.training import at_step, results


def error_of(done):
  """Returns the error; its text has at most three lines."""
  lines = done.err.splitlines()
  (start,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
  assert len(lines) - start <= 3
  assert "Traceback" not in done.err
  assert done.status == 2
  assert done.error is not None
  return done.error


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_fills_up_in_mid_run_loses_nothing(
  tensorboard, stages, tmp_path
):
  """A limit on file size makes writes fail like a full disk."""
  straight, path = stages["pretrain"], tmp_path / "run"
  flags = [*stages.flags("pretrain"), f"--run.tensorboard={tensorboard}"]
  flags.append(f"--workdir={path}")
  error = error_of(
    stages.server.run(
      "tests.training.at_step", "12", "full", "pretrain", *flags
    )
  )
  assert error.code == "disk_full" and error.file.startswith(str(path))
  assert "same command" in error.fix
  assert results.steps(path)[-1] >= 5
  done = stages.run("pretrain", *flags)
  assert done.status == 0, done.err
  results.assert_same_run(path, straight)


@pytest.mark.parametrize("room", [3_000, 30_000])
def test_a_full_disk_is_an_error_without_partial_files(room, stages, tmp_path):
  """For any file size limit, the error is short and the run can resume."""
  path = tmp_path / "run"
  command = ["experiments.sft", *stages.flags("sft"), f"--workdir={path}"]
  error = error_of(stages.server.run(*command, file_size=room))
  assert error.code == "disk_full"
  assert not (path / "complete.json").exists()
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(path, stages["sft"])


@pytest.fixture
def disk(tmp_path):
  """Mounts a file system of 400 kB, or skips the test."""
  directory = tmp_path / "disk"
  directory.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(directory)],
    capture_output=True,
    text=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
  yield directory
  subprocess.run(["umount", "-l", str(directory)], check=True)


def remount(disk, option):
  subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_a_file_system_without_space(stages, disk):
  path = disk / "run"
  command = ["experiments.ppo", *stages.flags("ppo"), f"--workdir={path}"]
  error = error_of(stages.server.run(*command))
  assert error.code == "disk_full" and error.file.startswith(str(path))
  saved = results.snapshot(path)
  assert any(
    re.fullmatch(r"checkpoints/\d+/checksums.json", name) for name in saved
  )
  remount(disk, "size=40m")
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(path, stages["ppo"])


def test_a_file_system_that_may_only_be_read(stages, disk):
  remount(disk, "size=40m")
  path = disk / "run"
  command = ["experiments.pretrain", *stages.flags("pretrain")]
  command.append(f"--workdir={path}")
  assert results.kill_after(stages.server.start(*command), path, 12).status < 0
  saved = results.snapshot(path)
  remount(disk, "ro")
  error = error_of(stages.server.run(*command))
  assert error.code == "not_writable" and error.file.startswith(str(path))
  assert results.snapshot(path) == saved
  remount(disk, "rw")
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(path, stages["pretrain"])


def test_a_deleted_directory_is_not_created_again(stages, tmp_path):
  """The directory moves away, as with an unmounted disk, and returns."""
  path, away = tmp_path / "run", tmp_path / f"run{at_step.AWAY}"
  command = [*stages.flags("pretrain"), f"--workdir={path}"]
  error = error_of(
    stages.server.run(
      "tests.training.at_step", "12", "vanish", "pretrain", *command
    )
  )
  assert error.file.startswith(str(path))
  # A save in progress may fail first, or end in a directory that it makes.
  assert error.code in ("directory_vanished", "not_writable")
  assert not (path / "complete.json").exists()
  assert results.steps(away)[-1] >= 5
  shutil.rmtree(path, ignore_errors=True)
  away.rename(path)
  done = stages.run("pretrain", *command)
  assert done.status == 0, done.err
  results.assert_same_run(path, stages["pretrain"])
