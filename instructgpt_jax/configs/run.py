"""Configs of the mesh, the processes, and of logging and saving."""

from __future__ import annotations

import dataclasses
from typing import Literal

from instructgpt_jax.configs.fields import Checked, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh(Checked):
  """Device mesh with the axes data, fsdp and tensor."""

  data: int = option(
    -1, "Number of data shards; -1 uses all remaining devices.", minimum=-1
  )
  fsdp: int = option(1, "Number of parameter shards.", minimum=1)
  tensor: int = option(1, "Number of shards of each layer.", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes(Checked):
  """Processes of one run, on one host or many."""

  coordinator: str = option(
    "",
    "HOST:PORT of process 0; auto takes it from Slurm, a TPU slice, or"
    " JAX_COORDINATOR_ADDRESS.",
  )
  count: int = option(1, "Number of processes.", minimum=1)
  index: int = option(0, "Index of this process.", minimum=0)
  timeout: float = option(
    300.0, "Time to wait for a missing process.", unit="seconds", above=0.0
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Checked):
  """Logging and saving."""

  log_every: int = option(
    10, "Interval between metrics lines.", unit="steps", minimum=1
  )
  save_every: int | None = option(
    100,
    "Interval between checkpoints; none saves only at the end.",
    unit="steps",
    minimum=1,
  )
  keep: int = option(2, "Number of newest checkpoints to keep.", minimum=1)
  keep_every: int | None = option(
    None,
    "Also keep the first checkpoint of every interval of this length.",
    unit="steps",
    minimum=1,
  )
  keep_best: (
    Literal["valid_loss", "valid_rm_score", "valid_judge_score", "reward"]
    | None
  ) = option(
    None,
    "Also keep the best checkpoint by this metric, in stages that have it. A"
    " validation metric is saved at whenever it is computed, and in PPO it also"
    " chooses the policy that the stage saves.",
  )
  tensorboard: bool = option(True, "Write TensorBoard files.")
  wandb: Literal["online", "offline"] | None = option(
    None,
    "Also log to Weights & Biases; offline writes files for wandb sync.",
  )
  mlflow: Literal["online", "offline"] | None = option(
    None,
    "Also log to MLflow, at MLFLOW_TRACKING_URI; offline writes mlflow.db in"
    " the workdir.",
  )
  compile_cache: str = option(
    "",
    "Directory of the compilation cache; '' is the user's cache, and none"
    " disables it.",
  )
