"""Saved state is restored bit for bit, also after kills and full disks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax.checkpoint import checkpoints, storage
from instructgpt_jax.errors import UserError


def _state(seed=0):
  key = jax.random.key(seed)
  params = {
    "block_0": {"kernel": jax.random.normal(key, (4, 8))},
    "bias": jax.random.normal(key, (8,)).astype(jnp.bfloat16),
  }
  optimizer = optax.adam(1e-3)
  return {
    "params": params,
    "optimizer": optimizer.init(params),
    "step": jnp.int32(seed),
    "key": jax.random.key(seed + 7),
    "bits": np.arange(2, dtype=np.uint32) + seed,
  }


def _bits(tree):
  return [
    (
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else np.asarray(leaf)
    ).tobytes()
    for leaf in jax.tree.leaves(tree)
  ]


def test_state_extra_and_step_are_restored(tmp_path):
  state, extra = _state(3), {"data": b"\x00\xff", "kl": {"coef": 0.1}}
  with checkpoints.Checkpointer(tmp_path) as saver:
    assert saver.restore_latest(state) is None
    saver.save(3, state, extra)
  with checkpoints.Checkpointer(tmp_path) as saver:
    result = saver.restore_latest(jax.eval_shape(lambda: _state()))
  assert result is not None
  step, restored, restored_extra = result
  assert (step, restored_extra) == (3, extra)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert _bits(restored) == _bits(state)
  dtypes = jax.tree.map(lambda leaf: leaf.dtype, restored)
  assert dtypes == jax.tree.map(lambda leaf: leaf.dtype, state)
  # A typed key is restored as a typed key.
  assert jax.random.bits(restored["key"]) == jax.random.bits(state["key"])


def test_newest_checkpoints_are_kept(tmp_path):
  with checkpoints.Checkpointer(
    tmp_path, checkpoints.RetentionPolicy(2)
  ) as saver:
    for step in (1, 2, 10):
      saver.save(step, _state(step), {"at": step})
    saver.wait()
    assert saver.steps == [2, 10]
    result = saver.restore_latest(_state())
  assert result is not None
  assert result[0] == 10
  assert result[2] == {"at": 10}
  assert int(result[1]["step"]) == 10
  left = set(os.listdir(tmp_path / "checkpoints"))
  assert left == {"2", "10"}


def test_opening_deletes_only_unfinished_saves(tmp_path):
  with checkpoints.Checkpointer(tmp_path) as saver:
    saver.save(5, _state(5), {})
  directory = tmp_path / "checkpoints"
  others = ["5.bak", "before_v1.1", "5.saving.bak", "old", "x.old", "notes.txt"]
  others += ["005", "5²", "٥", "+4", "-5", "5.0"]
  unfinished = [
    "7.saving",
    "7.old",
    "7.saving.orbax-checkpoint-tmp",
    "7.saving.partial_save.orbax-checkpoint-tmp",
  ]
  for name in (*others, *unfinished):
    (directory / name).mkdir()
  with checkpoints.Checkpointer(tmp_path) as saver:
    assert saver.steps == [5]
    saver.save(6, _state(6), {})
  assert set(os.listdir(directory)) == {"5", "6", *others}


@pytest.mark.parametrize("name", ["4", "9", "20240101"])
def test_copy_with_the_name_of_another_step_is_refused(name, tmp_path):
  """Resuming from it could end the run, and a save could replace it."""
  with checkpoints.Checkpointer(tmp_path) as saver:
    saver.save(5, _state(5), {})
  directory = tmp_path / "checkpoints"
  shutil.copytree(directory / "5", directory / name)
  with pytest.raises(UserError) as error:
    checkpoints.Checkpointer(tmp_path)
  assert error.value.code == "misnamed_checkpoint"
  assert error.value.file == str(directory / name)
  (directory / name).rename(directory / f"copy-{name}")
  with checkpoints.Checkpointer(tmp_path) as saver:
    assert saver.steps == [5]


def test_unfinished_save_of_another_run_is_not_deleted(tmp_path):
  first = checkpoints.Checkpointer(tmp_path)
  first.save(1, _state(1), {})
  first.wait()
  unfinished = tmp_path / "checkpoints" / "2.saving"
  unfinished.mkdir()
  with checkpoints.Checkpointer(tmp_path) as second:
    restored = second.restore_latest(_state())
    assert restored is not None and restored[0] == 1
    assert unfinished.exists()
    with pytest.raises(UserError) as error:
      second.save(3, _state(3), {})
    assert error.value.code == "workdir_in_use"
    unfinished.rmdir()
    first.save(2, _state(2), {})
    first.close()
    with pytest.raises(UserError):  # It has restored an outdated checkpoint.
      second.save(3, _state(3), {})
  with checkpoints.Checkpointer(tmp_path) as third:
    third.save(4, _state(4), {})
  assert set(os.listdir(tmp_path / "checkpoints")) == {"2", "4"}


def test_check_precedes_reading_the_state(tmp_path):
  def check(extra):
    raise UserError("", code=f"data_{extra['data']}")

  with checkpoints.Checkpointer(tmp_path) as saver:
    saver.save(1, _state(1), {"data": 7})
    with pytest.raises(UserError) as error:
      saver.restore_latest({"other": jnp.ones(1)}, check)
  assert error.value.code == "data_7"


def test_saved_step_is_not_saved_again(tmp_path):
  with checkpoints.Checkpointer(tmp_path) as saver:
    saver.save(1, _state(1), {"first": True})
    saver.save(1, _state(2), {"first": False})
    result = saver.restore_latest(_state())
  assert result is not None
  assert result[2] == {"first": True}


def test_donation_after_save_does_not_change_the_checkpoint(tmp_path):
  bump = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
  x = jnp.ones((1500, 1500))
  with checkpoints.Checkpointer(tmp_path) as saver:
    saver.save(0, {"x": x}, {})
    for _ in range(10):
      x = bump(x)
    result = saver.restore_latest({"x": jax.eval_shape(lambda: x)})
  assert result is not None
  np.testing.assert_array_equal(result[1]["x"], 1.0)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"more": jnp.ones(2)}, "more is not in the checkpoint"),
    ({"step": jnp.ones(2)}, r"step is int32\[\], not float32\[2\]"),
    ({"step": None}, "step is in the checkpoint, but not in this model"),
  ],
)
def test_state_of_another_model_is_refused(tmp_path, change, message):
  with checkpoints.Checkpointer(tmp_path) as saver:
    saver.save(1, _state(), {})
    with pytest.raises(UserError, match=message) as error:
      saver.restore_latest({**_state(), **change})
  assert error.value.code == "other_model"
  assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("number", [0.1, np.float64(0.1), np.arange(2)])
def test_64_bit_numbers_are_refused(tmp_path, number):
  with checkpoints.Checkpointer(tmp_path) as saver:
    with pytest.raises(TypeError, match="kl is not a 32-bit array"):
      saver.save(1, {"kl": number}, {})


def test_model_round_trip_and_replacement(tmp_path):
  assert not checkpoints.has_model(tmp_path)
  checkpoints.save_model(tmp_path, _state(1)["params"], {"kind": "first"})
  checkpoints.save_model(tmp_path, _state(2)["params"], {"kind": "second"})
  assert checkpoints.has_model(tmp_path)
  assert os.listdir(tmp_path) == ["model"]
  assert checkpoints.load_model_info(tmp_path) == {"kind": "second"}
  expected = _state(2)["params"]
  actual = checkpoints.load_model(tmp_path)
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  assert _bits(actual) == _bits(expected)
  abstract = jax.eval_shape(lambda: expected)
  assert _bits(checkpoints.load_model(tmp_path, abstract)) == _bits(expected)


def test_killed_replacement_of_a_model_is_completed(tmp_path):
  params = _state(1)["params"]
  checkpoints.save_model(tmp_path, params, {"kind": "first"})
  os.rename(tmp_path / "model", tmp_path / "model.old")
  (tmp_path / "model.saving").mkdir()
  (tmp_path / "model.saving" / "half").touch()
  assert checkpoints.has_model(tmp_path)
  assert _bits(checkpoints.load_model(tmp_path)) == _bits(params)
  checkpoints.save_model(tmp_path, _state(2)["params"], {"kind": "second"})
  assert os.listdir(tmp_path) == ["model"]
  assert checkpoints.load_model_info(tmp_path) == {"kind": "second"}


def test_missing_model_is_a_user_error(tmp_path):
  for directory in (tmp_path, tmp_path / "none"):
    with pytest.raises(UserError) as error:
      checkpoints.load_model(directory)
    assert error.value.code == "no_model"


def test_parameters_of_another_model_are_refused(tmp_path):
  checkpoints.save_model(tmp_path, {"a": jnp.ones(3)}, {})
  with pytest.raises(UserError, match=r"a is float32\[3\], not float32\[4\]"):
    checkpoints.load_model(tmp_path, {"a": jnp.ones(4)})


def test_directory_that_vanishes_just_before_a_save_is_named(tmp_path):
  with pytest.raises(UserError) as error, storage.saving(tmp_path / "gone"):
    pytest.fail("nothing can be written")
  assert error.value.code == "directory_vanished"


@pytest.mark.parametrize("recreated", [False, True])
def test_directory_that_vanishes_during_a_save_is_named(
  recreated, tmp_path, monkeypatch
):
  """With any error of the writer, and if the directory is made again."""
  saver = checkpoints.Checkpointer(tmp_path / "run")

  def finish():
    (tmp_path / "run").rename(tmp_path / "away")
    if recreated:
      (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    raise ValueError("No ArrayMetadata result")

  monkeypatch.setattr(storage, "save", lambda *_, **unused: finish)
  saver.save(1, _state(), {})
  with pytest.raises(UserError) as error:
    saver.close()
  assert error.value.code == "directory_vanished"
  assert error.value.file == str(tmp_path / "run" / "checkpoints")


def test_directory_that_vanishes_while_saving_a_model_is_named(tmp_path):
  def parts():
    yield {"a": jnp.ones(4)}
    (tmp_path / "run").rename(tmp_path / "away")
    yield {"b": jnp.ones(4)}

  with pytest.raises(UserError) as error:
    checkpoints.save_model_parts(tmp_path / "run", parts(), {})
  assert error.value.code == "directory_vanished"
  assert error.value.file == str(tmp_path / "run")


def _run(script, *args, **options):
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
    capture_output=True,
    text=True,
    check=True,
    **options,
  )


def test_full_disk_is_a_user_error_and_keeps_the_last_checkpoint(
  tmp_path,
):
  # A limit on the size of files simulates a full disk.
  script = """
    import resource, sys
    import jax, jax.numpy as jnp
    from instructgpt_jax.errors import UserError
    from instructgpt_jax.checkpoint import checkpoints
    from instructgpt_jax.checkpoint import storage

    def state(step):
      return {"x": jax.random.normal(jax.random.key(step), (300, 300))}

    def limit(size):
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saver = checkpoints.Checkpointer(sys.argv[1])
    saver.save(1, state(1), {})
    saver.wait()
    checkpoints.save_model(sys.argv[1], state(1), {})
    limit(4096)
    for save in (
      lambda: (saver.save(2, state(2), {}), saver.wait()),
      lambda: checkpoints.save_model(sys.argv[1], state(2), {}),
    ):
      try:
        save()
        print("saved")
      except UserError as error:
        print(str(error).replace("\\n", " "))
    limit(hard)
    result = checkpoints.Checkpointer(sys.argv[1]).restore_latest(state(0))
    print(result[0], bool((result[1]["x"] == state(1)["x"]).all()))
    result = checkpoints.load_model(sys.argv[1])
    print(bool((result["x"] == state(1)["x"]).all()))
  """
  done = _run(script, tmp_path)
  lines = done.stdout.splitlines()
  for line in lines[:2]:
    assert f"{tmp_path}" in line
    assert "the disk is full" in line
    assert "fix: free some space" in line
  assert lines[2:] == ["1 True", "True"]


def test_kill_at_any_time_keeps_the_last_checkpoint(tmp_path):
  # Each leaf contains the step, so a mixture of two saves is detected.
  script = """
    import sys
    import jax.numpy as jnp
    from instructgpt_jax.checkpoint import checkpoints
    from instructgpt_jax.checkpoint import storage

    def state(step):
      return {f"x{i}": jnp.full((200, 200 + i), step) for i in range(20)}

    saver = checkpoints.Checkpointer(sys.argv[1])
    result = saver.restore_latest(state(0))
    step = 0
    if result is not None:
      step = result[0]
      for x in result[1].values():
        assert (x == step).all(), (step, x)
      assert result[2] == {"step": step}, result
    print(step, flush=True)
    for step in range(step + 1, 1000):
      saver.save(step, state(step), {"step": step})
      if sys.argv[2] == "check":
        saver.close()
        break
      if step % 3 == 0:
        print(step, flush=True)
  """
  command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
  steps = []
  for attempt in range(2):
    process = subprocess.Popen(
      [*command, "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    steps.append(int(process.stdout.readline() or -1))
    process.stdout.readline()
    time.sleep(random.Random(attempt).uniform(0.0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  last = int(_run(script, tmp_path, "check").stdout.split()[0])
  assert steps[0] == 0
  # Three saves started before the kill, so at least two were complete.
  assert steps[1] >= 2
  assert last >= steps[1]
