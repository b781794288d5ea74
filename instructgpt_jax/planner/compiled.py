"""Programs compiled ahead of time for TPUs that are not here."""

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
from instructgpt_jax.planner.work import Program

# libtpu asks for them on a machine of a TPU.
_TOLD = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is opened that others need
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


def possible(topology: Topology) -> bool:
  """Whether there is a compiler for it here."""
  return bool(
    topology.chip.torus and importlib.util.find_spec("libtpu") is not None
  )


def mesh(topology: Topology, sizes: configs.Mesh) -> Mesh:
  """The mesh of a topology's devices.

  Raises:
    UserError: there is no such topology, or the sizes do not make it.
  """
  from jax.experimental import topologies

  for name, value in _TOLD.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=str(topology)
    )
  except RuntimeError as error:  # JAX's, with libtpu's words
    raise UserError(
      f"libtpu knows no {topology}: {str(error).splitlines()[0]}",
      field="--topology",
      fix="give one that is sold, such as v5p:2x2x1 or v5e:4x4",
    ) from error
  return mesh_lib.make_mesh(sizes, found.devices)


def compile_program(program: Program, mesh: Mesh, chip: Chip) -> Cost:
  """Compiles for the mesh's devices."""
  since = time.monotonic()
  lowered: Any = program.function.lower(*program.arguments)
  compiled = lowered.compile()
  seconds = time.monotonic() - since
  size = compiled.memory_analysis()
  done = hlo.Module(compiled.as_text(), mesh.shape, program.trips).done()
  fresh = size.output_size_in_bytes - size.alias_size_in_bytes
  return Cost(
    compiling=seconds,
    temporary=size.temp_size_in_bytes
    + fresh
    + size.generated_code_size_in_bytes,
    flops=done.flops,
    memory=done.memory,
    busy=done.seconds(chip.flops, chip.bandwidth),
    network=dict(done.network),
  )


def version() -> str:
  """The compiler's."""
  import importlib.metadata

  return f"libtpu {importlib.metadata.version('libtpu')}, jax {jax.__version__}"
