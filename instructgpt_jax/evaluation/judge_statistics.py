"""What a judge's verdicts on pairs amount to, with 95 % intervals.

The unit of every interval is the distinct prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import statistics
from instructgpt_jax.evaluation.judge_pairs import Pair, prompt_numbers
from instructgpt_jax.evaluation.pair_judges import Judged
from instructgpt_jax.statistics import Interval

RESAMPLES = 1000
_RIDGE = (1e-3, 0.1)  # penalties of θ and φ; see `length_controlled_rate`
_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """Verdicts on N pairs that have one in both orders.

  Attributes:
    preference: [N] share of the first answer, mean of both orders.
    as_a: [N] verdict with the first answer as A: 1, ½ or 0.
    as_b: [N] verdict with the first answer as B, 1 for the first answer.
    length: [N] characters of the first answer less those of the second.
    prompts: [N] number of each pair's prompt.
  """

  preference: np.ndarray
  as_a: np.ndarray
  as_b: np.ndarray
  length: np.ndarray
  prompts: np.ndarray


def gather_verdicts(
  pairs: Sequence[Pair], judged: Sequence[Judged]
) -> tuple[Verdicts, list[Pair]]:
  """Gathers the pairs with a verdict in both orders, and their verdicts."""
  usable = [
    (pair, verdicts)
    for pair, verdicts in zip(pairs, judged, strict=True)
    if verdicts.preference is not None
  ]
  judged_pairs = [pair for pair, _ in usable]
  as_a, as_b = (
    np.array([v[i].value for _, v in usable], np.float64) for i in (0, 1)
  )
  return Verdicts(
    preference=(as_a + as_b) / 2,
    as_a=as_a,
    as_b=as_b,
    length=np.array(
      [len(p.first) - len(p.second) for p in judged_pairs], np.float64
    ),
    prompts=np.array(prompt_numbers(judged_pairs), np.int64),
  ), judged_pairs


def summarize(verdicts: Verdicts, *, seed: int = 0) -> dict[str, Any]:
  """Computes the figures of a comparison of two models.

  Returns:
    `win_rate`, mean preference; `wins`, `ties` and `losses`, shares of pairs;
    `length_controlled`; and the figures of `measure_judge`.
  """
  preference = verdicts.preference
  return {
    "pairs": len(preference),
    "win_rate": mean_by_prompt(preference, verdicts.prompts).as_dict(),
    "wins": float((preference > 0.5).mean()),
    "ties": float((preference == 0.5).mean()),
    "losses": float((preference < 0.5).mean()),
    "length_controlled": _length_controlled(verdicts, seed),
    **measure_judge(verdicts, seed=seed),
  }


def measure_judge(verdicts: Verdicts, *, seed: int = 0) -> dict[str, Any]:
  """Measures how a judge depends on the order and on the length.

  Returns:
    `position_consistency`, share of pairs with the same verdict in both orders;
    `first_position`, share of decided verdicts for the answer that is shown
    first; `longer_preferred`, see `longer_share`; `length_correlation`,
    Spearman's of preference and length difference. Without data a figure is
    None.
  """
  prompts = verdicts.prompts
  both = np.concatenate([verdicts.as_a, 1 - verdicts.as_b])  # 1 for A
  return {
    "position_consistency": mean_by_prompt(
      verdicts.as_a == verdicts.as_b, prompts
    ).as_dict(),
    "first_position": _decided(both, np.concatenate([prompts, prompts])),
    "longer_preferred": longer_share(
      verdicts.preference, verdicts.length, prompts
    ),
    "length_correlation": _resample(
      lambda rows: spearman(verdicts.preference[rows], verdicts.length[rows]),
      prompts,
      seed,
    ),
  }


def mean_by_prompt(values: Any, prompts: np.ndarray) -> Interval:
  """Computes the mean over prompts of proportions [N], with its interval."""
  values = np.asarray(values, np.float64)
  counts = np.bincount(prompts)
  means = np.bincount(prompts, values) / counts
  return statistics.bootstrap_interval(means, share=True)


def longer_share(
  preference: np.ndarray, length: np.ndarray, prompts: np.ndarray
) -> dict[str, Any] | None:
  """Computes in which share of decided pairs the longer answer is preferred.

  Pairs of one length, and ties, do not count; None without others.
  """
  longer = np.where(length > 0, preference, 1 - preference)
  return _decided(np.where(length == 0, 0.5, longer), prompts)


def _decided(values: np.ndarray, prompts: np.ndarray) -> dict[str, Any] | None:
  """Computes the share of values above ½ among those that are not ½."""
  counts = np.bincount(prompts, values != 0.5)
  if not counts.any():
    return None
  return statistics.ratio_interval(
    np.bincount(prompts, values > 0.5), counts, share=True
  ).as_dict()


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Computes Spearman's rank correlation; NaN where all values are equal."""
  ranks = [_ranks(x) for x in (a, b)]
  deviations = [r - r.mean() for r in ranks]
  norm = math.sqrt(math.prod(float(d @ d) for d in deviations))
  return float(deviations[0] @ deviations[1]) / norm if norm else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
  """Returns ranks; equal values share the mean of theirs."""
  _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[level]


def length_controlled_rate(preference: np.ndarray, length: np.ndarray) -> float:
  """Computes the win rate at equal lengths (AlpacaEval 2, arXiv:2404.04475).

  Fits logit P(first is preferred) = θ + φ · tanh(Δ / std Δ), with the length
  difference Δ, and returns it at Δ = 0. This is `length_controlled_minimal` of
  AlpacaEval's program. The leaderboard's variant has a term for the difficulty
  of a prompt, which needs the verdicts of many models.

  Newton's method minimises the cross-entropy, with ½ · 0.1 · φ² and
  ½ · 0.001 · θ² added: a judge of length alone would otherwise drive φ to
  infinity.

  Args:
    preference: [N] 0 to 1, share of the first answer.
    length: [N] Δ.
  """
  scale = length.std() or 1.0
  inputs = np.stack([np.ones(len(length)), np.tanh(length / scale)], axis=1)
  ridge = np.array(_RIDGE)

  def loss(weights: np.ndarray) -> float:
    logits = inputs @ weights
    entropy = np.logaddexp(0, logits) - preference * logits
    return float(entropy.sum() + ridge @ weights**2 / 2)

  weights = np.zeros(2)
  for _ in range(_STEPS):
    probability = _sigmoid(inputs @ weights)
    gradient = inputs.T @ (probability - preference) + ridge * weights
    curvature = probability * (1 - probability)
    hessian = (inputs * curvature[:, None]).T @ inputs + np.diag(ridge)
    step = np.linalg.solve(hessian, gradient)
    size, before = 1.0, loss(weights)
    while loss(weights - size * step) > before and size > 1e-6:
      size /= 2
    weights = weights - size * step
    if np.abs(step).max() < 1e-6:
      break
  return float(_sigmoid(weights[0]))


def _sigmoid(x: Any) -> Any:
  return np.exp(-np.logaddexp(0, -x))


def _length_controlled(verdicts: Verdicts, seed: int) -> dict[str, Any] | None:
  """Returns the rate with its interval; None where it is not determined.

  Without a shorter and a longer answer, nothing separates the length from the
  rest.
  """
  length = verdicts.length
  if not (length >= 0).any() or not (length <= 0).any():
    return None
  preference = verdicts.preference
  return _resample(
    lambda rows: length_controlled_rate(preference[rows], length[rows]),
    verdicts.prompts,
    seed,
  )


def _resample(
  statistic: Callable[[np.ndarray], float], prompts: np.ndarray, seed: int
) -> dict[str, Any] | None:
  """Returns a statistic of the rows with a bootstrap interval over prompts.

  It has no bounds with few prompts, and is None where it is undefined.
  """
  value = statistic(np.arange(len(prompts)))
  if math.isnan(value):
    return None
  order = np.argsort(prompts, kind="stable")
  rows_of = np.split(order, np.cumsum(np.bincount(prompts))[:-1])
  count = len(rows_of)
  low = high = math.nan
  if count >= statistics.FEW:
    generator = np.random.default_rng(seed)
    indices = generator.integers(0, count, (RESAMPLES, count))
    drawn = [
      statistic(np.concatenate([rows_of[i] for i in index]))
      for index in indices
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
  return Interval(value, float(low), float(high), count).as_dict()


def measure_agreement(
  pairs: Sequence[Pair], verdicts: Verdicts, *, seed: int = 0
) -> dict[str, Any]:
  """Compares a judge's verdicts with the labels of pairs.

  Args:
    pairs: N pairs with labels.
    verdicts: their verdicts.
    seed: seed of the bootstrap.

  Returns:
    `accuracy`, on pairs whose majority prefers an answer, where a tie of the
    judge counts ½; `agreement`, chance that the judge agrees with a random
    annotator, where a tie is a verdict too; `annotators`, the same of two
    annotators; `kappa`, Cohen's of judge and majority; the annotators'
    `longer_preferred`; and the figures of `measure_judge`.
  """
  prompts = verdicts.prompts
  verdict = (np.sign(verdicts.preference - 0.5) + 1) / 2
  majority = np.array([pair.majority for pair in pairs])
  decided = majority != 0.5
  shares = [
    float(np.mean(np.array(pair.labels) == v))
    for pair, v in zip(pairs, verdict, strict=True)
  ]
  several = [i for i, pair in enumerate(pairs) if len(pair.labels) > 1]
  accuracy = 1 - np.abs(verdict - majority)
  return {
    "pairs": len(pairs),
    "decided": int(decided.sum()),
    "accuracy": _mean_of(accuracy, np.flatnonzero(decided), prompts),
    "agreement": mean_by_prompt(shares, prompts).as_dict(),
    "annotators": _mean_of(
      np.array([_annotator_agreement(pair.labels) for pair in pairs]),
      several,
      prompts,
    ),
    "kappa": _resample(
      lambda rows: _kappa(verdict[rows], majority[rows]), prompts, seed
    ),
    "labels_longer_preferred": longer_share(majority, verdicts.length, prompts),
    **measure_judge(verdicts, seed=seed),
  }


def _mean_of(
  values: np.ndarray, rows: Sequence[int] | np.ndarray, prompts: np.ndarray
) -> dict[str, Any] | None:
  """Computes the mean of some rows with its interval; None without any."""
  if not len(rows):
    return None
  _, numbers = np.unique(prompts[rows], return_inverse=True)
  return mean_by_prompt(values[rows], numbers).as_dict()


def _annotator_agreement(labels: Sequence[float]) -> float:
  """Returns the share of pairs of annotators that agree."""
  count = len(labels)
  if count < 2:
    return math.nan
  same = sum(labels.count(v) * (labels.count(v) - 1) for v in set(labels))
  return same / (count * (count - 1))


def _kappa(a: np.ndarray, b: np.ndarray) -> float:
  """Computes Cohen's kappa; NaN where chance alone agrees always."""
  chance = sum(float(np.mean(a == v) * np.mean(b == v)) for v in (0, 0.5, 1))
  if chance == 1:
    return math.nan
  return (float(np.mean(a == b)) - chance) / (1 - chance)
