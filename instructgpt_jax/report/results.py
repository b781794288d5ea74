"""Reads and formats the numbers of a report.

The results are one nested dict; `report.json` is that dict, tidied. Every part
may be missing; the page and the table omit it.

  title     str
  seed      int
  model     {"parameters": int}
  judge     str: "gold labeler of the world", or "second reward model trained
            on held-out rankings …"
  judge_kind  "gold" | "reward_model" (optional; tells the page to warn that
            no gold labeler exists. Without it, a judge whose text begins with
            "gold" is gold.)
  models    {name: model}; names base, prompted, sft, best_of_n, ppo, ppo_ptx,
            others follow in their own order. A model holds, at temperature 1:
              win_rate         share of wins against SFT, a tie is one half
              gold             0-1, the gold labeler's score
              judge_score      where no gold labeler exists: the judge's score
              likert           1-7
              rm_score         of the reward model trained against
              kl               nats a response, to the policy's start; not at
                               temperature 0, where answers are no sample
              lm_loss          nats a token, on held-out pretraining text
              response_length  tokens
              ended            share of responses ended by end-of-text
              tasks            {task: accuracy 0-1}
              failures         {field of the label form: rate 0-1}
              greedy           the same keys at temperature 0
  reward_model  {name: leaf}, or nested one level deeper; "accuracy" and
            "held_out_labelers" are shares of pairs ordered right
  tax       {name: leaf}; "removed_by_ptx" is the share of the LM loss added
            by PPO to the base model's that PPO-ptx takes away; computed from
            the means when it is missing
  seconds   {stage: seconds}
  sources   {stage: {field: [figures of a part]}} of weighted sources, see
            `training.mixed_sources`
  samples   [{"prompt": str, "answers": {model: str},
              "model_prompts": {model: str} (optional), the text that the
                model continued, with the template and special tokens
              "scores": {model: number} (optional)}]
  training_samples  {stage: lines of its samples.jsonl}, see
            `training_samples.read_stages`
  curves    {stage: {metric: [[step, value], …]}}, see `curves.read_curves`
  notes     [str]
  config    the whole config as a dict

A leaf is {"mean", "low", "high"}, where low and high bound a 95 % interval, or
null if the number has no meaning. Null bounds are unknown, for instance from
one prompt. "units" is the number of prompts, rankings or rows in the mean;
below `statistics.FEW` nothing is concluded from it. A bare number is a leaf
without an interval. NaN and infinity become null.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from instructgpt_jax import statistics

Results = Mapping[str, Any]

MODELS = {
  "base": "base",
  "prompted": "prompted",
  "sft": "SFT",
  "best_of_n": "best of n",
  "ppo": "PPO",
  "ppo_ptx": "PPO-ptx",
}


class Metric(NamedTuple):
  """How a metric is named, counted and printed."""

  name: str
  title: str
  unit: str
  digits: int
  better: int  # 1 higher is better, -1 lower is better, 0 neither
  short: str


METRICS = (
  Metric("gold", "Gold score", "0 to 1", 3, 1, "gold"),
  Metric("judge_score", "Judge's score", "logits", 3, 1, "judge"),
  Metric("win_rate", "Win rate", "against SFT", 3, 1, "win rate"),
  Metric("likert", "Likert", "1 to 7", 2, 1, "Likert"),
  Metric("rm_score", "RM score", "logits", 2, 1, "RM score"),
  Metric("kl", "KL", "nats a response", 2, 0, "KL"),
  Metric("lm_loss", "LM loss", "nats a token", 3, -1, "LM loss"),
  Metric("response_length", "Length", "tokens", 1, 0, "tokens"),
  Metric("ended", "Ended", "share", 2, 0, "ended"),
)
TEMPERATURES = (("", "temperature 1"), ("greedy", "temperature 0"))


class Leaf(NamedTuple):
  """A mean with the bounds of its 95 % interval, if it has one."""

  mean: float
  low: float | None = None
  high: float | None = None
  units: int | None = None  # that the mean is of, where it is known

  @property
  def few(self) -> bool:
    """Returns whether its units are too few to conclude anything from."""
    return self.units is not None and self.units < statistics.FEW

  def as_dict(self) -> dict[str, Any]:
    """Returns the values for report.json and results.json."""
    result = self._asdict()
    if self.units is None:
      del result["units"]
    return result

  def bounds(self, digits: int, scale: float = 1) -> str:
    """Returns ' [0.620, 0.674]', ' [–]' where it is unknown, or ''."""
    if self.low is None or self.high is None:
      return "" if self.units is None else " [–]"
    low, high = scale * self.low, scale * self.high
    return f" [{low:.{digits}f}, {high:.{digits}f}]"

  def text(self, digits: int = 3) -> str:
    """Returns '0.648 [0.620, 0.674]'."""
    return f"{self.mean:.{digits}f}{self.bounds(digits)}"

  def percent(self) -> str:
    """Returns '64.8 % [62.0, 67.4]'."""
    return f"{100 * self.mean:.1f}\u00a0%{self.bounds(1, 100)}"

  def narrow(self, digits: int = 3) -> str:
    """Returns '0.648±0.027', half of the interval's width."""
    text = f"{self.mean:.{digits}f}"
    if self.low is None or self.high is None:
      return text if self.units is None else f"{text}±–"
    return f"{text}±{(self.high - self.low) / 2:.{digits}f}"


def number(value: Any) -> float | None:
  """Converts a value to a finite float, or returns None."""
  if isinstance(value, bool) or value is None or isinstance(value, str):
    return None
  try:
    result = float(value)
  except (TypeError, ValueError):
    return None
  return result if math.isfinite(result) else None


def leaf(value: Any) -> Leaf | None:
  """Reads {"mean", "low", "high"} or a number; None when there is none."""
  if not isinstance(value, Mapping):
    mean = number(value)
    return None if mean is None else Leaf(mean)
  mean = number(value.get("mean"))
  if mean is None:
    return None
  units = number(value.get("units"))
  count = None if units is None else int(units)
  low, high = number(value.get("low")), number(value.get("high"))
  if low is None or high is None:
    return Leaf(mean, units=count)
  return Leaf(mean, low, high, count)


def mapping(value: Any) -> Mapping[str, Any]:
  """Returns the value if it is a mapping, else an empty one."""
  return value if isinstance(value, Mapping) else {}


def label(model: str) -> str:
  """Returns a model's printed name."""
  return MODELS.get(model, model)


def model_names(results: Results) -> list[str]:
  """Lists the models present: known ones in their order, then others."""
  models = mapping(results.get("models"))
  known = [name for name in MODELS if isinstance(models.get(name), Mapping)]
  return known + [
    name
    for name, value in models.items()
    if name not in MODELS and isinstance(value, Mapping)
  ]


def measured(results: Results, model: str, temperature: str = "") -> Any:
  """Returns a model's metrics at temperature 1, or under "greedy"."""
  metrics = mapping(mapping(results.get("models")).get(model))
  return mapping(metrics.get(temperature)) if temperature else metrics


def value(
  results: Results, model: str, metric: str, temperature: str = ""
) -> Leaf | None:
  """Returns one metric of one model."""
  return leaf(measured(results, model, temperature).get(metric))


def present(results: Results, temperature: str = "") -> list[Metric]:
  """Lists the metrics that at least one model has."""
  return [
    metric
    for metric in METRICS
    if any(
      value(results, name, metric.name, temperature)
      for name in model_names(results)
    )
  ]


def main_metric(results: Results) -> Metric | None:
  """Returns gold where it exists, else the judge's score, else the RM's."""
  metrics = {metric.name: metric for metric in present(results)}
  for name in ("gold", "judge_score", "rm_score"):
    if name in metrics:
      return metrics[name]
  return None


def has_gold(results: Results) -> bool:
  """Returns whether the judge is the gold labeler."""
  kind = results.get("judge_kind")
  if kind is not None:
    return kind == "gold"
  return str(results.get("judge", "gold")).lower().startswith("gold")


def groups(
  results: Results, kind: str, temperature: str = ""
) -> dict[str, dict[str, Leaf]]:
  """Transposes `failures` or `tasks` to {field: {model: leaf}}."""
  result: dict[str, dict[str, Leaf]] = {}
  for name in model_names(results):
    fields = mapping(measured(results, name, temperature).get(kind))
    for field, item in fields.items():
      item = leaf(item)
      if item is not None:
        result.setdefault(str(field), {})[name] = item
  return result


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
  """Yields the leaves of a nested dict under names joined by ', '."""
  for key, item in mapping(tree).items():
    name = f"{prefix}, {words(key)}" if prefix else words(key)
    interval = leaf(item)
    if interval is not None:
      yield name, interval
    elif isinstance(item, Mapping) and "mean" not in item:
      yield from flat(item, name)


def words(name: Any) -> str:
  """Replaces the underscores of a field's name by spaces."""
  return str(name).replace("_", " ")


def duration(seconds: float) -> str:
  """Formats seconds as '8.4 s', '3 min 20 s' or '2 h 05 min'."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  whole = round(seconds)
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def removed_by_ptx(results: Results) -> Leaf | None:
  """Computes the share of PPO's added LM loss that PPO-ptx removes.

  Returns:
    The share, or None if PPO has not added any loss.
  """
  tax = mapping(results.get("tax"))
  if "removed_by_ptx" in tax:
    return leaf(tax["removed_by_ptx"])
  base, ppo, ptx = (
    value(results, name, "lm_loss") for name in ("base", "ppo", "ppo_ptx")
  )
  if base is None or ppo is None or ptx is None or ppo.mean <= base.mean:
    return None
  return Leaf((ppo.mean - ptx.mean) / (ppo.mean - base.mean))


def tidy(value: Any) -> Any:
  """Converts to JSON's types; numbers that are not finite become null."""
  if isinstance(value, Mapping):
    return {_text(str(key)): tidy(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [tidy(item) for item in value]
  if value is None or isinstance(value, (bool, int)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, str):
    return _text(value)
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return tidy(dataclasses.asdict(value))
  to_list = getattr(value, "tolist", None)
  if to_list is not None:
    return tidy(to_list())
  return _text(str(value))


def _text(text: str) -> str:
  """Makes text encodable as UTF-8: a lone surrogate becomes '?'."""
  return text.encode("utf-8", "replace").decode("utf-8")
