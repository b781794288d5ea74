"""The mesh, the table of axes, and the same numbers on any layout."""

import functools
import json
import math
import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from tests.devices import pretended

WIDE = AbstractMesh((2, 4, 8), mesh_lib.AXES)


@pytest.mark.parametrize("width, chosen", [(128, True), (768, False)])
def test_small_models_decode_without_the_library_of_a_cpu(width, chosen):
  assert bool(mesh_lib.decode_compiler_options(width)) == chosen
  elsewhere = mesh_lib.abstract_mesh(configs.Mesh(), 1, "tpu")
  assert not mesh_lib.decode_compiler_options(width, elsewhere)


@pytest.mark.parametrize(
  "names, shape, spec",
  [
    (("vocab", "embed"), (64, 32), PartitionSpec("tensor", "fsdp")),
    (("batch", None), (16, 3), PartitionSpec(("data", "fsdp"))),
    (("layers", "embed", "mlp"), (2, 4, 8), PartitionSpec(None, *"ft")),
    # Neither a size that does not divide nor an axis used twice is split.
    (("vocab", "embed"), (63, 32), PartitionSpec(None, "fsdp")),
    (("embed", "embed"), (32, 32), PartitionSpec("fsdp")),
    ((None, None), (8, 8), PartitionSpec()),
  ],
)
def test_partition_spec(names, shape, spec):
  short = {"f": "fsdp", "t": "tensor"}
  spec = PartitionSpec(*(short.get(axis, axis) for axis in spec))
  assert mesh_lib.partition_spec(names, shape, WIDE) == spec


def test_axes_of_one_device_are_not_named():
  narrow = AbstractMesh((8, 1, 1), mesh_lib.AXES)
  spec = mesh_lib.partition_spec(("vocab", "embed"), (64, 32), narrow)
  assert spec == PartitionSpec()


def test_an_axis_without_a_rule_is_an_error():
  with pytest.raises(KeyError, match="'width'"):
    mesh_lib.partition_spec(("width",), (8,), WIDE)
  with pytest.raises(ValueError, match="do not name"):
    mesh_lib.partition_spec(("embed",), (8, 8), WIDE)


class _Layer(nn.Module):
  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
    return nn.Dense(16, kernel_init=init)(x)


def test_optimiser_moments_lie_like_their_parameters():
  layer = _Layer()
  boxed = jax.eval_shape(
    lambda: layer.init(jax.random.key(0), jnp.ones((1, 8)))["params"]
  )
  axes = mesh_lib.logical_axes(boxed)
  assert axes == {"Dense_0/kernel": ("embed", "mlp")}
  params = mesh_lib.unbox(boxed)
  state = {
    "params": params,
    "ema": params,
    "optimizer": jax.eval_shape(optax.adam(1e-3).init, params),
    "step": jax.ShapeDtypeStruct((), jnp.int32),
  }
  found = jax.tree.map(
    lambda sharding: sharding.spec,
    mesh_lib.state_shardings(state, WIDE, axes),
  )
  split = PartitionSpec("fsdp", "tensor")
  adam = found["optimizer"][0]
  for tree in (found["params"], found["ema"], adam.mu, adam.nu):
    assert tree["Dense_0"] == {"kernel": split, "bias": PartitionSpec()}
  assert found["step"] == adam.count == PartitionSpec()


def test_boxed_leaves_need_no_table():
  boxed = {"w": nn.LogicallyPartitioned(jnp.ones((8, 16)), ("embed", "mlp"))}
  found = mesh_lib.state_shardings(boxed, WIDE)
  assert found["w"].spec == PartitionSpec("fsdp", "tensor")


@pytest.mark.parametrize(
  "shape", [dict(data=2), dict(fsdp=2), dict(data=-1, tensor=3)]
)
def test_a_mesh_that_does_not_fit_is_a_user_error(shape):
  with pytest.raises(UserError, match="does not make 1 device") as caught:
    mesh_lib.make_mesh(configs.Mesh(**shape), jax.devices()[:1])
  assert "--mesh.data=-1" in caught.value.fix


def test_eight_devices(tmp_path):
  # Of its own process, since the number of devices is fixed at start-up.
  script = """
    import json, sys, tempfile
    import jax, numpy as np
    from instructgpt_jax import configs
    from instructgpt_jax.errors import UserError
    from instructgpt_jax.checkpoint import checkpoints
    from instructgpt_jax.distributed import mesh as mesh_lib

    found = {}
    mesh = mesh_lib.make_mesh(configs.Mesh(fsdp=2, tensor=2))
    found["shape"] = dict(mesh.shape)
    batch = {"tokens": np.arange(24).reshape(8, 3), "count": np.float32(3)}
    put = mesh_lib.put_local_batch(batch, mesh)
    found["rows"] = sorted({s.data.shape for s in
                            put["tokens"].addressable_shards})
    found["same"] = bool((np.asarray(put["tokens"]) == batch["tokens"]).all())
    found["count"] = float(put["count"])
    try:
      mesh_lib.put_local_batch({"tokens": np.ones((6, 3))}, mesh)
    except UserError as error:
      found["error"] = str(error)

    axes = {"w": ("embed", "mlp")}
    x = {"w": np.arange(128, dtype=np.float32).reshape(8, 16)}
    x = jax.device_put(x, mesh_lib.state_shardings(x, mesh, axes))
    other = mesh_lib.make_mesh(configs.Mesh(fsdp=8))
    directory = tempfile.mkdtemp(dir=sys.argv[1])
    with checkpoints.Checkpointer(directory) as saver:
      saver.save(1, x, {})
      shardings = mesh_lib.state_shardings(x, other, axes)
      like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        x, shardings)
      _, y, _ = saver.restore_latest(like)
    found["saved"] = "P" + str(tuple(x["w"].sharding.spec))
    found["restored"] = "P" + str(tuple(y["w"].sharding.spec))
    found["equal"] = bool((np.asarray(x["w"]) == np.asarray(y["w"])).all())
    print(json.dumps(found))
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
    capture_output=True,
    text=True,
    env={**os.environ, **pretended(8)},
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["shape"] == {"data": 2, "fsdp": 2, "tensor": 2}
  assert found["rows"] == [[2, 3]]
  assert found["same"] and found["count"] == 3.0
  assert "6 rows cannot be split over 4" in found["error"]
  assert "multiples of 4" in found["error"]
  assert found["saved"] == "P('fsdp', 'tensor')"
  assert found["restored"] == "P('fsdp',)"
  assert found["equal"]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1)])
def test_a_program_has_its_functions_name(sizes):
  def doubled(x, *, by):
    return by * x

  mesh = AbstractMesh(sizes, mesh_lib.AXES)
  program = jax.jit(mesh_lib.with_mesh(mesh, functools.partial(doubled, by=2)))
  assert "@jit_doubled" in program.lower(jnp.ones(2)).as_text()


def test_one_device_keeps_values():
  mesh = mesh_lib.make_mesh(configs.Mesh(), jax.devices()[:1])
  batch = {"x": np.arange(6.0, dtype=np.float32).reshape(3, 2)}
  np.testing.assert_array_equal(
    mesh_lib.put_local_batch(batch, mesh)["x"], batch["x"]
  )


class _Device:
  """As much of a device as a mesh needs."""

  platform, device_kind = "cpu", "cpu"

  def __init__(self, number, each):
    self.id, self.process_index = number, number // each


@pytest.mark.parametrize(
  "sizes, each, part",
  [
    ((4, 1, 1), 2, (0, 2)),
    ((1, 2, 2), 2, (0, 2)),
    ((1, 1, 4), 2, (0, 1)),  # All hold the same rows.
    ((1, 2, 4), 2, (0, 2)),  # Two processes hold the same rows.
    ((4, 1, 3), 4, None),
  ],
)
def test_processes_that_only_tensor_sets_apart_read_the_same(sizes, each, part):
  count = math.prod(sizes)
  devices = np.array([_Device(i, each) for i in range(count)])
  grid = Mesh(devices.reshape(sizes), mesh_lib.AXES)
  if part is None:
    with pytest.raises(UserError, match="some of their rows"):
      mesh_lib.process_shard(count, grid)
  else:
    found = mesh_lib.process_shard(count, grid)
    assert (found["shard_index"], found["shard_count"]) == part
