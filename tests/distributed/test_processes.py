"""Two processes stop at the same step and save one checkpoint."""

import json
import os
import socket
import subprocess
import sys
import textwrap

SCRIPT = """
  import os, signal, sys
  import jax
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec
  from instructgpt_jax import configs
  from instructgpt_jax.checkpoint import checkpoints
  from instructgpt_jax.distributed import mesh
  from instructgpt_jax.distributed import preemption
  from instructgpt_jax.distributed import processes

  directory, index, port = sys.argv[1], *map(int, sys.argv[2:])
  section = configs.Processes(
    coordinator=f"localhost:{port}", count=2, index=index)
  with processes.distributed_context(section, {}):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    sharding = NamedSharding(
      mesh.make_mesh(configs.Mesh(fsdp=2)), PartitionSpec("fsdp"))

    def state(factor):
      return {"x": jax.make_array_from_process_local_data(
        sharding, factor * whole[2 * index : 2 * index + 2])}

    def local(array):
      (shard,) = array.addressable_shards
      return np.asarray(shard.data)

    try:
      with checkpoints.Checkpointer(directory) as saver:
        saver.save(1, state(1), {"at": 1})
        with preemption.PreemptionWatch() as watch:
          for step in range(2, 9):
            if index == 1 and step == 3:
              os.kill(os.getpid(), signal.SIGTERM)
            if watch.requested():
              saver.save(step, state(step), {"at": step})
              saver.wait()
              raise preemption.Preempted
    except preemption.Preempted:
      print("stopped at", step)
    with checkpoints.Checkpointer(directory) as saver:
      restored, tree, extra = saver.restore_latest(state(0))
      equal = local(tree["x"]) == step * local(state(1)["x"])
      print("restored", restored, extra["at"], bool(equal.all()))
    processes.barrier("restored")
    # Both processes skip a checkpoint that one of them finds damaged.
    if index == 0:
      damaged = os.path.join(directory, "checkpoints", str(step))
      os.truncate(os.path.join(damaged, "_CHECKPOINT_METADATA"), 5)
    processes.barrier("damaged")
    with checkpoints.Checkpointer(directory) as saver:
      print("then", saver.restore_latest(state(0))[0])
"""


def test_two_processes_stop_save_and_restore_together(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  both = [
    subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(SCRIPT)]
      + [str(tmp_path), str(index), str(port)],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    ends = [process.communicate(timeout=300) for process in both]
  finally:
    for process in both:
      process.kill()
  print(*(err for _, err in ends), sep="\n\n")
  assert [process.returncode for process in both] == [0, 0], ends
  # Both processes learn at step 4 of the signal at step 3.
  expected = ["stopped at 4", "restored 4 4 True", "then 1"]
  for out, _ in ends:
    assert [x for x in out.splitlines() if "[Gloo]" not in x] == expected, ends
  # The damaged checkpoint remains until the next save.
  directory = tmp_path / "checkpoints"
  assert {p.name for p in directory.iterdir()} == {"1", "4"}
  manifest = json.loads((directory / "1" / "checksums.json").read_text())
  assert len([n for n in manifest["files"] if "ocdbt.process_" in n]) >= 2
