"""Whole stages have the same results on eight devices and on one."""

import functools
import itertools
import json
import pathlib

import pytest

from tests.devices import pretended
from tests.training import results
from tests.training.stages import FAST


def devices(count):
  return pretended(count, FAST["XLA_FLAGS"])


EIGHT = devices(8)


def flat(tree):
  return {
    (name, key): value
    for name, part in tree.items()
    for key, value in (part if isinstance(part, dict) else {"": part}).items()
  }


def assert_close(actual, expected):
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected, strict=True):
    assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


def test_invariant_09_rollouts_and_updates_on_eight_devices(stages, tmp_path):
  """The mesh has all three axes."""
  done = stages.run(
    "ppo_ptx",
    *stages.flags("ppo_ptx"),
    "--mesh.data=2",
    "--mesh.fsdp=2",
    "--mesh.tensor=2",
    "--ppo.episodes=16",
    f"--workdir={tmp_path}",
    env=EIGHT,
  )
  assert done.status == 0, done.err
  actual = results.metrics(tmp_path)
  expected = results.metrics(stages["ppo_ptx"])[: len(actual)]
  assert len(actual) == 8
  # Scores are comparable only for equal tokens.
  for a, b in zip(actual[:4], expected, strict=False):
    assert a["reward"] == pytest.approx(b["reward"], abs=1e-5)
    assert a["response_length"] == b["response_length"]
  assert_close(actual, expected)


def test_invariant_10_pretraining_on_eight_devices(stages, tmp_path):
  done = stages.run(
    "pretrain",
    *stages.flags("pretrain"),
    "--mesh.data=8",
    f"--workdir={tmp_path}",
    env=EIGHT,
  )
  assert done.status == 0, done.err
  assert_close(results.metrics(tmp_path), results.metrics(stages["pretrain"]))


def measured(server, name, sizes):
  done = server.run("tests.training.layouts", name, sizes, env=devices(8))
  assert done.status == 0, done.err
  return json.loads(done.out)


@pytest.mark.parametrize(
  "name, sizes",
  [
    ("gpt", "1,1,8"),
    ("gpt", "2,2,2"),
    ("llama", "1,2,4"),
  ],
)
def test_every_step_is_the_same_on_all_layouts(server, once, name, sizes):
  """Compares meshes with one axis and with all of them."""

  def on_one(folder):
    actual = measured(server, name, "1,1,1")
    (folder / "found.json").write_text(json.dumps(actual))

  folder = pathlib.Path(once(f"layouts-{name}", on_one))
  expected = json.loads((folder / "found.json").read_text())
  actual = measured(server, name, sizes)
  assert actual["ppo"].pop("tokens") == expected["ppo"]["tokens"]
  for stage in ("language", "reward", "ppo"):
    subset, others = flat(actual[stage]), flat(expected[stage])
    for key, value in subset.items():
      assert value == pytest.approx(others[key], rel=1e-4, abs=1e-5), key


def test_a_state_is_the_same_on_another_mesh(server, tmp_path):
  """The state moves from 1 device to 8, and from 8 to 4."""
  actual = []
  for count, fsdp, tensor in ((1, 1, 1), (8, 2, 2), (4, 4, 1)):
    done = server.run(
      "tests.training.meshes",
      *map(str, (tmp_path, fsdp, tensor)),
      env=devices(count),
    )
    assert done.status == 0, done.err
    actual.append(done.out.split())
  assert [row[0] for row in actual] == ["1", "8", "4"]
  assert [row[1] for row in actual] == ["1", "4", "4"]
  assert len({row[2] for row in actual}) == 1
  assert results.steps(tmp_path) == [2, 3]


def test_reward_training_resumes_on_other_devices(stages, tmp_path):
  """Steps have the same rankings, packed into other rows."""
  command = [*stages.flags("reward"), f"--workdir={tmp_path}"]
  done = stages.server.run(
    "tests.training.at_step", "7", "sigterm", "reward", *command
  )
  assert done.status == 0, done.err
  done = stages.run("reward", *command, env=devices(2))
  assert done.status == 0, done.err
  rows = [results.metrics(path) for path in (tmp_path, stages["reward"])]
  for row in itertools.chain(*rows):
    row.pop("padding", None)
  assert len(rows[0]) > 7
  assert_close(*rows)


# A step of either has 3 to 5 rows, which 2 and 8 devices do not divide.
UNEVEN = {
  "sft": (),
  "policy_init": ("--sft.microbatch=2", "--sft.batch_size=9"),
}


def complete(done, path):
  """Returns the metrics and the summary of a complete run."""
  assert done.status == 0, done.err
  return results.metrics(path), results.summary(path)


@pytest.fixture(scope="module")
def on_one_device(stages, tmp_path_factory):
  """Returns name → metrics and summary of the run on one device."""

  def run(name):
    if not UNEVEN[name]:
      return results.metrics(stages[name]), results.summary(stages[name])
    path = tmp_path_factory.mktemp("one") / name
    flags = [*stages.flags(name), *UNEVEN[name]]
    return complete(stages.run(name, *flags, f"--workdir={path}"), path)

  return functools.cache(run)


def assert_same_course(actual, expected):
  """Checks that steps are equal, and losses up to rounding."""
  for a, b in zip(actual[0], expected[0], strict=True):
    assert a == pytest.approx(b, rel=2e-3, abs=2e-4)
  assert actual[1].keys() == expected[1].keys()
  for name, value in actual[1].items():
    if name == "selected_by":
      assert value == expected[1][name]
    else:
      assert value == pytest.approx(expected[1][name], rel=2e-3, abs=2e-4)
  assert actual[1]["steps"] == expected[0][-1]["step"]


@pytest.mark.parametrize(
  "name, count", [("sft", 8), ("policy_init", 2), ("policy_init", 8)]
)
def test_a_whole_run_is_the_same_on_other_devices(
  name, count, on_one_device, stages, tmp_path
):
  """Steps and losses agree, with dropout, microbatches and mixing."""
  flags = [*stages.flags(name), *UNEVEN[name], f"--workdir={tmp_path}"]
  actual = complete(stages.run(name, *flags, env=devices(count)), tmp_path)
  assert_same_course(actual, on_one_device(name))


@pytest.mark.parametrize("first, second", [(1, 8), (8, 1)])
def test_a_run_resumes_on_other_devices(
  first, second, on_one_device, stages, tmp_path
):
  """The run resumes at its data position and ends at the same step."""
  name = "policy_init"
  flags = [*stages.flags(name), *UNEVEN[name], f"--workdir={tmp_path}"]
  done = stages.server.run(
    "tests.training.at_step", "5", "sigterm", name, *flags, env=devices(first)
  )
  assert done.status == 0, done.err
  assert results.metrics(tmp_path)[-1]["step"] == 5
  assert not (tmp_path / "complete.json").exists()
  actual = complete(stages.run(name, *flags, env=devices(second)), tmp_path)
  assert_same_course(actual, on_one_device(name))


def test_a_batch_that_devices_do_not_divide_is_refused(stages, tmp_path):
  """Pretraining and the reward model never change a batch for a mesh."""
  for name, size in (
    ("pretrain", "--pretrain.batch_size=10 --pretrain.microbatch=0"),
    ("reward", "--reward.batch_size=3"),
  ):
    path = tmp_path / name
    done = stages.run(
      name,
      *stages.flags(name),
      *size.split(),
      f"--workdir={path}",
      env=devices(4),
    )
    assert done.status == 2
    assert done.error and done.error.code == "uneven_batch"
    assert not results.snapshot(path)


def test_a_mesh_that_is_not_there(stages, tmp_path):
  done = stages.run(
    "pretrain",
    *stages.flags("pretrain"),
    "--mesh.data=8",
    f"--workdir={tmp_path}",
  )
  assert done.status == 2
  assert "does not make 1 device" in done.err
