"""What the processes of a run tell each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

_any = jax.jit(jnp.any)


def any_process(says: bool) -> jax.Array:
  """[] bool, whether any process says so; each of them has to call this."""
  mesh = jax.make_mesh(
    (jax.device_count(),), ("all",), axis_types=(AxisType.Auto,)
  )
  everyone = jax.make_array_from_process_local_data(
    NamedSharding(mesh, PartitionSpec("all")),
    np.full(jax.local_device_count(), says),
  )
  return _any(everyone)
