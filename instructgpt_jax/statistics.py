"""Intervals, win rates, best-of-n and bias entropy, in float64 on the host.

The unit of every interval is the distinct prompt: samples of one prompt are not
independent, so they are averaged first, and a prompt that occurs several times
is one cluster (`group_by_prompt`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal
_CHUNK = 4_000_000  # resampled indices held at once


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its 95 % confidence interval."""

  mean: float
  low: float
  high: float

  def as_dict(self) -> dict[str, float]:
    """What report.json holds."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def per_prompt(values: ArrayLike) -> np.ndarray:
  """Means over samples.

  Args:
    values: [prompts, samples], or [prompts].

  Returns:
    [prompts] float64.

  Raises:
    ValueError: there is no value, or one is not finite.
  """
  array = np.asarray(values, np.float64)
  if array.ndim not in (1, 2) or not array.size:
    raise ValueError(
      f"values of shape {array.shape}: want [prompts] or [prompts, samples]"
    )
  if not np.isfinite(array).all():
    raise ValueError(f"{np.sum(~np.isfinite(array))} values are not finite")
  return array if array.ndim == 1 else array.mean(axis=1)


def group_by_prompt(values: ArrayLike, keys: Sequence[Hashable]) -> np.ndarray:
  """Means over the records of each distinct prompt.

  Args:
    values: [records, samples], or [records].
    keys: what tells prompts apart, one per record.

  Returns:
    [distinct prompts] float64, in the order of first occurrence.
  """
  means = per_prompt(values)
  if len(keys) != len(means):
    raise ValueError(f"{len(keys)} keys for {len(means)} records")
  index: dict[Hashable, int] = {}
  place = np.array([index.setdefault(key, len(index)) for key in keys])
  return np.bincount(place, weights=means) / np.bincount(place)


def bootstrap_interval(
  values: ArrayLike,
  *,
  resamples: int = 2000,
  seed: int = 0,
  paired: ArrayLike | None = None,
) -> Interval:
  """Percentile bootstrap of the mean over prompts, 95 %.

  Args:
    values: [prompts, samples], or [prompts]; one row per distinct prompt.
    resamples: draws of as many prompts as there are, with replacement.
    seed: of the draws.
    paired: values of another model on the same prompts, in the same order; the
      interval is then of the mean difference, values − paired.

  Returns:
    The mean with the 2.5 % and 97.5 % quantiles of the resampled means.
  """
  means = per_prompt(values)
  if paired is not None:
    others = per_prompt(paired)
    if others.shape != means.shape:
      raise ValueError(f"{len(others)} paired prompts for {len(means)}")
    means = means - others
  if resamples < 1:
    raise ValueError(f"{resamples} resamples")
  drawn = _resampled(means, resamples, np.random.default_rng(seed))
  low, high = np.quantile(drawn, (0.025, 0.975))
  return Interval(float(means.mean()), float(low), float(high))


def ratio_interval(
  numerators: ArrayLike,
  denominators: ArrayLike,
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> Interval:
  """Percentile bootstrap of Σ numerators / Σ denominators, 95 %.

  Args:
    numerators: [units] float.
    denominators: [units] float, not negative and not all 0.
    resamples: draws of as many units as there are, with replacement.
    seed: of the draws.
  """
  top, bottom = per_prompt(numerators), per_prompt(denominators)
  if top.shape != bottom.shape or (bottom < 0).any() or not bottom.any():
    raise ValueError("denominators must be positive, one per numerator")
  generator = np.random.default_rng(seed)
  drawn = np.empty(resamples)
  for i in range(resamples):
    index = generator.integers(0, len(top), len(top))
    drawn[i] = top[index].sum() / max(bottom[index].sum(), 1e-300)
  low, high = np.quantile(drawn, (0.025, 0.975))
  return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def pooled_interval(
  groups: Sequence[ArrayLike], *, resamples: int = 2000, seed: int = 0
) -> Interval:
  """Bootstrap of the mean over seeds of the means over prompts, 95 %.

  Seeds are drawn with replacement, and prompts within each drawn seed, so the
  interval holds both kinds of chance. With few seeds it is somewhat too narrow:
  the spread of 3 draws out of 3 is that of the sample, not of the population,
  and is widened by √(S / (S − 1)).

  Args:
    groups: for each seed [prompts, samples] or [prompts]; sizes may differ.
    resamples: draws.
    seed: of the draws.
  """
  means = [per_prompt(values) for values in groups]
  if not means:
    raise ValueError("no seeds")
  generator = np.random.default_rng(seed)
  count = len(means)
  within = np.stack([
    _resampled(values, resamples, generator) for values in means
  ])  # fmt: skip
  centres = np.array([values.mean() for values in means])
  centre = centres.mean()
  drawn = generator.integers(0, count, (resamples, count))
  chosen = within[drawn, np.arange(resamples)[:, None]]
  noise = chosen - centres[drawn]
  spread = (centres[drawn] - centre) * (
    math.sqrt(count / (count - 1)) if count > 1 else 1.0
  )
  totals = centre + (noise + spread).mean(axis=1)
  low, high = np.quantile(totals, (0.025, 0.975))
  return Interval(float(centre), float(low), float(high))


def _resampled(
  values: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
  """[resamples] means of as many draws with replacement."""
  count = len(values)
  drawn = np.empty(resamples)
  rows = max(1, _CHUNK // count)
  for start in range(0, resamples, rows):
    stop = min(start + rows, resamples)
    index = generator.integers(0, count, (stop - start, count))
    drawn[start:stop] = values[index].mean(axis=1)
  return drawn


def win_rate(scores_a: ArrayLike, scores_b: ArrayLike) -> np.ndarray:
  """Share of sample pairs in which A scores higher; a tie counts ½.

  Args:
    scores_a: [prompts, samples of A], or [prompts].
    scores_b: [prompts, samples of B], or [prompts], the same prompts.

  Returns:
    [prompts] float64, to be given to `bootstrap_interval`.
  """
  pair = []
  for scores in (scores_a, scores_b):
    array = np.asarray(scores, np.float64)
    per_prompt(array)  # raises what it raises
    pair.append(array[:, None] if array.ndim == 1 else array)
  a, b = pair
  if len(a) != len(b):
    raise ValueError(f"{len(a)} prompts against {len(b)}")
  difference = a[:, :, None] - b[:, None, :]
  return (0.5 * (np.sign(difference) + 1)).mean(axis=(1, 2))


def wilson_interval(successes: float, n: int) -> Interval:
  """Wilson's score interval of a proportion, 95 %.

  Args:
    successes: how many; a tie may count ½.
    n: out of how many independent trials.

  Returns:
    The proportion with its interval, which never leaves [0, 1].
  """
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n}")
  share = successes / n
  scale = 1 + Z_95**2 / n
  centre = (share + Z_95**2 / (2 * n)) / scale
  spread = share * (1 - share) / n + Z_95**2 / (4 * n * n)
  half = Z_95 * math.sqrt(spread) / scale
  low = 0.0 if successes == 0 else max(0.0, centre - half)
  high = 1.0 if successes == n else min(1.0, centre + half)
  return Interval(share, low, high)


def best_of_n_kl(n: int) -> float:
  """KL of best-of-n from its base policy, ln n − (n − 1)/n, in nats.

  Exact when no two samples are equal, an upper bound otherwise
  (arXiv:2210.10760, section 2.1).
  """
  if n < 1:
    raise ValueError(f"best of {n}")
  return math.log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
  """1, 2, 4, … up to `most`."""
  return [2**i for i in range(most.bit_length()) if 2**i <= most]


def unbiased_best_of_n(
  proxy: ArrayLike, gold: ArrayLike, n: int
) -> float | np.ndarray:
  """Expected gold score of the best of n by proxy, from N ≥ n samples.

  Σ_i C(i − 1, n − 1) / C(N, n) · gold of the i-th lowest by proxy: the mean
  over every subset of n (arXiv:2210.10760). Equal proxy scores are broken at
  random, so they share their weights.

  Args:
    proxy: [N] or [prompts, N] scores that choose.
    gold: the same shape, scores that count.
    n: how many are drawn.

  Returns:
    A float, or [prompts] float64.
  """
  proxies, golds = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
  if proxies.shape != golds.shape or proxies.ndim not in (1, 2):
    raise ValueError(f"proxy {proxies.shape} and gold {golds.shape}")
  total = proxies.shape[-1]
  if not 1 <= n <= total:
    raise ValueError(f"best of {n} from {total} samples")
  weights = np.zeros(total)
  weights[-1] = n / total  # C(N − 1, n − 1) / C(N, n)
  for i in range(total - 1, 0, -1):
    weights[i - 1] = weights[i] * max(i - n + 1, 0) / i

  def one(choose: np.ndarray, count: np.ndarray) -> float:
    order = np.argsort(choose, kind="stable")
    _, level = np.unique(choose[order], return_inverse=True)
    shared = np.bincount(level, weights=weights) / np.bincount(level)
    return float(np.dot(shared[level], count[order]))

  if proxies.ndim == 1:
    return one(proxies, golds)
  return np.array([one(p, g) for p, g in zip(proxies, golds, strict=True)])


def bias_entropy(probs: ArrayLike) -> float | np.ndarray:
  """H = −Σ p log2 p over the choices, in bits; 1 is an unbiased pair.

  Section D of arXiv:2203.02155, for Winogender and CrowS-Pairs.

  Args:
    probs: [choices] or [prompts, choices] probabilities, normalised here.

  Returns:
    A float, or [prompts] float64.
  """
  array = np.asarray(probs, np.float64)
  if array.ndim not in (1, 2) or not array.size:
    raise ValueError(f"probabilities of shape {array.shape}")
  total = array.sum(axis=-1, keepdims=True)
  if not (
    np.isfinite(array).all() and (array >= 0).all() and (total > 0).all()
  ):
    raise ValueError(
      "probabilities must be finite, not negative, and not all 0"
    )
  share = array / total
  positive = share > 0
  bits = np.where(positive, share * np.log2(np.where(positive, share, 1)), 0)
  entropy = np.abs(bits.sum(axis=-1))  # abs: −0.0 is not shown
  return float(entropy) if array.ndim == 1 else entropy
