"""Draws the report's pictures as SVG text that is embedded in the page.

Colours are Okabe and Ito's, which colour-blind readers can distinguish; the two
temperatures also differ by marker. Text stays text, so it can be searched and
scaled. Nothing here touches pyplot or its global state.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from instructgpt_jax.report import results as results_lib
from instructgpt_jax.report.results import Leaf, Results

COLOURS = {
  "base": "#8a8a8a",
  "prompted": "#56b4e9",
  "sft": "#e69f00",
  "best_of_n": "#009e73",
  "ppo": "#d55e00",
  "ppo_ptx": "#0072b2",
}
SPARE_COLOURS = ("#cc79a7", "#222222", "#7b5aa6", "#8c6d31")
WIDTH = 4.6  # inches; a point of it is about a pixel on a narrow screen
MAX_PANELS = 12

STYLE: dict[Any, Any] = {
  "svg.fonttype": "none",
  "svg.hashsalt": "instructgpt_jax",
  "text.parse_math": False,
  "axes.unicode_minus": True,
  "font.size": 10,
  "axes.titlesize": 10,
  "axes.labelsize": 10,
  "xtick.labelsize": 9,
  "ytick.labelsize": 10,
  "legend.fontsize": 9,
  "legend.frameon": False,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#666666",
  "axes.grid": False,
  "figure.facecolor": "none",
  "axes.facecolor": "none",
}
# Units of the metrics that stages log, by the name without its split.
_UNITS = {
  "loss": ("Loss", "nats a token"),
  "lm_loss": ("LM loss", "nats a token"),
  "ptx_loss": ("LM loss of ptx", "nats a token"),
  "accuracy": ("Accuracy", "share of pairs"),
  "reward": ("Reward", "RM score − β·KL"),
  "score": ("RM score", "logits"),
  "rm_score": ("RM score", "logits"),
  "kl": ("KL to the reference", "nats a response"),
  "entropy": ("Entropy", "nats a token"),
  "clip_fraction": ("Clip fraction", "share of tokens"),
  "approx_kl": ("KL within an update", "nats a token"),
  "explained_variance": ("Explained variance", "of the returns"),
  "response_length": ("Response length", "tokens"),
  "ended": ("Ended by end-of-text", "share of responses"),
  "learning_rate": ("Learning rate", "1"),
  "gold": ("Gold score", "0 to 1"),
}
_SPLITS = ("train", "valid", "eval", "test", "heldout")
_GROUPS = (
  ("Pretraining", ("pretrain",)),
  ("Supervised fine-tuning", ("sft", "policy_init")),
  ("Reward model", ("reward", "judge")),
  ("Reinforcement learning", ("ppo",)),
)


class Picture(NamedTuple):
  """One figure of the page."""

  svg: str
  title: str
  caption: str


def pictures(results: Results) -> dict[str, list[Picture]]:
  """Draws all figures that the results allow, by section of the page."""
  with styled():
    main = [p for p in (_wins(results), _score(results)) if p]
    return {
      "opening": main[:1],
      "scores": main[1:],
      "failures": [
        p
        for key, text in results_lib.TEMPERATURES
        if (p := _failures(results, key, text))
      ],
      "tax": [p for p in (_lm_loss(results), _tasks(results)) if p],
      "curves": list(_curves(results)),
    }


@contextlib.contextmanager
def styled() -> Iterator[None]:
  """Sets the style of every picture while the context is open."""
  with matplotlib.rc_context(STYLE), warnings.catch_warnings():
    # A glyph that this machine's font lacks is drawn by the reader's.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    yield


def colours(names: Iterable[str]) -> dict[str, str]:
  """Assigns one colour to each model."""
  spare = 0
  palette = {}
  for name in names:
    if name in COLOURS:
      palette[name] = COLOURS[name]
    else:
      palette[name] = SPARE_COLOURS[spare % len(SPARE_COLOURS)]
      spare += 1
  return palette


def _score(results: Results) -> Picture | None:
  metric = results_lib.main_metric(results)
  if metric is None:
    return None
  return _dots(
    results,
    metric.name,
    title=f"{metric.title} of each model",
    axis=f"{metric.title} ({metric.unit})",
    caption="Mean over held-out prompts with its 95 % interval; further "
    "right is better.",
  )


def _wins(results: Results) -> Picture | None:
  return _dots(
    results,
    "win_rate",
    title="Win rate against SFT",
    axis="Win rate against SFT (share of prompts)",
    line=0.5,
    caption="Each model against SFT at the same temperature; a tie counts one "
    "half. The dashed line is no difference. 95 % intervals.",
  )


def _lm_loss(results: Results) -> Picture | None:
  base = results_lib.value(results, "base", "lm_loss")
  return _dots(
    results,
    "lm_loss",
    title="Alignment tax: language-model loss",
    axis="LM loss on held-out text (nats a token)",
    line=base.mean if base else None,
    caption="Further left is better"
    + ("; the dashed line is the base model." if base else "."),
    temperatures=("",),
  )


def _dots(
  results: Results,
  metric: str,
  *,
  title: str,
  axis: str,
  caption: str,
  line: float | None = None,
  temperatures: Sequence[str] = ("", "greedy"),
) -> Picture | None:
  """Draws one row a model: a point with its interval at each temperature."""
  names = results_lib.model_names(results)
  leaves = {
    (name, temperature): leaf
    for name in names
    for temperature in temperatures
    if (leaf := results_lib.value(results, name, metric, temperature))
  }
  rows = [n for n in names if any((n, t) in leaves for t in temperatures)]
  if not rows:
    return None
  used = [t for t in temperatures if any((n, t) in leaves for n in rows)]
  figure, axes = _figure(0.34 * len(rows) + 1.05)
  palette = colours(rows)
  for row, name in enumerate(rows):
    for temperature in used:
      leaf = leaves.get((name, temperature))
      if leaf is None:
        continue
      shift = 0.0
      if len(used) == 2:
        shift = -0.15 if temperature == used[0] else 0.15
      _dot(axes, leaf, row + shift, palette[name], filled=temperature == "")
  if line is not None:
    axes.axvline(line, color="#444444", linewidth=1, dashes=(4, 3), zorder=0)
  axes.set_yticks(range(len(rows)), [_label(n) for n in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.tick_params(axis="y", length=0)
  axes.set_xlabel(axis)
  axes.grid(axis="x", color="#dddddd", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.margins(x=0.06)
  if len(used) == 2:
    _temperature_legend(figure)
  return Picture(svg(figure), title, caption)


def _dot(axes: Any, leaf: Leaf, y: float, colour: str, *, filled: bool) -> None:
  if leaf.low is not None and leaf.high is not None:
    axes.plot([leaf.low, leaf.high], [y, y], color=colour, linewidth=2.2)
  axes.plot(
    [leaf.mean],
    [y],
    marker="o" if filled else "D",
    markersize=7 if filled else 6,
    markerfacecolor=colour if filled else "white",
    markeredgecolor=colour,
    markeredgewidth=1.8,
    linestyle="none",
  )


def _temperature_legend(figure: Figure) -> None:
  from matplotlib.lines import Line2D

  handles = [
    Line2D(
      [],
      [],
      marker=marker,
      linestyle="none",
      color="#444444",
      markerfacecolor=face,
      markeredgewidth=1.6,
      label=text,
    )
    for marker, face, text in (
      ("o", "#444444", "temperature 1"),
      ("D", "white", "temperature 0"),
    )
  ]
  figure.legend(
    handles=handles, loc="outside upper right", ncols=2, handletextpad=0.2
  )


def _failures(results: Results, key: str, text: str) -> Picture | None:
  return _bars(
    results,
    "failures",
    key,
    title=f"Failures at {text}",
    axis=f"Responses at {text} (%)",
    caption="Fields of the label form, with 95 % intervals; shorter is better "
    "where the field is a failure.",
  )


def _tasks(results: Results) -> Picture | None:
  key = "" if results_lib.groups(results, "tasks") else "greedy"
  return _bars(
    results,
    "tasks",
    key,
    title="Alignment tax: public tasks",
    axis="First measure (%)",
    caption="The first measure of each task, with 95 % intervals; longer is "
    "better.",
  )


def _bars(
  results: Results,
  kind: str,
  key: str,
  *,
  title: str,
  axis: str,
  caption: str,
) -> Picture | None:
  """Draws horizontal bars: fields down the page, models within a field.

  A field that is 0 for every model has no bars: the caption names it.
  """
  fields = results_lib.groups(results, kind, key)
  zeros = [
    field
    for field, models in fields.items()
    if not any(leaf.mean for leaf in models.values())
  ]
  if zeros:
    fields = {f: models for f, models in fields.items() if f not in zeros}
    names = ", ".join(results_lib.words(field) for field in zeros)
    caption += f" Not drawn, because it is 0 for every model: {names}."
  names = [
    name
    for name in results_lib.model_names(results)
    if any(name in models for models in fields.values())
  ]
  if not fields or not names:
    return None
  palette = colours(results_lib.model_names(results))
  thick = 0.8 / len(names)
  inches = len(fields) * (0.13 * len(names) + 0.12) + 1.2
  figure, axes = _figure(inches)
  for at, name in enumerate(names):
    ys, leaves = [], []
    for row, models in enumerate(fields.values()):
      if name in models:
        ys.append(row - 0.4 + (at + 0.5) * thick)
        leaves.append(models[name])
    axes.barh(
      ys,
      [100 * leaf.mean for leaf in leaves],
      height=thick * 0.86,
      color=palette[name],
      label=_label(name),
    )
    for y, leaf in zip(ys, leaves, strict=True):
      if leaf.low is not None and leaf.high is not None:
        axes.plot(
          [100 * leaf.low, 100 * leaf.high],
          [y, y],
          color="#222222",
          linewidth=0.8,
        )
  axes.set_yticks(range(len(fields)), [_wrapped(field) for field in fields])
  axes.set_ylim(len(fields) - 0.5, -0.5)
  axes.set_xlim(left=0)
  axes.tick_params(axis="y", length=0)
  axes.set_xlabel(axis)
  axes.grid(axis="x", color="#dddddd", linewidth=0.8)
  axes.set_axisbelow(True)
  figure.legend(
    loc="outside upper right",
    ncols=min(3, len(names)),
    handlelength=1.2,
    columnspacing=1.0,
  )
  return Picture(svg(figure), title, caption)


def short(text: str, width: int = 24) -> str:
  """Shortens a name to leave room for the picture."""
  return text if len(text) <= width else text[: width - 1] + "…"


def _label(model: str) -> str:
  return short(results_lib.label(model))


def _wrapped(field: str, width: int = 16) -> str:
  lines = [""]
  for word in short(results_lib.words(field), 3 * width).split():
    word = short(word, width)
    if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
      lines.append("")
    lines[-1] = f"{lines[-1]} {word}".strip()
  return "\n".join(lines)


def _split(metric: str) -> tuple[str, str]:
  """Splits 'valid_loss' or 'valid/loss' into ('loss', 'valid')."""
  match = re.match(rf"({'|'.join(_SPLITS)})[_/](.+)$", metric)
  return (match[2], match[1]) if match else (metric, "")


def _group_of(stage: str) -> str:
  """Returns the heading of a stage, by the longest matching name."""
  for title, starts in _GROUPS:
    if any(stage.startswith(start) for start in starts):
      return title
  return stage


def _curves(results: Results) -> Iterable[Picture]:
  curves = results_lib.mapping(results.get("curves"))
  groups: dict[str, dict[str, list[tuple[str, str, list]]]] = {}
  for title, _ in _GROUPS:
    groups[title] = {}
  for stage, metrics in curves.items():
    group = groups.setdefault(_group_of(str(stage)), {})
    for metric, points in results_lib.mapping(metrics).items():
      name, split = _split(str(metric))
      points = _points(points)
      if points:
        group.setdefault(name, []).append((str(stage), split, points))
  for title, panels in groups.items():
    if panels:
      yield _panels(title, panels)


def _points(points: Any) -> list[tuple[float, float]]:
  pairs = []
  for point in points if isinstance(points, (list, tuple)) else ():
    if isinstance(point, (list, tuple)) and len(point) == 2:
      step, value = map(results_lib.number, point)
      if step is not None and value is not None:
        pairs.append((step, value))
  return pairs


def _panels(
  title: str, panels: Mapping[str, list[tuple[str, str, list]]]
) -> Picture:
  """Draws small multiples, two a row: a panel a metric, a line a stage."""
  names = list(panels)[:MAX_PANELS]
  columns = min(2, len(names))
  rows = math.ceil(len(names) / columns)
  figure = Figure(figsize=(WIDTH, 1.75 * rows + 0.45), layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False)
  stages = list(dict.fromkeys(s for n in names for s, _, _ in panels[n]))
  palette = _stage_colours(stages)
  legend: dict[str, Any] = {}
  for axes, name in zip(grid.flat, names, strict=False):
    for stage, split, points in panels[name]:
      held_out = split not in ("", "train")
      text = _label(stage).replace("_", " ")
      text += ", held out" if held_out else ""
      (handle,) = axes.plot(
        *zip(*points, strict=True),
        color=palette[stage],
        linewidth=1.4,
        linestyle=(0, (4, 2)) if held_out else "-",
        marker="o" if len(points) <= 12 else None,
        markersize=3,
      )
      legend.setdefault(text, handle)
    shown, unit = _UNITS.get(name, (_sentence(name), ""))
    if (title, name) == ("Reward model", "loss"):
      unit = "nats a pair"
    axes.set_title(short(shown), loc="left")
    axes.set_ylabel(unit, fontsize=9)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.tick_params(labelsize=9)
    axes.locator_params(axis="both", nbins=4)
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
  for axes in list(grid.flat)[len(names) :]:
    axes.set_visible(False)
  figure.supxlabel("Step (updates)", fontsize=10)
  figure.legend(
    legend.values(),
    legend.keys(),
    loc="outside upper right",
    ncols=min(3, len(legend)),
    handlelength=2.2,
  )
  left_out = len(panels) - len(names)
  caption = "Dashed lines are held-out data." if _held_out(panels) else ""
  if left_out:
    caption += f" {left_out} more metrics are in report.json."
  return Picture(svg(figure), title, caption.strip())


def _held_out(panels: Mapping[str, list[tuple[str, str, list]]]) -> bool:
  splits = {split for lines in panels.values() for _, split, _ in lines}
  return not splits <= {"", "train"}


def _stage_colours(stages: Sequence[str]) -> dict[str, str]:
  free = iter(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#222222"))
  if len(stages) <= 1:
    return dict.fromkeys(stages, "#0072b2")
  assigned = {s: COLOURS[s] for s in stages if s in COLOURS}
  rest = [c for c in free if c not in assigned.values()]
  others = [s for s in stages if s not in assigned]
  return assigned | {s: rest[i % len(rest)] for i, s in enumerate(others)}


def _sentence(name: str) -> str:
  text = results_lib.words(name).replace("/", ": ")
  return text[:1].upper() + text[1:]


def _figure(height: float) -> tuple[Figure, Any]:
  figure = Figure(figsize=(WIDTH, height), layout="constrained")
  return figure, figure.subplots()


def svg(figure: Figure) -> str:
  """Returns the <svg> element without size, metadata and global style."""
  buffer = io.StringIO()
  FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
  text = re.sub(r'<g id="[^"]*"', "<g", text)  # the page holds many figures
  head, body = text.split(">", 1)
  head = re.sub(r'\s(width|height)="[^"]*"', "", head)
  return f'{head} class="figure">{body}'.strip()
