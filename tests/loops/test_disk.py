"""A full disk: what is there stays whole, and the run goes on afterwards."""

import re
import resource
import subprocess
import time

import pytest

from tests.loops import results


def errors(done):
  lines = done.err.splitlines()
  (start,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
  assert len(lines) - start <= 3
  assert "Traceback" not in done.err
  assert done.status == 2
  return "\n".join(lines[start:])


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_fills_up_in_mid_run_loses_nothing(
  tensorboard, stages, tmp_path
):
  """The limit on a file's size makes writes fail as a full disk does."""
  straight, path = stages["pretrain"], tmp_path / "run"
  flags = [*stages.flags("pretrain"), f"--run.tensorboard={tensorboard}"]
  command = ["experiments.pretrain", *flags, f"--workdir={path}"]
  child = stages.server.start(*command)
  while child.running() and results.lines(path) < 12:
    time.sleep(0.001)
  resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1, 1))
  error = errors(child.wait())
  assert str(path) in error
  assert "the disk is full" in error
  assert "remedy: free some space and give the same command again" in error
  assert results.steps(path)[-1] >= 5
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(path, straight)


@pytest.mark.parametrize("room", [3_000, 30_000])
def test_what_does_not_fit_is_said_and_leaves_nothing_half(
  room, stages, tmp_path
):
  """However little fits a file, the error is short and the rest goes on."""
  path = tmp_path / "run"
  command = ["experiments.sft", *stages.flags("sft"), f"--workdir={path}"]
  error = errors(stages.server.run(*command, file_size=room))
  assert "the disk is full" in error
  assert not (path / "complete.json").exists()
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(path, stages["sft"])


def test_a_file_system_without_space(stages, tmp_path):
  """A real one, where this process may mount it."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)],
    capture_output=True,
    text=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
  try:
    path = disk / "run"
    command = ["experiments.ppo", *stages.flags("ppo"), f"--workdir={path}"]
    error = errors(stages.server.run(*command))
    assert "the disk is full" in error
    assert str(path) in error
    saved = results.snapshot(path)
    assert any(
      re.fullmatch(r"checkpoints/\d+/checksums.json", name) for name in saved
    )
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    done = stages.server.run(*command)
    assert done.status == 0, done.err
    results.assert_same_run(path, stages["ppo"])
  finally:
    subprocess.run(["umount", "-l", str(disk)], check=True)
