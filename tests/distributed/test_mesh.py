"""The mesh, sharding rules, and transfer of batches."""

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

from instructgpt_jax import configs, sharding
from instructgpt_jax.distributed import compiler_options, transfer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from tests.devices import pretended

WIDE = AbstractMesh((2, 4, 8), mesh_lib.AXES)


@pytest.mark.parametrize("width, has_options", [(128, True), (768, False)])
def test_narrow_models_decode_without_ynnpack_on_cpu(width, has_options):
  assert bool(compiler_options.decode_compiler_options(width)) == has_options
  tpu_mesh = mesh_lib.abstract_mesh(configs.Mesh(), 1, "tpu")
  assert not compiler_options.decode_compiler_options(width, tpu_mesh)


@pytest.mark.parametrize(
  "names, shape, spec",
  [
    (("vocab", "embed"), (64, 32), PartitionSpec("tensor", "fsdp")),
    (("batch", None), (16, 3), PartitionSpec(("data", "fsdp"))),
    (("layers", "embed", "mlp"), (2, 4, 8), PartitionSpec(None, *"ft")),
    # Neither an indivisible size nor a repeated axis is sharded.
    (("vocab", "embed"), (63, 32), PartitionSpec(None, "fsdp")),
    (("embed", "embed"), (32, 32), PartitionSpec("fsdp")),
    ((None, None), (8, 8), PartitionSpec()),
  ],
)
def test_partition_spec(names, shape, spec):
  short = {"f": "fsdp", "t": "tensor"}
  spec = PartitionSpec(*(short.get(axis, axis) for axis in spec))
  assert sharding.partition_spec(names, shape, WIDE) == spec


def test_axes_of_size_one_are_left_out():
  narrow = AbstractMesh((8, 1, 1), mesh_lib.AXES)
  spec = sharding.partition_spec(("vocab", "embed"), (64, 32), narrow)
  assert spec == PartitionSpec()


def test_unknown_axis_or_wrong_rank_is_an_error():
  with pytest.raises(KeyError, match="'width'"):
    sharding.partition_spec(("width",), (8,), WIDE)
  with pytest.raises(ValueError, match="do not name"):
    sharding.partition_spec(("embed",), (8, 8), WIDE)


class _Layer(nn.Module):
  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
    return nn.Dense(16, kernel_init=init)(x)


def test_optimizer_moments_are_sharded_like_their_parameters():
  layer = _Layer()
  boxed = jax.eval_shape(
    lambda: layer.init(jax.random.key(0), jnp.ones((1, 8)))["params"]
  )
  axes = sharding.logical_axes(boxed)
  assert axes == {"Dense_0/kernel": ("embed", "mlp")}
  params = sharding.unbox(boxed)
  state = {
    "params": params,
    "ema": params,
    "optimizer": jax.eval_shape(optax.adam(1e-3).init, params),
    "step": jax.ShapeDtypeStruct((), jnp.int32),
  }
  actual = jax.tree.map(
    lambda sharding: sharding.spec,
    sharding.state_shardings(state, WIDE, axes),
  )
  split = PartitionSpec("fsdp", "tensor")
  adam = actual["optimizer"][0]
  for tree in (actual["params"], actual["ema"], adam.mu, adam.nu):
    assert tree["Dense_0"] == {"kernel": split, "bias": PartitionSpec()}
  assert actual["step"] == adam.count == PartitionSpec()


def test_boxed_leaves_need_no_axes_argument():
  boxed = {"w": nn.LogicallyPartitioned(jnp.ones((8, 16)), ("embed", "mlp"))}
  actual = sharding.state_shardings(boxed, WIDE)
  assert actual["w"].spec == PartitionSpec("fsdp", "tensor")


@pytest.mark.parametrize(
  "shape", [dict(data=2), dict(fsdp=2), dict(data=-1, tensor=3)]
)
def test_mesh_of_wrong_size_is_a_user_error(shape):
  with pytest.raises(UserError) as error:
    mesh_lib.make_mesh(configs.Mesh(**shape), jax.devices()[:1])
  assert error.value.code == "mesh_size"


def test_eight_devices(tmp_path):
  # In a subprocess, because the number of devices is fixed at start-up.
  script = """
    import json, sys, tempfile
    import jax, numpy as np
    from instructgpt_jax import configs
    from instructgpt_jax.errors import UserError
    from instructgpt_jax.checkpoint import checkpoints
    from instructgpt_jax import sharding
    from instructgpt_jax.distributed import mesh as mesh_lib
    from instructgpt_jax.distributed import transfer

    actual = {}
    mesh = mesh_lib.make_mesh(configs.Mesh(fsdp=2, tensor=2))
    actual["shape"] = dict(mesh.shape)
    batch = {"tokens": np.arange(24).reshape(8, 3), "count": np.float32(3)}
    put = transfer.put_local_batch(batch, mesh)
    actual["rows"] = sorted({s.data.shape for s in
                            put["tokens"].addressable_shards})
    actual["same"] = bool((np.asarray(put["tokens"]) == batch["tokens"]).all())
    actual["count"] = float(put["count"])
    try:
      transfer.put_local_batch({"tokens": np.ones((6, 3))}, mesh)
    except UserError as error:
      actual["error"] = error.code

    axes = {"w": ("embed", "mlp")}
    x = {"w": np.arange(128, dtype=np.float32).reshape(8, 16)}
    x = jax.device_put(x, sharding.state_shardings(x, mesh, axes))
    other = mesh_lib.make_mesh(configs.Mesh(fsdp=8))
    directory = tempfile.mkdtemp(dir=sys.argv[1])
    with checkpoints.Checkpointer(directory) as saver:
      saver.save(1, x, {})
      shardings = sharding.state_shardings(x, other, axes)
      like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        x, shardings)
      _, y, _ = saver.restore_latest(like)
    actual["saved"] = "P" + str(tuple(x["w"].sharding.spec))
    actual["restored"] = "P" + str(tuple(y["w"].sharding.spec))
    actual["equal"] = bool((np.asarray(x["w"]) == np.asarray(y["w"])).all())
    print(json.dumps(actual))
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
    capture_output=True,
    text=True,
    env={**os.environ, **pretended(8)},
  )
  assert done.returncode == 0, done.stderr
  actual = json.loads(done.stdout)
  assert actual["shape"] == {"data": 2, "fsdp": 2, "tensor": 2}
  assert actual["rows"] == [[2, 3]]
  assert actual["same"] and actual["count"] == 3.0
  assert actual["error"] == "uneven_batch"
  assert actual["saved"] == "P('fsdp', 'tensor')"
  assert actual["restored"] == "P('fsdp',)"
  assert actual["equal"]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1)])
def test_program_is_named_after_its_function(sizes):
  def doubled(x, *, by):
    return by * x

  mesh = AbstractMesh(sizes, mesh_lib.AXES)
  program = jax.jit(mesh_lib.with_mesh(mesh, functools.partial(doubled, by=2)))
  assert "@jit_doubled" in program.lower(jnp.ones(2)).as_text()


def test_one_device_preserves_values():
  mesh = mesh_lib.make_mesh(configs.Mesh(), jax.devices()[:1])
  batch = {"x": np.arange(6.0, dtype=np.float32).reshape(3, 2)}
  np.testing.assert_array_equal(
    transfer.put_local_batch(batch, mesh)["x"], batch["x"]
  )


class _Device:
  """Stub of a device with what a mesh reads."""

  platform, device_kind = "cpu", "cpu"

  def __init__(self, number, per_process):
    self.id, self.process_index = number, number // per_process


@pytest.mark.parametrize(
  "sizes, devices_per_process, shard",
  [
    ((4, 1, 1), 2, (0, 2)),
    ((1, 2, 2), 2, (0, 2)),
    ((1, 1, 4), 2, (0, 1)),  # All processes have the same rows.
    ((1, 2, 4), 2, (0, 2)),  # Two processes have the same rows.
    ((4, 1, 3), 4, None),
  ],
)
def test_processes_that_differ_only_in_tensor_read_the_same_shard(
  sizes, devices_per_process, shard
):
  count = math.prod(sizes)
  devices = np.array([_Device(i, devices_per_process) for i in range(count)])
  grid = Mesh(devices.reshape(sizes), mesh_lib.AXES)
  if shard is None:
    with pytest.raises(UserError) as error:
      transfer.get_process_shard(count, grid)
    assert error.value.code == "overlapping_rows"
  else:
    actual = transfer.get_process_shard(count, grid)
    assert (actual["shard_index"], actual["shard_count"]) == shard
