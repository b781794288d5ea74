"""Damaged checkpoints: the newest good one is used, or one error is told."""

import shutil

import jax.numpy as jnp
import pytest

from instructgpt_jax.checkpoint import accept, checkpoints, manifest
from instructgpt_jax.errors import UserError


def state(step):
  return {"x": jnp.full((40, 50), step, jnp.float32), "n": jnp.int32(step)}


def save(folder, *steps, keep=None, scores=None):
  with checkpoints.Checkpointer(
    folder, keep or checkpoints.RetentionPolicy(9)
  ) as saver:
    for step in steps:
      score = (scores or {}).get(step)
      saver.save(step, state(step), {"at": step}, score)


def restored(folder):
  """(step, its state's value, its extra) of what is gone on from."""
  with checkpoints.Checkpointer(folder) as saver:
    found = saver.restore_latest(state(0))
  assert found is not None
  step, held, extra = found
  assert (held["x"] == held["n"]).all()
  return step, int(held["n"]), extra["at"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Three checkpoints and a model, to be copied and damaged."""
  folder = tmp_path_factory.mktemp("saved")
  save(folder, 10, 20, 30)
  checkpoints.save_model(folder, state(7), {"kind": "small"})
  return folder


def files_of(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path):
  content = bytearray(path.read_bytes())
  if content:
    content[len(content) // 2] ^= 4
  path.write_bytes(content or b"\0")


def test_a_flipped_bit_in_any_file_is_found(saved, tmp_path, capsys):
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
    assert line.endswith(f"going on from {run}/checkpoints/20")


def truncate(path):
  path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [truncate, lambda path: path.unlink()])
@pytest.mark.parametrize("which", ["array", manifest.MANIFEST])
def test_what_is_cut_or_missing_is_found(saved, tmp_path, capsys, harm, which):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  for step in (20, 30):
    damaged = tmp_path / "checkpoints" / str(step)
    largest = max(files_of(damaged / "state"), key=lambda p: p.stat().st_size)
    harm(largest if which == "array" else damaged / which)
  assert restored(tmp_path) == (10, 10, 10)
  lines = capsys.readouterr().err.splitlines()
  assert ["/30 " in lines[0], "/20 " in lines[1]] == [True, True]
  assert len(lines) == 2


def test_where_nothing_is_whole_one_error_says_so(saved, tmp_path, capsys):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  for step in (10, 20, 30):
    flip(tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
  with pytest.raises(UserError) as caught:
    restored(tmp_path)
  assert str(caught.value).splitlines() == [
    f"{tmp_path}/checkpoints/30: is damaged (_CHECKPOINT_METADATA has changed),"
    " and no older checkpoint is whole",
    f"  fix: delete {tmp_path}/checkpoints and run the stage again",
  ]
  assert capsys.readouterr().err == ""


def test_a_damaged_step_is_saved_anew_and_does_not_count(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  for step in (20, 30):
    flip(tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
  with checkpoints.Checkpointer(
    tmp_path, checkpoints.RetentionPolicy(2)
  ) as saver:
    found = saver.restore_latest(state(0))
    assert found is not None and found[0] == 10
    saver.save(30, state(31), {"at": 31})
    saver.wait()
    assert saver.steps == [10, 30]
  left = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert left == {"10", "30"}
  assert restored(tmp_path) == (30, 31, 31)


def test_leftovers_of_a_kill_are_cleared(tmp_path):
  save(tmp_path, 1)
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "1", folder / "2.saving")
  shutil.copytree(folder / "1", folder / "0.old")
  (folder / "3.saving.orbax-checkpoint-tmp").mkdir()
  assert restored(tmp_path) == (1, 1, 1)
  assert [p.name for p in folder.iterdir()] == ["1"]


def test_a_damaged_model_is_one_error(saved, tmp_path):
  for path in files_of(saved / "model"):
    name = path.relative_to(saved / "model")
    run = tmp_path / str(name).replace("/", "_")
    shutil.copytree(saved / "model", run / "model")
    flip(run / "model" / name)
    with pytest.raises(UserError, match="is damaged") as caught:
      checkpoints.load_model(run)
    first, fix = str(caught.value).splitlines()
    assert first.startswith(f"{run}/model: ") and str(name) in first
    assert "put back a copy" in fix
    if "/" not in str(name):
      with pytest.raises(UserError, match="is damaged"):
        checkpoints.load_model_info(run)


@pytest.mark.parametrize("read", ["load_model", "load_model_info"])
def test_a_model_without_checksums_is_an_error(saved, tmp_path, read):
  shutil.copytree(saved / "model", tmp_path / "model")
  (tmp_path / "model" / manifest.MANIFEST).unlink()
  with pytest.raises(UserError) as caught:
    getattr(checkpoints, read)(tmp_path)
  assert caught.value.code == "no_checksums"
  assert caught.value.file == str(tmp_path / "model")
  assert f"instructgpt_jax.checkpoint.accept {tmp_path}" in caught.value.fix


def test_a_model_without_checksums_can_be_accepted(saved, tmp_path, capsys):
  shutil.copytree(saved / "model", tmp_path / "model")
  (tmp_path / "model" / manifest.MANIFEST).unlink()
  assert accept.main([str(tmp_path)]) == 0
  assert int(checkpoints.load_model(tmp_path)["n"]) == 7
  assert checkpoints.load_model_info(tmp_path) == {"kind": "small"}
  # From now on damage is noticed.
  large = max(files_of(tmp_path / "model"), key=lambda p: p.stat().st_size)
  flip(large)
  with pytest.raises(UserError) as caught:
    checkpoints.load_model(tmp_path)
  assert caught.value.code == "damaged_model"
  # Existing checksums are never replaced.
  capsys.readouterr()
  assert accept.main([str(tmp_path)]) == 2
  assert "already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["nowhere"], ["a", "b"]])
def test_accept_refuses_what_is_no_model(
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
    # The first at or after each multiple, so that other saves do not matter.
    (checkpoints.RetentionPolicy(1, every=10), (5, 10, 15, 23, 29, 30, 39), {},
     {10, 23, 30, 39}),
    (checkpoints.RetentionPolicy(1, best=True), (1, 2, 3, 4),
     {1: -3.0, 2: -1.0, 3: -2.0}, {2, 4}),
    (checkpoints.RetentionPolicy(2, every=3, best=True), (1, 2, 3, 4, 5, 6),
     {1: 9.0, 5: 1.0}, {1, 3, 5, 6}),
  ],
)  # fmt: skip
def test_which_are_kept(tmp_path, keep, steps, scores, left):
  # In two runs, of which the second knows of the first's scores.
  middle = len(steps) // 2
  save(tmp_path, *steps[:middle], keep=keep, scores=scores)
  save(tmp_path, *steps[middle:], keep=keep, scores=scores)
  found = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert found == left
  assert restored(tmp_path)[0] == max(left)


def test_a_vanished_folder_is_an_error_and_not_begun_anew(tmp_path):
  run = tmp_path / "run"
  saver = checkpoints.Checkpointer(run)
  saver.save(1, state(1), {})
  saver.wait()
  shutil.rmtree(run)
  with pytest.raises(UserError, match="the folder has vanished"):
    saver.save(2, state(2), {})
  saver.close()
  assert not run.exists()
