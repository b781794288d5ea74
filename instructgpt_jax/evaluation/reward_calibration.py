"""Calibration of reward models, and their accuracy by length difference.

A reward model says that answer a is better than b with probability
σ(r_a − r_b) (Bradley and Terry). Each pair is seen from the side of the higher
score, so that predictions lie between ½ and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.evaluation import reward_bench_files
from instructgpt_jax.evaluation.reward_bench_files import Item

_BINS = 10
_LENGTH_BINS = 5


class Pairs(NamedTuple):
  """All N pairs of a better and a worse answer.

  Attributes:
    margin: [N] score of the better answer less that of the worse one.
    length: [N] characters of the better answer less those of the worse one.
    prompt: [N] number of the prompt; its pairs are one unit.
    weight: [N] 1 / (pairs of the item).
  """

  margin: np.ndarray
  length: np.ndarray
  prompt: np.ndarray
  weight: np.ndarray


def gather_pairs(items: Sequence[Item], scores: Sequence[np.ndarray]) -> Pairs:
  """Gathers all pairs of answers with different ranks."""
  rows = []
  prompts = reward_bench_files.prompt_numbers(items)
  for number, item, values in zip(prompts, items, scores, strict=True):
    pairs = [
      (values[a] - values[b], len(item.answers[a]) - len(item.answers[b]))
      for a, rank in enumerate(item.ranks)
      for b, other in enumerate(item.ranks)
      if rank < other
    ]
    rows += [(*pair, number, 1 / len(pairs)) for pair in pairs]
  margin, length, prompt, weight = np.array(rows, np.float64).T
  return Pairs(margin, length, prompt.astype(np.int64), weight)


def calibrate(pairs: Pairs) -> dict[str, Any]:
  """Computes the calibration curve and the expected calibration error.

  Each item weighs 1. Equal scores predict ½, and are right by half.

  Returns:
    `bins`, each with the bounds `low` and `high`, the mean `predicted`, the
    `observed` share with its interval, and its `share` of all pairs; and `ece`,
    Σ share · |observed − predicted|.
  """
  predicted = 1 / (1 + np.exp(-np.abs(pairs.margin)))
  right = (np.sign(pairs.margin) + 1) / 2
  edges = np.linspace(0.5, 1, _BINS + 1)
  bins = np.clip(np.digitize(predicted, edges) - 1, 0, _BINS - 1)
  rows, error = [], 0.0
  for number in np.unique(bins):
    inside = bins == number
    weight = pairs.weight[inside]
    share = float(weight.sum() / pairs.weight.sum())
    mean = float(weight @ predicted[inside] / weight.sum())
    observed = _share(right, pairs, inside)
    error += share * abs(observed["mean"] - mean)
    rows.append(
      {"low": float(edges[number]), "high": float(edges[number + 1]),
       "predicted": mean, "observed": observed, "share": share}
    )  # fmt: skip
  return {"ece": error, "bins": rows}


def by_length(pairs: Pairs) -> dict[str, Any]:
  """Computes the accuracy by how much longer the better answer is.

  Returns:
    `groups`, each with its bounds in characters, `low` to `high`, both
    included, and the `accuracy`; `longer` and `shorter`, accuracies where the
    better answer is the longer or the shorter one, None without such pairs;
    and `prefers_longer`, the share of pairs in which the longer answer has the
    higher score, beside `longer_is_better`, that in which it is better.
  """
  right = (np.sign(pairs.margin) + 1) / 2
  longer, shorter = pairs.length > 0, pairs.length < 0
  differs = longer | shorter
  result: dict[str, Any] = {
    "groups": [],
    "longer": _share(right, pairs, longer) if longer.any() else None,
    "shorter": _share(right, pairs, shorter) if shorter.any() else None,
    "prefers_longer": None,
    "longer_is_better": None,
  }
  if differs.any():
    prefers = np.where(longer, right, 1 - right)
    result["prefers_longer"] = _share(prefers, pairs, differs)
    result["longer_is_better"] = _share(longer * 1.0, pairs, differs)
  edges = np.unique(
    np.quantile(pairs.length, np.linspace(0, 1, _LENGTH_BINS + 1)[1:-1])
  )
  groups = np.searchsorted(edges, pairs.length)
  for number in np.unique(groups):
    inside = groups == number
    result["groups"].append(
      {"low": float(pairs.length[inside].min()),
       "high": float(pairs.length[inside].max()),
       "accuracy": _share(right, pairs, inside)}
    )  # fmt: skip
  return result


def _share(values: np.ndarray, pairs: Pairs, rows: np.ndarray) -> Any:
  """Computes the weighted mean of some rows; the units are prompts."""
  _, prompt = np.unique(pairs.prompt[rows], return_inverse=True)
  weight = pairs.weight[rows]
  return statistics.ratio_interval(
    np.bincount(prompt, weight * values[rows]),
    np.bincount(prompt, weight),
    share=True,
  ).as_dict()
