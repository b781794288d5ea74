"""Two processes of one run stop at the same step, and save one checkpoint."""

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

  folder, me, port = sys.argv[1], *map(int, sys.argv[2:])
  section = configs.Processes(
    coordinator=f"localhost:{port}", count=2, index=me)
  with processes.distributed_context(section, {}):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    place = NamedSharding(mesh.make_mesh(configs.Mesh(fsdp=2)),
                          PartitionSpec("fsdp"))

    def state(factor):
      return {"x": jax.make_array_from_process_local_data(
        place, factor * whole[2 * me : 2 * me + 2])}

    def mine(array):
      (shard,) = array.addressable_shards
      return np.asarray(shard.data)

    try:
      with checkpoints.Checkpointer(folder) as saver:
        saver.save(1, state(1), {"at": 1})
        with preemption.PreemptionWatch() as watch:
          for step in range(2, 9):
            if me == 1 and step == 3:
              os.kill(os.getpid(), signal.SIGTERM)
            if watch.requested():
              saver.save(step, state(step), {"at": step})
              saver.wait()
              raise preemption.Preempted
    except preemption.Preempted:
      print("stopped at", step)
    with checkpoints.Checkpointer(folder) as saver:
      found, held, extra = saver.restore_latest(state(0))
      same = (mine(held["x"]) == step * mine(state(1)["x"])).all()
      print("restored", found, extra["at"], bool(same))
    processes.barrier("restored")
    # Damage that one of them sees is damage to both.
    if me == 0:
      damaged = os.path.join(folder, "checkpoints", str(step))
      os.truncate(os.path.join(damaged, "_CHECKPOINT_METADATA"), 5)
    processes.barrier("damaged")
    with checkpoints.Checkpointer(folder) as saver:
      print("then", saver.restore_latest(state(0))[0])
"""


def test_two_processes_stop_save_and_restore_together(tmp_path):
  with socket.socket() as found:
    found.bind(("localhost", 0))
    port = found.getsockname()[1]
  both = [
    subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(SCRIPT)]
      + [str(tmp_path), str(me), str(port)],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for me in range(2)
  ]
  try:
    ends = [process.communicate(timeout=300) for process in both]
  finally:
    for process in both:
      process.kill()
  print(*(err for _, err in ends), sep="\n\n")
  assert [process.returncode for process in both] == [0, 0], ends
  # Asked at step 3, which both hear at the next one.
  wanted = ["stopped at 4", "restored 4 4 True", "then 1"]
  for out, _ in ends:
    assert [x for x in out.splitlines() if "[Gloo]" not in x] == wanted, ends
  # The damaged one stays until the next save; both were written once.
  folder = tmp_path / "checkpoints"
  assert {p.name for p in folder.iterdir()} == {"1", "4"}
  manifest = json.loads((folder / "1" / "checksums.json").read_text())
  assert len([n for n in manifest["files"] if "ocdbt.process_" in n]) >= 2
