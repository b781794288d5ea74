"""Results with the shape and size that a pipeline writes; invented numbers."""

from __future__ import annotations

import math
from typing import Any

FIELDS = (
  "fails_instruction",
  "hallucinates",
  "inappropriate",
  "violates_constraint",
  "harmful_advice",
  "false_premise_agreed",
  "padding",
)
TASKS = ("translation", "reading", "copy", "facts")
_QUALITY = {
  "base": 0.23,
  "prompted": 0.30,
  "sft": 0.55,
  "best_of_n": 0.65,
  "ppo": 0.69,
  "ppo_ptx": 0.67,
}
_LM_LOSS = {
  "base": 0.717,
  "prompted": 0.717,
  "sft": 0.801,
  "best_of_n": 0.801,
  "ppo": 0.862,
  "ppo_ptx": 0.728,
}


def leaf(mean: float, half: float) -> dict[str, float]:
  """An interval around a mean."""
  return {"mean": mean, "low": mean - half, "high": mean + half}


def _measured(name: str, lift: float) -> dict[str, Any]:
  quality = min(0.95, _QUALITY[name] + lift)
  return {
    "win_rate": leaf(0.5 + (quality - _QUALITY["sft"] - lift) * 0.9, 0.025),
    "gold": leaf(quality, 0.018),
    "likert": leaf(1 + 6 * quality, 0.11),
    "rm_score": leaf(4 * quality - 2, 0.09),
    "kl": None if name in ("base", "prompted") else leaf(0.8 * quality, 0.05),
    "lm_loss": leaf(_LM_LOSS[name], 0.006),
    "response_length": leaf(11 - 4 * quality, 0.3),
    "ended": leaf(0.6 + 0.4 * quality, 0.01),
    "tasks": {
      task: leaf(0.9 - 0.12 * i - (_LM_LOSS[name] - 0.717), 0.03)
      for i, task in enumerate(TASKS)
    },
    "failures": {
      field: leaf(max(0.02, (1 - quality) * (0.8 - 0.1 * i)), 0.02)
      for i, field in enumerate(FIELDS)
    },
  }


def make_results() -> dict[str, Any]:
  """Builds results with every part that a report can contain."""
  models = {}
  for name in _QUALITY:
    models[name] = _measured(name, 0.0)
    models[name]["greedy"] = _measured(name, 0.12)
  return {
    "title": "InstructGPT in a small world",
    "seed": 0,
    "judge": "gold labeler of the world",
    "model": {"parameters": 1_234_567},
    "models": models,
    "reward_model": {
      "accuracy": leaf(0.741, 0.015),
      "held_out_labelers": leaf(0.702, 0.018),
      "round_2": {"accuracy": leaf(0.752, 0.014)},
    },
    "tax": {"removed_by_ptx": leaf(0.924, 0.06)},
    "seconds": {
      "world": 3.2,
      "pretrain": 301.4,
      "sft": 35.0,
      "policy_init": 12.1,
      "reward": 41.9,
      "ppo": 118.3,
      "ppo_ptx": 161.0,
      "evaluate": 75.5,
    },
    "samples": [
      {
        "prompt": f"U: list {n} animals , in one line . A:",
        "answers": {
          "base": "the song of the river <b>the song</b> of the river",
          "prompted": "fox , fox , fox",
          "sft": "fox , owl and bear .",
          "best_of_n": "fox , owl , bear .",
          "ppo": "fox , owl , bear .",
          "ppo_ptx": " , ".join(["fox", "owl", "bear", "hare", "wolf"][:n]),
        },
        "scores": dict(_QUALITY),
      }
      for n in range(2, 7)
    ],
    "curves": _curves(),
    "notes": ["These numbers are invented for a test."],
    "config": {"seed": 0, "ppo": {"kl_coef": 0.1, "ptx_coef": 1.0}},
  }


def _decay(start: float, end: float, steps: int, every: int) -> list:
  return [
    [s, end + (start - end) * math.exp(-4 * s / steps)]
    for s in range(0, steps + 1, every)
  ]


def _curves() -> dict[str, Any]:
  ppo = {
    "reward": _decay(-0.6, 0.7, 480, 4),
    "kl": _decay(0, 0.9, 480, 4),
    "entropy": _decay(1.4, 0.8, 480, 4),
    "clip_fraction": _decay(0.05, 0.11, 480, 4),
    "response_length": _decay(10, 8, 480, 4),
    "explained_variance": _decay(0.0, 0.7, 480, 4),
  }
  ptx = {
    name: [[step, 0.9 * value] for step, value in curve]
    for name, curve in ppo.items()
  }
  return {
    "pretrain": {
      "loss": _decay(5.7, 0.72, 1400, 10),
      "valid_loss": _decay(5.7, 0.75, 1400, 200),
    },
    "policy_init": {"loss": _decay(1.5, 0.9, 60, 2)},
    "sft": {
      "loss": _decay(1.5, 0.3, 500, 10),
      "valid_loss": _decay(1.5, 0.6, 500, 50),
      "valid_rm_score": _decay(-1.0, 0.2, 500, 50),
    },
    "reward": {
      "loss": _decay(0.69, 0.5, 250, 5),
      "accuracy": _decay(0.5, 0.75, 250, 5),
    },
    "ppo": ppo,
    "ppo_ptx": ptx | {"ptx_loss": _decay(0.80, 0.72, 480, 4)},
  }
