"""The report of a judge: figures, warnings and tables in Markdown."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax.evaluation.judge_pairs import Pair
from instructgpt_jax.evaluation.pair_judges import Judged

Figures = Mapping[str, Any]
_EXAMPLES = 3
_SHOWN = 80  # characters of an example
_COMPARISON = (
  ("win_rate", "win rate; a tie counts ½"),
  ("length_controlled", "length-controlled win rate"),
)
_JUDGE = (
  ("position_consistency", "same verdict in both orders"),
  ("first_position", "verdicts for the answer shown first"),
  ("longer_preferred", "verdicts for the longer answer"),
  ("length_correlation", "rank correlation of preference and length"),
)
_AGREEMENT = (
  ("accuracy", "accuracy on pairs with a better answer; a tie counts ½"),
  ("agreement", "agreement with an annotator, ties included"),
  ("annotators", "agreement of two annotators"),
  ("kappa", "Cohen's kappa with the majority"),
  ("labels_longer_preferred", "labels for the longer answer"),
)


def to_markdown(report: Figures) -> str:
  """Writes the report of `judge_command.run` as a page."""
  lines = [f"# {report['judge']} as a judge", ""]
  lines += [f"- **{text}**" for text in report["warnings"]]
  if "comparison" in report:
    figures = report["comparison"]
    lines += ["", f"## {report['answers']} against {report['against']}", ""]
    shares = ", ".join(
      f"{figures[name]:.1%} {name}" for name in ("wins", "ties", "losses")
    )
    lines += [f"{figures['pairs']} pairs: {shares}.", ""]
    lines += _table(figures, (*_COMPARISON, *_JUDGE))
  for name, figures in report.get("human", {}).items():
    lines += ["", f"## Labels of {name}", ""]
    lines += [f"{figures['pairs']} pairs, {figures['decided']} with a better"]
    lines[-1] += f" answer. Labels by {figures['labels_by']}."
    lines += ["", *_table(figures, (*_AGREEMENT, *_JUDGE))]
  if report["left_out"]:
    lines += ["", "## Left out", ""]
    lines += [f"- {line}" for line in report["left_out"]]
  return "\n".join(lines) + "\n"


def _table(figures: Figures, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
  yield "| figure | value | 95 % interval |"
  yield "|---|---|---|"
  for name, label in rows:
    value = figures[name]
    mean = bounds = "–"
    if value is not None:
      mean = f"{value['mean']:.3f}"
      if value["low"] is not None:
        bounds = f"{value['low']:.3f} to {value['high']:.3f}"
    yield f"| {label} | {mean} | {bounds} |"


def find_warnings(report: Figures) -> list[str]:
  """Returns sentences about what the figures say against the judge."""
  sections = dict(report.get("human", {}))
  if "comparison" in report:
    sections = {"the answers": report["comparison"]} | sections
  texts: list[str] = []
  for name, figures in sections.items():
    texts += _bias_warnings(name, figures)
  for name, figures in report.get("human", {}).items():
    accuracy = figures["accuracy"]
    if accuracy and (accuracy["low"] is None or accuracy["low"] <= 0.5):
      texts.append(
        f"On {name} the judge is not shown to be better than chance:"
        f" accuracy {_shown(accuracy)}."
      )
  return texts


def _bias_warnings(name: str, figures: Figures) -> Iterator[str]:
  """Yields warnings about the length and the order of answers."""
  longer = _excess(figures["longer_preferred"])
  if longer:
    labels = figures.get("labels_longer_preferred")
    beside = f", the labels in {_shown(labels)}" if labels else ""
    yield (
      f"On {name} the judge prefers the"
      f" {'longer' if longer > 0 else 'shorter'} answer: it chose the longer"
      f" one in {_shown(figures['longer_preferred'])} of decided pairs{beside}."
      + (_length_advice(figures) if "win_rate" in figures else "")
    )
  first = _excess(figures["first_position"])
  if first:
    yield (
      f"On {name} the judge prefers the answer shown"
      f" {'first' if first > 0 else 'second'}: it chose the first in"
      f" {_shown(figures['first_position'])} of decided verdicts."
    )


def _length_advice(figures: Figures) -> str:
  rate = figures["length_controlled"]
  if rate is None:
    return (
      " All answers of one model are longer, so the win rate says nothing about"
      " the rest."
    )
  return (
    f" Read the length-controlled win rate, {_shown(rate)}, and not the win"
    f" rate, {_shown(figures['win_rate'])}."
  )


def _excess(share: Figures | None) -> int:
  """Returns the sign by which a share is away from ½; 0 within its interval."""
  if share is None or share["low"] is None:
    return 0
  return int(share["low"] > 0.5) - int(share["high"] < 0.5)


def _shown(interval: Figures) -> str:
  if interval["low"] is None:
    return f"{interval['mean']:.3f}"
  return (
    f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
  )


def describe_labelers(pairs: Sequence[Pair]) -> str:
  """Names who labelled pairs, as far as their file says."""
  names = sorted({name for pair in pairs for name in pair.annotators})
  if not names:
    return "people whom the file does not name"
  return ", ".join(names[:4]) + (
    f" and {len(names) - 4} more" * (len(names) > 4)
  )


def count_problems(name: str, judged: Sequence[Judged]) -> list[str]:
  """Returns lines about the pairs without a verdict, with examples."""
  problems: collections.Counter[str] = collections.Counter()
  replies: list[str] = []
  for pair in judged:
    missing = [v for v in pair if v.value is None]
    if missing:
      problems[missing[0].problem] += 1
    replies += [v.reply[:_SHOWN] for v in missing if v.reply]
  lines = [
    f"{name}: {count} of {len(judged)} pairs have no verdict: {problem}"
    for problem, count in problems.items()
  ]
  if replies:
    examples = ", ".join(repr(reply) for reply in replies[:_EXAMPLES])
    lines.append(f"{name}: replies without a verdict, such as {examples}")
  return lines


def verdict_rows(
  name: str, pairs: Sequence[Pair], judged: Sequence[Judged]
) -> Iterator[dict[str, Any]]:
  """Yields one row of verdicts.jsonl for each pair."""
  for pair, verdicts in zip(pairs, judged, strict=True):
    yield {
      "set": name,
      "prompt": pair.prompt,
      "first": pair.first,
      "second": pair.second,
      "labels": pair.labels,
      "origin": pair.origin,
      "preference": verdicts.preference,
      "as_a": verdicts.as_a._asdict(),
      "as_b": verdicts.as_b._asdict(),
    }
