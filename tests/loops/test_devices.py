"""Whole stages on eight devices do what they do on one."""

import itertools
import json
import pathlib

import pytest

from tests.devices import pretended
from tests.loops import results
from tests.loops.stages import FAST


def devices(count):
  return pretended(count, FAST["XLA_FLAGS"])


EIGHT = devices(8)


def flat(tree):
  return {
    (name, key): value
    for name, part in tree.items()
    for key, value in (part if isinstance(part, dict) else {"": part}).items()
  }


def assert_close(found, wanted):
  assert len(found) == len(wanted)
  for a, b in zip(found, wanted, strict=True):
    assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


def test_invariant_09_rollouts_and_updates_on_eight_devices(stages, tmp_path):
  """On all three axes of the mesh."""
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
  found = results.metrics(tmp_path)
  wanted = results.metrics(stages["ppo_ptx"])[: len(found)]
  assert len(found) == 8
  # The very same tokens, or else other scores.
  for a, b in zip(found[:4], wanted, strict=False):
    assert a["reward"] == pytest.approx(b["reward"], abs=1e-5)
    assert a["response_length"] == b["response_length"]
  assert_close(found, wanted)


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
  done = server.run("tests.loops.layouts", name, sizes, env=devices(8))
  assert done.status == 0, done.err
  return json.loads(done.out)


@pytest.mark.parametrize(
  "name, sizes",
  [
    ("gpt", "8,1,1"),
    ("gpt", "1,8,1"),
    ("gpt", "1,1,8"),
    ("gpt", "2,2,2"),
    ("llama", "1,2,4"),
  ],
)
def test_every_step_is_the_same_on_all_layouts(server, once, name, sizes):
  """Data, fsdp, tensor and mixed, of a network of each kind."""

  def on_one(folder):
    found = measured(server, name, "1,1,1")
    (folder / "found.json").write_text(json.dumps(found))

  folder = pathlib.Path(once(f"layouts-{name}", on_one))
  wanted = json.loads((folder / "found.json").read_text())
  found = measured(server, name, sizes)
  assert found["ppo"].pop("tokens") == wanted["ppo"]["tokens"]
  for stage in ("language", "reward", "ppo"):
    some, others = flat(found[stage]), flat(wanted[stage])
    for key, value in some.items():
      assert value == pytest.approx(others[key], rel=1e-4, abs=1e-5), key


def test_a_state_is_the_same_on_another_mesh(server, tmp_path):
  """Saved on 1 device, restored on 8, saved there, restored on 4."""
  found = []
  for count, fsdp, tensor in ((1, 1, 1), (8, 2, 2), (4, 4, 1)):
    done = server.run(
      "tests.loops.meshes",
      *map(str, (tmp_path, fsdp, tensor)),
      env=devices(count),
    )
    assert done.status == 0, done.err
    found.append(done.out.split())
  assert [row[0] for row in found] == ["1", "8", "4"]
  assert [row[1] for row in found] == ["1", "4", "4"]
  assert len({row[2] for row in found}) == 1
  assert results.steps(tmp_path) == [2, 3]


def test_rankings_on_the_way_go_on_on_other_devices(stages, tmp_path):
  """The same ones in each step, although they stand otherwise in rows."""
  command = [*stages.flags("reward"), f"--workdir={tmp_path}"]
  done = stages.server.run(
    "tests.loops.at_step", "7", "sigterm", "reward", *command
  )
  assert done.status == 0, done.err
  done = stages.run("reward", *command, env=devices(2))
  assert done.status == 0, done.err
  rows = [results.metrics(path) for path in (tmp_path, stages["reward"])]
  for row in itertools.chain(*rows):
    row.pop("padding", None)
  assert len(rows[0]) > 7
  assert_close(*rows)


def test_a_mesh_that_is_not_there(stages, tmp_path):
  done = stages.run(
    "pretrain",
    *stages.flags("pretrain"),
    "--mesh.data=8",
    f"--workdir={tmp_path}",
  )
  assert done.status == 2
  assert "does not make 1 device" in done.err
