"""Builds parts of the sample studies; the constants are the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from instructgpt_jax.report.findings import Figure, Panel, Table
from instructgpt_jax.statistics import Interval

NAMES = {
  "base": "base",
  "prompted": "prompted",
  "sft": "SFT",
  "ppo": "PPO",
  "ppo_ptx": "PPO-ptx",
}
WINS = {
  "base": (0.142, 0.193, 0.240),
  "prompted": (0.227, 0.266, 0.411),
  "sft": (0.348, 0.404, 0.5),
  "ppo": (0.524, 0.578, 0.626),
  "ppo_ptx": (0.527, 0.555, 0.660),
}
GAMMA = (0.46, 2.15, 5.99, 10, 16.7, 27.8, 46.4, 129)
SQUAD = (52.0, 57.0, 58.6, 59.9, 60.2, 60.7, 60.8, 60.9)
DROP = (18.2, 21.9, 21.5, 24.4, 24.9, 26.4, 26.4, 26.5)
REWARD = (-0.61, -0.63, -0.66, -0.71, -0.76, -0.85, -0.98, -1.55)
BETA = (5.4e-5, 2e-4, 7.5e-4, 2.8e-3, 0.0104, 0.0386, 0.144, 0.537, 2.0)
SQUAD_KL = (0.4, 2.7, 0.5, 1.8, 42.8, 50.0, 50.2, 53.6, 46.8)
DROP_KL = (0.3, 0.6, 0.5, 0.3, 12.0, 19.8, 21.5, 21.3, 15.4)
EPISODES = (512, 65e3, 131e3, 197e3, 262e3, 328e3, 393e3, 459e3, 512e3)
SQUAD_LONG = (62.8, 61.7, 60.4, 57.1, 57.8, 56.1, 56.7, 56.0, 56.1)
RATES = (2.55, 3.74, 5.49, 8.05, 11.8, 17.4, 25.5)
LIKERT_RATES = {
  "ppo_ptx": (3.92, 3.95, 3.94, 3.93, 4.31, 4.18, 4.10),
  "ppo": (3.92, 4.05, 3.83, 3.73),
}
LIKERT_BETA = {
  0: 2.14,
  7.5e-4: 3.03,
  0.0104: 4.12,
  0.02: 3.90,
  0.03: 3.74,
  0.144: 3.74,
  2: 3.12,
}
STARTS = {
  "1 epoch, no pretraining": 3.84,
  "1 epoch, 10 % pretraining": 4.01,
  "1 epoch, 50 % pretraining": 3.84,
  "2 epochs, no pretraining": 3.91,
}
FAILURES = {
  "attempts the instruction": (0.696, 0.792, 0.864, 0.923, 0.928),
  "follows constraints": (0.223, 0.282, 0.340, 0.435, 0.433),
  "hallucinates": (0.448, 0.279, 0.084, 0.216, 0.156),
  "appropriate for an assistant": (0.814, 0.854, 0.880, 0.904, 0.903),
}


def around(mean: float, half: float) -> Interval:
  """An interval of equal arms."""
  return Interval(mean, mean - half, mean + half)


def study(
  title: str,
  question: str,
  measured: str,
  source: str,
  *figures: Figure,
  tables: Sequence[Table] = (),
  reproduced: bool | None = True,
  kind: str = "paper",
  missing: int = 0,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """One study's part of the results."""
  return {
    "title": title,
    "question": question,
    "source": source,
    "paper": "The paper varied this at 1.3B, measured validation reward and "
    "public tasks, and found the shape drawn in its panel.",
    "setup": "Three sizes of the world's models, trained from nothing; 400 "
    "held-out prompts, the gold labeler of the world as judge, temperature 1.",
    "criterion": "The difference has the paper's sign in every seed, and the "
    "95 % interval of the pooled difference excludes 0.",
    "measured": measured,
    "reproduced": reproduced,
    "kind": kind,
    "seeds": [0, 1, 2],
    "seconds": 1180.0,
    "runs": 27,
    "complete": missing == 0,
    "missing": missing,
    "figures": [figure.as_dict() for figure in figures],
    "tables": [table.as_dict() for table in tables],
    "notes": list(notes),
  }


def pair(here: dict, paper: dict, **both: Any) -> list[Panel]:
  """Two panels that share what is named behind them."""
  return [Panel("Here", **both | here), Panel("Paper", **both | paper)]


def points(xs: Iterable[Any], ys: Iterable[float], half: float = 0.0) -> list:
  """Points with intervals, or without any where the half width is 0."""
  pairs = zip(xs, ys, strict=False)
  return [(x, around(y, half) if half else y) for x, y in pairs]
