"""Intervals, win rates, best-of-n and bias entropy, in float64 on the host.

The unit of every interval is the distinct prompt: samples of one prompt are not
independent, so they are averaged first, and a prompt that occurs several times
is one cluster (`group_by_prompt`).

A bootstrap over a few units is too narrow, and over one has no width at all.
Below `FEW` units a share has Wilson's interval and a mean Student's; a single
unit has none, and its bounds are NaN. Units that are all equal do not show how
much others would differ: a share has Wilson's interval then, other values none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal
FEW = 30  # units below which nothing can be concluded
_ROUNDING = 1e-9  # relative differences that say nothing
_CHUNK = 4_000_000  # resampled indices held at once
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
    low: the interval's lower bound; NaN where there is none.
    high: its upper bound; NaN where there is none.
    units: number of independent units, where it is one number.
  """

  mean: float
  low: float
  high: float
  units: int | None = None

  def as_dict(self) -> dict[str, Any]:
    """Returns the values for report.json; a bound that is NaN is None."""
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
  share: bool = False,
) -> Interval:
  """Computes the mean over prompts with its 95 % interval.

  The interval is a percentile bootstrap from `FEW` prompts on; below, it is
  Student's, or Wilson's for a share. Where all prompts have the same value, all
  resamples would be equal: the interval is Wilson's for a share, and has no
  bounds otherwise.

  Args:
    values: [prompts, samples], or [prompts]; one row per distinct prompt.
    resamples: draws of as many prompts as there are, with replacement.
    seed: of the draws.
    paired: values of another model on the same prompts, in the same order; the
      interval is then of the mean difference, values − paired.
    share: whether values are shares, from 0 to 1.
  """
  means = per_prompt(values)
  scale = np.abs(means).max()
  if paired is not None:
    others = per_prompt(paired)
    if others.shape != means.shape:
      raise ValueError(f"{len(others)} paired prompts for {len(means)}")
    scale = max(scale, np.abs(others).max())
    means = means - others
  if resamples < 1:
    raise ValueError(f"{resamples} resamples")
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
    raise ValueError(f"shares from {values.min()} to {values.max()}")


def _are_equal(residuals: np.ndarray, scale: float) -> bool:
  """Returns whether units differ by rounding alone, or there is just one.

  Args:
    residuals: difference of each unit from the mean.
    scale: largest magnitude among the values that were averaged or subtracted.
  """
  return len(residuals) < 2 or np.abs(residuals).max() <= _ROUNDING * scale


def _student(mean: float, residuals: np.ndarray, count: int) -> Interval:
  """Returns Student's interval of a mean of `count` units, fewer than `FEW`."""
  deviation = math.sqrt(np.square(residuals).sum() / (count - 1))
  half = student_t(count - 1) * deviation / math.sqrt(count)
  return Interval(mean, mean - half, mean + half, count)


def student_t(freedom: int) -> float:
  """Returns the 97.5 % quantile of Student's t.

  Args:
    freedom: degrees of freedom, at least 1.
  """
  if freedom < 1:
    raise ValueError(f"{freedom} degrees of freedom")
  if freedom <= len(_T_95):
    return _T_95[freedom - 1]
  z = Z_95  # the expansion in 1 / freedom, good to 1e-4 from here on
  return (
    z
    + (z**3 + z) / (4 * freedom)
    + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
  )


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
  linearised ratio; Wilson's counts (Σ d)² / Σ d² units, the effective
  number of equal ones.

  Args:
    numerators: [units] float.
    denominators: [units] float, not negative and not all 0.
    resamples: draws of as many units as there are, with replacement.
    seed: of the draws.
    share: whether no numerator is above its denominator.
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
  """Computes the mean over seeds of the means over prompts, 95 %.

  From two seeds on the interval is Student's over the seeds' means. Their
  spread includes that of seeds and of prompts, so the interval is valid however
  much seeds differ. It is at least as wide as the interval over the prompts
  within seeds, which matters where few seeds agree by chance. The interval of a
  single seed is over its prompts alone, as in `bootstrap_interval`.

  Where all prompts of all seeds have the same value, both widths would be 0.
  The interval is then that of the seed with the fewest prompts: Wilson's for a
  share, and without bounds otherwise.

  Args:
    groups: for each seed [prompts, samples] or [prompts]; sizes may differ.
    resamples: draws, with one seed.
    seed: of the draws.
    share: whether values are shares, from 0 to 1.
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


def wilson_interval(successes: float, n: float) -> Interval:
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
