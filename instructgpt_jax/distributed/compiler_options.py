"""XLA compiler options for programs that decode or initialise parameters."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from instructgpt_jax.distributed.mesh import AnyMesh

# Lists the operations that XLA's CPU compiler hands to the YNNPACK library; an
# empty list turns YNNPACK off.
_YNNPACK_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
_MAX_WIDTH = 256  # the widest D that decodes as fast without YNNPACK
_SCHEDULER = "xla_cpu_scheduler_type"
_MEMORY_OPTIMIZED = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"


def decode_compiler_options(
  width: int, mesh: AnyMesh | None = None
) -> dict[str, Any]:
  """Returns the compiler options of programs that decode.

  On CPUs, XLA hands matmuls to the YNNPACK library, which is fast for large
  ones. Each call has a fixed cost. A decode step multiplies a few rows by a
  matrix, and for narrow models this takes less time than the call. Measurements
  by width are in benchmarks/LOG.md.

  Args:
    width: D, width of the model.
    mesh: mesh that the program runs on; None means JAX's default backend.
  """
  if width <= _MAX_WIDTH and _is_cpu(mesh):
    return {_YNNPACK_FUSIONS: ""}
  return {}


def init_compiler_options(mesh: AnyMesh | None = None) -> dict[str, Any]:
  """Returns the compiler options of programs that initialise parameters.

  XLA's default CPU schedule computes all parameters concurrently, and uses
  temporary memory of three times their size. The schedule chosen here computes
  them one after another.
  """
  return {_SCHEDULER: _MEMORY_OPTIMIZED} if _is_cpu(mesh) else {}


def _is_cpu(mesh: AnyMesh | None) -> bool:
  if mesh is None:
    return jax.default_backend() == "cpu"
  # Abstract meshes are of TPUs or GPUs, never of CPUs.
  return isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
