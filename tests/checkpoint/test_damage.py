"""The newest undamaged checkpoint is used, or there is one error."""

import shutil

import jax.numpy as jnp
import pytest

from instructgpt_jax.checkpoint import accept, checkpoints, manifest
from instructgpt_jax.errors import UserError


def state(step):
  return {"x": jnp.full((40, 50), step, jnp.float32), "n": jnp.int32(step)}


def save(directory, *steps, keep=None, scores=None):
  with checkpoints.Checkpointer(
    directory, keep or checkpoints.RetentionPolicy(9)
  ) as saver:
    for step in steps:
      score = (scores or {}).get(step)
      saver.save(step, state(step), {"at": step}, score)


def restored(directory):
  """Returns (step, value of the state, extra) of what is restored."""
  with checkpoints.Checkpointer(directory) as saver:
    result = saver.restore_latest(state(0))
  assert result is not None
  step, tree, extra = result
  assert (tree["x"] == tree["n"]).all()
  return step, int(tree["n"]), extra["at"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Saves three checkpoints and a model, to be copied and damaged."""
  directory = tmp_path_factory.mktemp("saved")
  save(directory, 10, 20, 30)
  checkpoints.save_model(directory, state(7), {"kind": "small"})
  return directory


def files_of(directory):
  return sorted(p for p in directory.rglob("*") if p.is_file())


def flip(path):
  content = bytearray(path.read_bytes())
  if content:
    content[len(content) // 2] ^= 4
  path.write_bytes(content or b"\0")


def test_flipped_bit_in_any_file_is_detected(saved, tmp_path, capsys):
  newest = saved / "checkpoints" / "30"
  names = [p.relative_to(newest) for p in files_of(newest)]
  assert len(names) >= 5
  for name in names:
    run = tmp_path / str(name).replace("/", "_")
    shutil.copytree(saved, run)
    damaged = run / "checkpoints" / "30"
    flip(damaged / name)
    assert restored(run) == (20, 20, 20)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {damaged} is damaged ({name}")
    assert line.endswith(f"resuming from {run}/checkpoints/20")


def truncate(path):
  path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [truncate, lambda path: path.unlink()])
@pytest.mark.parametrize("which", ["array", manifest.MANIFEST])
def test_truncated_or_missing_file_is_detected(
  saved, tmp_path, capsys, damage, which
):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  for step in (20, 30):
    damaged = tmp_path / "checkpoints" / str(step)
    largest = max(files_of(damaged / "state"), key=lambda p: p.stat().st_size)
    damage(largest if which == "array" else damaged / which)
  assert restored(tmp_path) == (10, 10, 10)
  lines = capsys.readouterr().err.splitlines()
  assert ["/30 " in lines[0], "/20 " in lines[1]] == [True, True]
  assert len(lines) == 2


def test_one_error_if_all_checkpoints_are_damaged(saved, tmp_path, capsys):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  for step in (10, 20, 30):
    flip(tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
  with pytest.raises(UserError) as error:
    restored(tmp_path)
  assert error.value.code == "damaged_checkpoints"
  assert error.value.file == f"{tmp_path}/checkpoints/30"
  assert "_CHECKPOINT_METADATA has changed" in error.value.problem
  assert f"delete {tmp_path}/checkpoints " in error.value.fix
  assert capsys.readouterr().err == ""


def test_damaged_step_is_saved_again_and_does_not_count(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  for step in (20, 30):
    flip(tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
  with checkpoints.Checkpointer(
    tmp_path, checkpoints.RetentionPolicy(2)
  ) as saver:
    result = saver.restore_latest(state(0))
    assert result is not None and result[0] == 10
    saver.save(30, state(31), {"at": 31})
    saver.wait()
    assert saver.steps == [10, 30]
  left = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert left == {"10", "30"}
  assert restored(tmp_path) == (30, 31, 31)


def test_unfinished_saves_are_deleted(tmp_path):
  save(tmp_path, 1)
  directory = tmp_path / "checkpoints"
  shutil.copytree(directory / "1", directory / "2.saving")
  shutil.copytree(directory / "1", directory / "0.old")
  (directory / "3.saving.orbax-checkpoint-tmp").mkdir()
  assert restored(tmp_path) == (1, 1, 1)
  assert [p.name for p in directory.iterdir()] == ["1"]


def test_damaged_model_is_a_user_error(saved, tmp_path):
  for path in files_of(saved / "model"):
    name = path.relative_to(saved / "model")
    run = tmp_path / str(name).replace("/", "_")
    shutil.copytree(saved / "model", run / "model")
    flip(run / "model" / name)
    with pytest.raises(UserError) as error:
      checkpoints.load_model(run)
    assert error.value.code == "damaged_model"
    assert error.value.file == f"{run}/model"
    assert str(name) in error.value.problem
    if "/" not in str(name):
      with pytest.raises(UserError) as error:
        checkpoints.load_model_info(run)
      assert error.value.code == "damaged_model"


@pytest.mark.parametrize("read", ["load_model", "load_model_info"])
def test_model_without_checksums_is_an_error(saved, tmp_path, read):
  shutil.copytree(saved / "model", tmp_path / "model")
  (tmp_path / "model" / manifest.MANIFEST).unlink()
  with pytest.raises(UserError) as error:
    getattr(checkpoints, read)(tmp_path)
  assert error.value.code == "no_checksums"
  assert error.value.file == str(tmp_path / "model")
  assert f"instructgpt_jax.checkpoint.accept {tmp_path}" in error.value.fix


def test_model_without_checksums_can_be_accepted(saved, tmp_path, capsys):
  shutil.copytree(saved / "model", tmp_path / "model")
  (tmp_path / "model" / manifest.MANIFEST).unlink()
  assert accept.main([str(tmp_path)]) == 0
  assert int(checkpoints.load_model(tmp_path)["n"]) == 7
  assert checkpoints.load_model_info(tmp_path) == {"kind": "small"}
  # Damage is now detected.
  large = max(files_of(tmp_path / "model"), key=lambda p: p.stat().st_size)
  flip(large)
  with pytest.raises(UserError) as error:
    checkpoints.load_model(tmp_path)
  assert error.value.code == "damaged_model"
  # Existing checksums are never replaced.
  capsys.readouterr()
  assert accept.main([str(tmp_path)]) == 2
  assert "already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["nowhere"], ["a", "b"]])
def test_accept_refuses_directories_without_a_model(
  arguments, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert accept.main(arguments) == 2
  assert capsys.readouterr().err.startswith("error: ")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "keep, steps, scores, left",
  [
    (checkpoints.RetentionPolicy(1), (1, 2, 3), {}, {3}),
    (checkpoints.RetentionPolicy(2), (1, 2, 30), {}, {2, 30}),
    # The first at or after each multiple, independent of other saves.
    (checkpoints.RetentionPolicy(1, every=10), (5, 10, 15, 23, 29, 30, 39), {},
     {10, 23, 30, 39}),
    (checkpoints.RetentionPolicy(1, best=True), (1, 2, 3, 4),
     {1: -3.0, 2: -1.0, 3: -2.0}, {2, 4}),
    (checkpoints.RetentionPolicy(2, every=3, best=True), (1, 2, 3, 4, 5, 6),
     {1: 9.0, 5: 1.0}, {1, 3, 5, 6}),
  ],
)  # fmt: skip
def test_retention_policy(tmp_path, keep, steps, scores, left):
  # The second run reads the scores that the first has saved.
  middle = len(steps) // 2
  save(tmp_path, *steps[:middle], keep=keep, scores=scores)
  save(tmp_path, *steps[middle:], keep=keep, scores=scores)
  result = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert result == left
  assert restored(tmp_path)[0] == max(left)


def test_vanished_directory_is_an_error_and_is_not_made_again(tmp_path):
  run = tmp_path / "run"
  saver = checkpoints.Checkpointer(run)
  saver.save(1, state(1), {})
  saver.wait()
  shutil.rmtree(run)
  with pytest.raises(UserError) as error:
    saver.save(2, state(2), {})
  assert error.value.code == "directory_vanished"
  saver.close()
  assert not run.exists()
