"""Config of Adam and its learning-rate schedule."""

from __future__ import annotations

import dataclasses
from typing import Literal

from instructgpt_jax.configs.fields import Checked, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Checked):
  """Adam with float32 moments; ε is added outside the square root."""

  learning_rate: float = option(
    9.65e-6, "Peak learning rate.", paper="C.1 [P]", above=0.0, maximum=1.0
  )
  schedule: Literal["cosine", "constant"] = option(
    "cosine", "Shape of the schedule after warm-up.", paper="C.1-C.4 [P]"
  )
  final_fraction: float = option(
    0.1,
    "Share of the peak rate at which the cosine ends.",
    paper="C.1 [P]",
    minimum=0.0,
    maximum=1.0,
  )
  warmup_steps: int = option(
    0,
    "Length of the linear warm-up; -1 uses ppo.warmup_iterations (PPO only).",
    unit="updates",
    paper="C.1 none, C.4 10 iterations",
    minimum=-1,
  )
  warmup_init: float = option(
    0.0,
    "Share of the peak rate at which the warm-up starts.",
    paper="C.4 0.1 [P]",
    minimum=0.0,
    maximum=1.0,
  )
  b1: float = option(
    0.9, "Adam's β1.", paper="C [P]", minimum=0.0, maximum=0.9999
  )
  b2: float = option(
    0.95, "Adam's β2.", paper="C [P]", minimum=0.0, maximum=0.99999
  )
  eps: float = option(
    1e-8, "Adam's ε, outside the square root.", paper="unstated [I]", above=0.0
  )
  weight_decay: float = option(
    0.0,
    "Decoupled weight decay of matrices.",
    paper="unstated [I]",
    minimum=0.0,
  )
  clip_norm: float | None = option(
    1.0, "Maximum global gradient norm.", paper="unstated [I]", above=0.0
  )
