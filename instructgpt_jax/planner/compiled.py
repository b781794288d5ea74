"""Compiles programs ahead of time for TPUs that are not attached."""

from __future__ import annotations

import importlib.util
import os
import time
from typing import Any

import jax
from jax.sharding import Mesh

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import hlo
from instructgpt_jax.planner.cost import Cost
from instructgpt_jax.planner.hardware import Chip, Topology
from instructgpt_jax.planner.workload import Program

# libtpu reads these; on a TPU host the platform sets them.
_LIBTPU_ENV = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # opens no TPU
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


def can_compile(topology: Topology) -> bool:
  """Returns whether this process has a compiler for the topology."""
  return bool(
    topology.chip.torus_dims and importlib.util.find_spec("libtpu") is not None
  )


def topology_mesh(topology: Topology, sizes: configs.Mesh) -> Mesh:
  """Makes a mesh of a topology's devices.

  Raises:
    UserError: libtpu does not know the topology, or the sizes do not fit it.
  """
  from jax.experimental import topologies

  for name, value in _LIBTPU_ENV.items():
    os.environ.setdefault(name, value)
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=str(topology)
    )
  except RuntimeError as error:  # raised by JAX with libtpu's message
    raise UserError(
      f"libtpu knows no {topology}: {str(error).splitlines()[0]}",
      field="--topology",
      fix="give a shape that exists, such as v5p:2x2x1 or v5e:4x4",
      code="unknown_topology",
    ) from error
  return mesh_lib.make_mesh(sizes, description.devices)


def compile_program(program: Program, mesh: Mesh, chip: Chip) -> Cost:
  """Compiles a program for the mesh's devices and reads its cost."""
  start = time.monotonic()
  lowered: Any = program.function.lower(*program.arguments)
  compiled = lowered.compile()
  seconds = time.monotonic() - start
  size = compiled.memory_analysis()
  cost = hlo.HloModule(
    compiled.as_text(), mesh.shape, program.loop_trips
  ).cost()
  outputs = size.output_size_in_bytes - size.alias_size_in_bytes
  return Cost(
    compile_seconds=seconds,
    temporary_bytes=size.temp_size_in_bytes
    + outputs
    + size.generated_code_size_in_bytes,
    flops=cost.flops,
    hbm_bytes=cost.hbm_bytes,
    seconds=cost.seconds(chip.flops, chip.bandwidth),
    sent=dict(cost.sent),
  )


def compiler_version() -> str:
  """Returns the versions of libtpu and JAX."""
  import importlib.metadata

  return f"libtpu {importlib.metadata.version('libtpu')}, jax {jax.__version__}"
