"""Configs of the mesh, the processes, and of logging and saving."""

from __future__ import annotations

import dataclasses

from instructgpt_jax.configs.fields import Checked, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh(Checked):
  """Devices of the named mesh (data, fsdp, tensor)."""

  data: int = option(-1, "batch shards; -1 takes what is left", minimum=-1)
  fsdp: int = option(1, "parameter shards", minimum=1)
  tensor: int = option(1, "shards within a layer", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes(Checked):
  """The processes of one run, on one host or many."""

  coordinator: str = option(
    "", "HOST:PORT of process 0, or auto: found from Slurm, a TPU slice, or"
    " JAX_COORDINATOR_ADDRESS",
  )  # fmt: skip
  count: int = option(1, "processes", minimum=1)
  index: int = option(0, "which of them this is", minimum=0)
  timeout: float = option(
    300.0, "how long to wait for one that does not come", unit="seconds",
    above=0.0,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Checked):
  """Logging and saving."""

  log_every: int = option(10, "metrics every so many steps", minimum=1)
  save_every: int = option(
    100, "checkpoint every so many steps; 0 only at the end", minimum=0
  )
  keep: int = option(2, "newest checkpoints kept", minimum=1)
  keep_every: int = option(
    0, "first checkpoint after every so many steps kept as well; 0 none",
    minimum=0,
  )  # fmt: skip
  keep_best: str = option(
    "", "measure by which the best checkpoint is kept as well, in stages that"
    " have it; a validation measure is saved at whenever it is taken",
    choices=("", "valid_loss", "valid_rm_score", "reward"),
  )  # fmt: skip
  tensorboard: bool = option(True, "write TensorBoard files")
  compile_cache: str = option(
    "", "folder that keeps compiled programs; '' is the user's cache, none none"
  )
