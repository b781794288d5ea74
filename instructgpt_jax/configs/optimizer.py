"""Config of Adam and its learning-rate schedule."""

from __future__ import annotations

import dataclasses

from instructgpt_jax.configs.fields import Checked, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Checked):
  """Adam with float32 moments; ε is added outside the square root."""

  learning_rate: float = option(
    9.65e-6, "peak learning rate", paper="C.1 [P]", above=0.0, maximum=1.0
  )
  schedule: str = option(
    "cosine",
    "shape after warm-up",
    paper="C.1-C.4 [P]",
    choices=("cosine", "constant"),
  )
  final_fraction: float = option(
    0.1,
    "cosine ends at this share of the peak",
    paper="C.1 [P]",
    minimum=0.0,
    maximum=1.0,
  )
  warmup_steps: int = option(
    0,
    "length of the linear warm-up; -1 uses ppo.warmup_iterations (PPO only)",
    unit="updates",
    paper="C.1 none, C.4 10 iterations",
    minimum=-1,
  )
  warmup_init: float = option(
    0.0,
    "warm-up starts at this share of the peak",
    paper="C.4 0.1 [P]",
    minimum=0.0,
    maximum=1.0,
  )
  b1: float = option(0.9, "Adam β1", paper="C [P]", minimum=0.0, maximum=0.9999)
  b2: float = option(
    0.95, "Adam β2", paper="C [P]", minimum=0.0, maximum=0.99999
  )
  eps: float = option(
    1e-8, "Adam ε, outside the square root", paper="unstated [I]", above=0.0
  )
  weight_decay: float = option(
    0.0, "decoupled weight decay on matrices", paper="unstated [I]", minimum=0.0
  )
  clip_norm: float = option(
    1.0,
    "global gradient norm limit; 0 is off",
    paper="unstated [I]",
    minimum=0.0,
  )
