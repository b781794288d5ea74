"""Intervals, win rates, best-of-n and bias entropy, in float64 on the host.

The unit of every interval is the distinct prompt. Samples of one prompt are not
independent, so they are averaged first.

A bootstrap over a few units is too narrow, and over one unit has no width.
Below `FEW` units, proportions use Wilson's interval and means Student's. A
single unit has no interval, and its bounds are NaN. Equal units do not show how
much others would vary: proportions then use Wilson's interval, and other values
have none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal
FEW = 30  # units below which the bootstrap is not used
_ROUNDING = 1e-9  # relative differences below which values count as equal
_CHUNK = 4_000_000  # resampled indices in memory at a time
# 97.5 % quantiles of Student's t with 1 to 29 degrees of freedom.
_T_95 = (
  12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622,
  2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009,
  2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518,
  2.0484, 2.0452,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its 95 % confidence interval.

  Attributes:
    mean: the estimate.
    low: lower bound; NaN if there is no interval.
    high: upper bound; NaN if there is no interval.
    units: number of independent units; None for pooled intervals.
  """

  mean: float
  low: float
  high: float
  units: int | None = None

  def as_dict(self) -> dict[str, Any]:
    """Returns the values for report.json, with None for NaN bounds."""
    known = not (math.isnan(self.low) or math.isnan(self.high))
    result: dict[str, Any] = {
      "mean": self.mean,
      "low": self.low if known else None,
      "high": self.high if known else None,
    }
    return result if self.units is None else result | {"units": self.units}

  def __str__(self) -> str:
    if math.isnan(self.low) or math.isnan(self.high):
      return f"{self.mean:.3f} [–]"
    return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def per_prompt(values: ArrayLike) -> np.ndarray:
  """Averages over the samples of each prompt.

  Args:
    values: [prompts, samples], or [prompts].

  Returns:
    [prompts] float64.

  Raises:
    ValueError: there are no values, or one is not finite.
  """
  array = np.asarray(values, np.float64)
  if array.ndim not in (1, 2) or not array.size:
    raise ValueError(
      f"values of shape {array.shape}, not [prompts] or [prompts, samples]"
    )
  if not np.isfinite(array).all():
    raise ValueError(f"{np.sum(~np.isfinite(array))} values are not finite")
  return array if array.ndim == 1 else array.mean(axis=1)


def bootstrap_interval(
  values: ArrayLike,
  *,
  resamples: int = 2000,
  seed: int = 0,
  paired: ArrayLike | None = None,
  share: bool = False,
) -> Interval:
  """Computes the mean over prompts with its 95 % interval.

  With at least `FEW` prompts the interval is a percentile bootstrap. With fewer
  it is Student's, or Wilson's for a proportion. If all prompts have the same
  value, it is Wilson's for a proportion, and has no bounds otherwise.

  Args:
    values: [prompts, samples], or [prompts]; one row per distinct prompt.
    resamples: number of bootstrap samples.
    seed: seed of the bootstrap.
    paired: values of another model on the same prompts, in the same order. The
      result is then for the mean difference, values − paired.
    share: whether values are proportions, from 0 to 1.
  """
  means = per_prompt(values)
  scale = np.abs(means).max()
  if paired is not None:
    others = per_prompt(paired)
    if others.shape != means.shape:
      raise ValueError(f"{len(means)} prompts are paired with {len(others)}")
    scale = max(scale, np.abs(others).max())
    means = means - others
  if resamples < 1:
    raise ValueError(f"resamples is {resamples}, must be positive")
  count, mean = len(means), float(means.mean())
  equal = _are_equal(means - mean, scale)
  if share:
    _check_shares(means)
    if count > 1 and (count < FEW or equal):
      return dataclasses.replace(
        wilson_interval(float(means.sum()), count), mean=mean, units=count
      )
  if equal:
    return Interval(mean, math.nan, math.nan, count)
  if count < FEW:
    return _student(mean, means - mean, count)
  drawn = _resampled(means, resamples, np.random.default_rng(seed))
  low, high = np.quantile(drawn, (0.025, 0.975))
  return Interval(mean, float(low), float(high), count)


def _check_shares(values: np.ndarray) -> None:
  if values.min() < 0 or values.max() > 1:
    raise ValueError(
      f"proportions range from {values.min()} to {values.max()}, not 0 to 1"
    )


def _are_equal(residuals: np.ndarray, scale: float) -> bool:
  """Returns whether units are equal up to rounding, or there is only one.

  Args:
    residuals: difference of each unit from the mean.
    scale: largest magnitude among the values that were averaged or subtracted.
  """
  return len(residuals) < 2 or np.abs(residuals).max() <= _ROUNDING * scale


def _student(mean: float, residuals: np.ndarray, count: int) -> Interval:
  """Returns Student's interval of a mean of `count` units."""
  deviation = math.sqrt(np.square(residuals).sum() / (count - 1))
  half = student_t(count - 1) * deviation / math.sqrt(count)
  return Interval(mean, mean - half, mean + half, count)


def student_t(freedom: int) -> float:
  """Returns the 97.5 % quantile of Student's t.

  Args:
    freedom: degrees of freedom, at least 1.
  """
  if freedom < 1:
    raise ValueError(f"freedom is {freedom}, must be at least 1")
  if freedom <= len(_T_95):
    return _T_95[freedom - 1]
  z = Z_95  # Expansion in 1 / freedom; its error is below 1e-4 here.
  return (
    z
    + (z**3 + z) / (4 * freedom)
    + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
  )


def linearize_ratio(
  numerators: ArrayLike, denominators: ArrayLike
) -> np.ndarray:
  """Returns [units] values whose mean is Σ numerators / Σ denominators.

  The variance of their mean is, to first order, that of the ratio of sums over
  units.

  Args:
    numerators: [units] float.
    denominators: [units] float, not all 0.
  """
  top, bottom = np.asarray(numerators), np.asarray(denominators)
  ratio = top.sum() / bottom.sum()
  return ratio + (top - ratio * bottom) / bottom.mean()


def ratio_interval(
  numerators: ArrayLike,
  denominators: ArrayLike,
  *,
  resamples: int = 2000,
  seed: int = 0,
  share: bool = False,
) -> Interval:
  """Computes Σ numerators / Σ denominators with its 95 % interval.

  The interval is chosen as in `bootstrap_interval`. Student's is that of the
  linearised ratio. Wilson's uses the effective number of units, (Σ d)² / Σ d².

  Args:
    numerators: [units] float.
    denominators: [units] float, not negative and not all 0.
    resamples: number of bootstrap samples.
    seed: seed of the bootstrap.
    share: whether no numerator exceeds its denominator.
  """
  top, bottom = per_prompt(numerators), per_prompt(denominators)
  if top.shape != bottom.shape or (bottom < 0).any() or not bottom.any():
    raise ValueError("denominators must be positive, one per numerator")
  top, bottom = top[bottom > 0], bottom[bottom > 0]
  count, ratio = len(top), float(top.sum() / bottom.sum())
  residuals = top - ratio * bottom
  equal = _are_equal(residuals, np.abs(top).max())
  if share:
    _check_shares(top / bottom)
    if count > 1 and (count < FEW or equal):
      effective = bottom.sum() ** 2 / np.square(bottom).sum()
      return dataclasses.replace(
        wilson_interval(ratio * effective, effective), mean=ratio, units=count
      )
  if equal:
    return Interval(ratio, math.nan, math.nan, count)
  if count < FEW:
    return _student(ratio, residuals / bottom.mean(), count)
  generator = np.random.default_rng(seed)
  drawn = np.empty(resamples)
  for i in range(resamples):
    index = generator.integers(0, count, count)
    drawn[i] = top[index].sum() / bottom[index].sum()
  low, high = np.quantile(drawn, (0.025, 0.975))
  return Interval(ratio, float(low), float(high), count)


def pooled_interval(
  groups: Sequence[ArrayLike],
  *,
  resamples: int = 2000,
  seed: int = 0,
  share: bool = False,
) -> Interval:
  """Computes the mean over seeds of means over prompts, with its interval.

  With two or more seeds, the 95 % interval is Student's over the seeds' means,
  whose spread includes the variation of seeds and of prompts. It is at least as
  wide as the interval over the prompts within seeds, in case few seeds agree by
  chance. With one seed, it is over the prompts, as in `bootstrap_interval`.

  If all prompts of all seeds have the same value, the interval is that of the
  seed with the fewest prompts: Wilson's for a proportion, and without bounds
  otherwise.

  Args:
    groups: values of each seed, [prompts, samples] or [prompts]; sizes may
      differ.
    resamples: number of bootstrap samples, with one seed.
    seed: seed of the bootstrap.
    share: whether values are proportions, from 0 to 1.
  """
  means = [per_prompt(values) for values in groups]
  if not means:
    raise ValueError("no seeds")
  count = len(means)
  centres = np.array([seed_means.mean() for seed_means in means])
  centre = float(centres.mean())
  values = np.concatenate(means)
  if count == 1 or _are_equal(values - centre, np.abs(values).max()):
    one = bootstrap_interval(
      min(means, key=len), resamples=resamples, seed=seed, share=share
    )
    return dataclasses.replace(one, units=None)
  over_seeds = student_t(count - 1) * centres.std(ddof=1) / math.sqrt(count)
  variances = [v.var(ddof=1) / len(v) if len(v) > 1 else 0.0 for v in means]
  over_prompts = Z_95 * math.sqrt(sum(variances)) / count
  half = max(float(over_seeds), over_prompts)
  return Interval(centre, centre - half, centre + half)


def _resampled(
  values: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
  """Returns the means of bootstrap samples, [resamples]."""
  count = len(values)
  drawn = np.empty(resamples)
  rows = max(1, _CHUNK // count)
  for start in range(0, resamples, rows):
    stop = min(start + rows, resamples)
    index = generator.integers(0, count, (stop - start, count))
    drawn[start:stop] = values[index].mean(axis=1)
  return drawn


def win_rate(scores_a: ArrayLike, scores_b: ArrayLike) -> np.ndarray:
  """Computes the fraction of sample pairs in which A wins; ties count ½.

  Args:
    scores_a: [prompts, samples of A], or [prompts].
    scores_b: [prompts, samples of B], or [prompts], the same prompts.

  Returns:
    [prompts] float64, for `bootstrap_interval`.
  """
  pair = []
  for scores in (scores_a, scores_b):
    array = np.asarray(scores, np.float64)
    per_prompt(array)  # Checks shape and values.
    pair.append(array[:, None] if array.ndim == 1 else array)
  a, b = pair
  if len(a) != len(b):
    raise ValueError(f"A has {len(a)} prompts, B has {len(b)}")
  difference = a[:, :, None] - b[:, None, :]
  return (0.5 * (np.sign(difference) + 1)).mean(axis=(1, 2))


def wilson_interval(successes: float, n: float) -> Interval:
  """Computes a proportion with Wilson's 95 % score interval.

  Args:
    successes: number of successes; a tie may count ½.
    n: number of independent trials.

  Returns:
    The proportion with its interval, which lies within [0, 1].
  """
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(f"{successes} successes in {n} trials")
  share = successes / n
  scale = 1 + Z_95**2 / n
  centre = (share + Z_95**2 / (2 * n)) / scale
  spread = share * (1 - share) / n + Z_95**2 / (4 * n * n)
  half = Z_95 * math.sqrt(spread) / scale
  low = 0.0 if successes == 0 else max(0.0, centre - half)
  high = 1.0 if successes == n else min(1.0, centre + half)
  return Interval(share, low, high)


def best_of_n_kl(n: int) -> float:
  """Computes the KL of best-of-n from its base policy, in nats.

  ln n − (n − 1)/n is exact when no two samples are equal, and an upper bound
  otherwise
  (arXiv:2210.10760, section 2.1).
  """
  if n < 1:
    raise ValueError(f"n is {n}, must be at least 1")
  return math.log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
  """Returns the powers of two up to `most`: 1, 2, 4, …"""
  return [2**i for i in range(most.bit_length()) if 2**i <= most]


def unbiased_best_of_n(
  proxy: ArrayLike, gold: ArrayLike, n: int
) -> float | np.ndarray:
  """Estimates the gold score of the best of n by proxy, from N ≥ n samples.

  Σ_i C(i − 1, n − 1) / C(N, n) · gold of the i-th lowest by proxy: the mean
  over all subsets of n (arXiv:2210.10760). Ties of the proxy are broken at
  random, so tied samples share their weights.

  Args:
    proxy: [N] or [prompts, N] scores by which the best is selected.
    gold: scores that are averaged, of the same shape.
    n: number of samples to select from.

  Returns:
    A float, or [prompts] float64.
  """
  proxies, golds = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
  if proxies.shape != golds.shape or proxies.ndim not in (1, 2):
    raise ValueError(f"proxy {proxies.shape} and gold {golds.shape}")
  total = proxies.shape[-1]
  if not 1 <= n <= total:
    raise ValueError(f"n is {n}, must be from 1 to {total} samples")
  weights = np.zeros(total)
  weights[-1] = n / total  # C(N − 1, n − 1) / C(N, n)
  for i in range(total - 1, 0, -1):
    weights[i - 1] = weights[i] * max(i - n + 1, 0) / i

  def expectation(proxy: np.ndarray, gold: np.ndarray) -> float:
    order = np.argsort(proxy, kind="stable")
    _, level = np.unique(proxy[order], return_inverse=True)
    shared = np.bincount(level, weights=weights) / np.bincount(level)
    return float(np.dot(shared[level], gold[order]))

  if proxies.ndim == 1:
    return expectation(proxies, golds)
  pairs = zip(proxies, golds, strict=True)
  return np.array([expectation(p, g) for p, g in pairs])


def bias_entropy(probs: ArrayLike) -> float | np.ndarray:
  """Computes the entropy −Σ p log2 p over choices, in bits.

  1 bit means that two choices are equally likely (section D of
  arXiv:2203.02155, for Winogender and CrowS-Pairs).

  Args:
    probs: [choices] or [prompts, choices] probabilities, not necessarily
      normalised.

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
  entropy = np.abs(bits.sum(axis=-1))  # abs: avoids −0.0
  return float(entropy) if array.ndim == 1 else entropy
