"""States what the numbers of a report show, in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from instructgpt_jax import statistics
from instructgpt_jax.report.results import (
  Leaf,
  Results,
  has_gold,
  label,
  leaf,
  main_metric,
  mapping,
  model_names,
  number,
  removed_by_ptx,
  value,
)

_SFT = "supervised fine-tuning (SFT)"
# How the models were trained, the main one first.
_TRAINED_BY = {
  "ppo_ptx": "PPO with pretraining gradients (PPO-ptx)",
  "ppo": "PPO",
  "sft": _SFT,
}
_UNITS = (
  (1e12, "trillion"),
  (1e9, "billion"),
  (1e6, "million"),
  (1e3, "thousand"),
)


class _Sentence(NamedTuple):
  """A sentence, and whether its data are too few to conclude from."""

  text: str
  few: bool = False


def headline_model(results: Results) -> str:
  """Returns the model whose win rate is the main result, "" for none."""
  for name in ("ppo_ptx", "ppo"):
    if value(results, name, "win_rate") is not None:
      return name
  return ""


def opening(results: Results) -> str:
  """Says in one sentence what was trained, and the main result.

  The main result is a win rate against SFT. Where no model has one, it is the
  score of the last model that was trained.

  Returns:
    A sentence, or "" when there is no result.
  """
  name = headline_model(results)
  if name:
    result = _win_rate_clause(results, name)
  else:
    metric = main_metric(results)
    trained = [
      n for n in _TRAINED_BY if metric and value(results, n, metric.name)
    ]
    if metric is None or not trained:
      return ""
    name = trained[0]
    score = value(results, name, metric.name)
    assert score is not None
    result = (
      f"the mean {_lower(metric.title)} of its answers ({metric.unit}) is"
      f" {score.mean:.{metric.digits}f}{_interval(score, metric.digits)}"
    )
    if score.few:
      result += f", from only {_prompts(score)}, so it shows nothing"
  judge = str(results.get("judge") or "").strip()
  if judge:
    article = "" if judge.split()[0].lower() in ("a", "an", "the") else "the "
    result += f", judged by {article}{judge}"
  return f"{_size(results)} was trained by {_TRAINED_BY[name]}: {result}."


def _win_rate_clause(results: Results, name: str) -> str:
  rate = value(results, name, "win_rate")
  assert rate is not None
  percent = f"{100 * rate.mean:.1f} %"
  wins = f"{percent} of comparisons{_interval(rate, 1, 100, ' %')}"
  if rate.few:
    return (
      f"on only {_prompts(rate)}, too few to conclude anything, its answers win"
      f" {wins} with those of {_SFT}"
    )
  if rate.low is None or rate.high is None:
    return f"its answers win {wins} with those of {_SFT}"
  if rate.low > 0.5:
    return f"its answers beat those of {_SFT} in {wins}"
  if rate.high < 0.5:
    return f"its answers lose to those of {_SFT}, winning {wins}"
  return f"its answers cannot be told from those of {_SFT}, winning {wins}"


def _size(results: Results) -> str:
  """Returns the model with its number of parameters, where it is known."""
  count = number(mapping(results.get("model")).get("parameters"))
  if not count or count < 1:
    return "A language model"
  for unit, name in _UNITS:
    if count >= 0.9995 * unit:
      return f"A language model of {count / unit:.3g} {name} parameters"
  return f"A language model of {count:.0f} parameters"


def _interval(
  interval: Leaf, digits: int, scale: float = 1, unit: str = ""
) -> str:
  """Returns ' (95 % interval 58.3 to 63.3 %)', or '' without bounds."""
  if interval.low is None or interval.high is None:
    return ""
  low, high = scale * interval.low, scale * interval.high
  return f" (95 % interval {low:.{digits}f} to {high:.{digits}f}{unit})"


def _prompts(interval: Leaf) -> str:
  count = interval.units
  return f"{count} held-out prompt{'' if count == 1 else 's'}"


def _lower(title: str) -> str:
  """Returns a title for use within a sentence; "RM score" stays."""
  return title if title[:2].isupper() else title[:1].lower() + title[1:]


def verdict(results: Results, *, without: str = "") -> list[str]:
  """Summarises the numbers, first whether the data suffice.

  Numbers of too few prompts, rankings or rows follow a sentence with their
  counts, and have no conclusion.

  Args:
    results: see `results`.
    without: model whose win rate is left out, because it stands elsewhere.
  """
  sentences = [
    *_wins(results, without),
    *_order(results),
    *_greedy(results),
    *_tax(results),
    *_reward_model(results),
  ]
  firm = [s.text for s in sentences if not s.few]
  loose = [s.text for s in sentences if s.few]
  shown = [*firm, *([_too_few(results)] if loose else []), *loose]
  if shown and results.get("judge") and not has_gold(results):
    shown.append(
      f"No gold labeler exists for these data: the judge is a "
      f"{_article(str(results['judge']))}, which can itself be wrong."
    )
  return shown


def small_samples(results: Results) -> dict[str, int]:
  """Counts the units that are too few to conclude from."""
  answers = [
    interval
    for name in model_names(results)
    for metric in ("win_rate", "gold", "judge_score", "rm_score")
    if (interval := value(results, name, metric))
  ]
  losses = [value(results, name, "lm_loss") for name in model_names(results)]
  reward = mapping(results.get("reward_model"))
  counts: dict[str, int] = {}
  for what, leaves in (
    ("held-out prompts", answers),
    ("rows of held-out text", losses),
    ("ranked held-out prompts", [leaf(reward.get("accuracy"))]),
    (
      "ranked prompts of held-out labelers",
      [leaf(reward.get("held_out_labelers"))],
    ),
  ):
    units = [x.units for x in leaves if x and x.units is not None]
    if units and min(units) < statistics.FEW:
      counts[what] = min(units)
  return counts


def _too_few(results: Results) -> str:
  counts = small_samples(results)
  *others, last = [
    f"{count} {_singular(what) if count == 1 else what}"
    for what, count in counts.items()
  ]
  counted = f"{', '.join(others)} and {last}" if others else last
  verb = "is" if next(iter(counts.values())) == 1 else "are"
  return (
    f"There {verb} only {counted}: from fewer than {statistics.FEW} nothing"
    " can be concluded, and what follows shows only that the stages ran."
  )


def _singular(what: str) -> str:
  """Returns 'row of held-out text' for 'rows of held-out text'."""
  return re.sub(r"\b(prompt|row)s\b", r"\1", what)


def _article(judge: str) -> str:
  return judge[2:] if judge.lower().startswith("a ") else judge


def _wins(results: Results, without: str) -> Iterator[_Sentence]:
  for name in ("ppo_ptx", "ppo"):
    rate = value(results, name, "win_rate")
    if rate is None or name == without:
      continue
    if rate.few:
      yield _Sentence(
        f"{label(name)} wins {rate.percent()} against SFT at temperature 1.",
        few=True,
      )
      continue
    if rate.low is None or rate.high is None:
      verb = "against SFT is preferred in"
    elif rate.low > 0.5:
      verb = "beats SFT in"
    elif rate.high < 0.5:
      verb = "loses to SFT, winning"
    else:
      verb = "cannot be told from SFT, winning"
    yield _Sentence(
      f"{label(name)} {verb} {rate.percent()} of answers at temperature 1."
    )


def _order(results: Results) -> Iterator[_Sentence]:
  metric = main_metric(results)
  if metric is None:
    return
  chain = [
    (name, interval)
    for name in ("base", "prompted", "sft", "ppo_ptx")
    if (interval := value(results, name, metric.name)) is not None
  ]
  if len(chain) < 2:
    return
  shown = ", ".join(
    f"{label(name)} {interval.mean:.{metric.digits}f}"
    for name, interval in chain
  )
  if any(interval.few for _, interval in chain):
    yield _Sentence(f"{metric.title} at temperature 1: {shown}.", few=True)
    return
  falling, close = [], []
  for (left, a), (right, b) in zip(chain, chain[1:], strict=False):
    pair = f"{label(left)} and {label(right)}"
    if b.mean <= a.mean:
      falling.append(pair)
    elif a.high is None or b.low is None or a.high >= b.low:
      close.append(pair)
  if falling:
    rest = f"the order is broken between {'; '.join(falling)}"
  elif close:
    rest = f"in this order, but the intervals of {'; '.join(close)} overlap"
  else:
    rest = "in this order, and no interval overlaps the next"
  yield _Sentence(f"{metric.title} at temperature 1: {shown}; {rest}.")


def _greedy(results: Results) -> Iterator[_Sentence]:
  metric = main_metric(results)
  if metric is None:
    return
  sft, ptx = (
    value(results, name, metric.name, "greedy") for name in ("sft", "ppo_ptx")
  )
  if sft is None or ptx is None:
    return
  digits = metric.digits
  if sft.few or ptx.few:
    yield _Sentence(
      f"At temperature 0 PPO-ptx has {ptx.text(digits)}, SFT"
      f" {sft.text(digits)}.",
      few=True,
    )
    return
  if ptx.mean >= sft.mean:
    words_ = "PPO-ptx is not below SFT"
  else:
    words_ = "PPO-ptx is below SFT"
  yield _Sentence(
    f"At temperature 0 {words_}: {ptx.text(digits)} against {sft.text(digits)}."
  )


def _tax(results: Results) -> Iterator[_Sentence]:
  base, ppo = (value(results, name, "lm_loss") for name in ("base", "ppo"))
  share = removed_by_ptx(results)
  few = bool(base and base.few or ppo and ppo.few)
  if base is not None and ppo is not None and ppo.mean > base.mean:
    added = f"PPO adds {ppo.mean - base.mean:.3f} nats a token to the LM loss"
    if share is None:
      yield _Sentence(added + ".", few)
    elif share.mean < 0:
      yield _Sentence(f"{added}, and PPO-ptx adds still more.", few)
    else:
      yield _Sentence(f"{added}; PPO-ptx removes {share.percent()} of it.", few)
  elif share is not None:
    yield _Sentence(
      f"PPO-ptx removes {share.percent()} of the LM loss that PPO adds.", few
    )


def _reward_model(results: Results) -> Iterator[_Sentence]:
  model = mapping(results.get("reward_model"))
  accuracy = leaf(model.get("accuracy"))
  if accuracy is None:
    return
  held_out = leaf(model.get("held_out_labelers"))
  few = accuracy.few or bool(held_out and held_out.few)
  more = ""
  if held_out:
    more = f", and {held_out.percent()} of those of held-out labelers"
  yield _Sentence(
    f"The reward model orders {accuracy.percent()} of held-out pairs as the "
    f"labelers did{more}.",
    few,
  )
