"""Writes a run's `report.json`, `report.html` and the table for the terminal.

The shape of the results is documented in `results`. The page is one file that
contains its style and its pictures, and no script. Text that a model wrote is
escaped, and a content policy in the page forbids it to load anything.
"""

from __future__ import annotations

import collections
import functools
import json
import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jinja2

from instructgpt_jax.report import conclusions, figures, training_samples
from instructgpt_jax.report import results as results_lib
from instructgpt_jax.report.results import Leaf, Metric, Results
from instructgpt_jax.runs import files

JSON = "report.json"
HTML = "report.html"
TITLE = "InstructGPT: report"
WIDTH = 100


class Table(NamedTuple):
  """A table of the page; a cell is (text, small text)."""

  caption: str
  corner: str
  columns: list[tuple[str, str]]
  rows: list[tuple[str, list[tuple[str, str]]]]


def write_report(
  results: Results, directory: str | pathlib.Path
) -> pathlib.Path:
  """Writes report.json and report.html, each whole or not at all.

  Args:
    results: see `results`; missing parts are left out.
    directory: made when missing.

  Returns:
    The path of report.html.
  """
  directory = pathlib.Path(directory)
  results = results_lib.tidy(results)
  files.write_json_atomic(directory / JSON, results)
  files.write_text_atomic(directory / HTML, render(results))
  return directory / HTML


def render(results: Results) -> str:
  """Renders the page as text."""
  results = results_lib.tidy(results)
  config = results.get("config")
  small_tables = _small_tables(results)
  return template("page.html.jinja").render(
    title=results.get("title") or TITLE,
    facts=_facts(results),
    opening=conclusions.opening(results),
    findings=conclusions.verdict(
      results, without=conclusions.headline_model(results)
    ),
    notes=[str(note) for note in sequence(results.get("notes")) if note],
    pictures=figures.pictures(results),
    tables=_metric_tables(results),
    failure_tables=_group_tables(results, "failures", "Failures in per cent"),
    tax_tables=_group_tables(
      results, "tasks", "Tasks in per cent, the first measure of each"
    ),
    small_tables=small_tables,
    small_title=_joined([table.caption for table in small_tables]),
    samples=_samples(results),
    training_samples=training_samples.to_page(
      results_lib.mapping(results.get("training_samples"))
    ),
    config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
  )


def picture(results: Results) -> str:
  """Returns the main figure as a standalone SVG file's text ("" if none)."""
  pictures = figures.pictures(results)["opening"]
  if not pictures:
    return ""
  return (
    pictures[0].svg.replace("<svg", '<svg style="background:#fff"', 1) + "\n"
  )


def terminal_table(results: Results, *, width: int = WIDTH) -> str:
  """Formats the page's table as plain text, at most `width` columns wide.

  Args:
    results: see `results`.
    width: columns; sentences are wrapped, and a table too wide for it is
      continued below.

  Returns:
    Lines without a final newline; "" when there is nothing to show.
  """
  results = results_lib.tidy(results)
  blocks = []
  heads = [str(results.get("title") or ""), *_facts(results)]
  head = " · ".join(part for part in heads if part)
  if head:
    blocks.append(textwrap.fill(printable(head), width))
  for key, temperature in results_lib.TEMPERATURES:
    metrics = results_lib.present(results, key)
    if metrics:
      blocks.extend(_text_tables(results, metrics, key, temperature, width))
  failures = results_lib.groups(results, "failures")
  if failures:
    blocks.extend(_text_groups(results, failures, "failures, %", width))
  tasks = results_lib.groups(results, "tasks")
  if tasks:
    blocks.extend(_text_groups(results, tasks, "tasks, %", width))
  sentences = [
    textwrap.fill(printable(text), width, subsequent_indent="  ")
    for text in conclusions.verdict(results)
  ]
  if sentences:
    blocks.append("\n".join(sentences))
  seconds = _seconds(results)
  if seconds:
    parts = [f"{name} {results_lib.duration(s)}" for name, s in seconds]
    blocks.append(textwrap.fill("time: " + ", ".join(parts), width))
  return "\n\n".join(blocks)


@functools.cache
def template(name: str) -> jinja2.Template:
  """Loads a template of this directory; it escapes the values it renders."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(name)


def sequence(value: Any) -> Sequence[Any]:
  """Returns the value if it is a list or tuple, else an empty one."""
  return value if isinstance(value, (list, tuple)) else ()


def printable(text: str) -> str:
  """Removes control characters, which a terminal would obey."""
  return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _facts(results: Results) -> list[str]:
  facts = []
  if results.get("seed") is not None:
    facts.append(f"seed {results['seed']}")
  if results.get("judge"):
    facts.append(f"judge: {results['judge']}")
  total = sum(seconds for _, seconds in _seconds(results, total=False))
  if total:
    facts.append(f"{results_lib.duration(total)} in all")
  return facts


def _seconds(
  results: Results, *, total: bool = True
) -> list[tuple[str, float]]:
  """Lists the stages with their seconds, then the sum."""
  times = [
    (results_lib.words(stage), leaf.mean)
    for stage, item in results_lib.mapping(results.get("seconds")).items()
    if stage != "total" and (leaf := results_lib.leaf(item))
  ]
  if total and len(times) > 1:
    times.append(("total", sum(seconds for _, seconds in times)))
  return times


def _sources(
  results: Results,
) -> list[tuple[str, list[tuple[str, str]]]]:
  """Lists what each stage used of each part of its weighted sources."""
  rows = []
  for stage, fields in results_lib.mapping(results.get("sources")).items():
    for field, figures_of_parts in results_lib.mapping(fields).items():
      for figure in map(results_lib.mapping, sequence(figures_of_parts)):
        units = ("rows", "rankings", "prompts")
        shares = [figure.get(f"{unit}_share") for unit in units]
        cells = [
          (figure.get("weight"), 3),
          (next((s for s in shares if s is not None), None), 3),
          (figure.get("loss_tokens_share"), 3),
          (figure.get("passes"), 2),
        ]
        name = f"{results_lib.words(stage)}, {field}: {figure.get('source')}"
        rows.append(
          (name, [cell(results_lib.leaf(value), n) for value, n in cells])
        )
  return rows


def cell(leaf: Leaf | None, digits: int, scale: float = 1) -> tuple[str, str]:
  """Formats a table's cell: the mean, and the bounds in small."""
  if leaf is None:
    return "–", ""
  mean = f"{scale * leaf.mean:.{digits}f}"
  if leaf.low is None or leaf.high is None:
    return mean, "" if leaf.units is None else "–"
  low, high = scale * leaf.low, scale * leaf.high
  bounds = f"{low:.{digits}f} to {high:.{digits}f}"
  return mean.replace("-", "−"), bounds.replace("-", "−")


def _metric_tables(results: Results) -> list[Table]:
  tables = []
  for key, temperature in results_lib.TEMPERATURES:
    metrics = results_lib.present(results, key)
    if not metrics:
      continue
    rows = [
      (
        results_lib.label(name),
        [
          cell(results_lib.value(results, name, m.name, key), m.digits)
          for m in metrics
        ],
      )
      for name in results_lib.model_names(results)
      if any(results_lib.value(results, name, m.name, key) for m in metrics)
    ]
    columns = [(metric.title, metric.unit) for metric in metrics]
    tables.append(Table(f"At {temperature}", "Model", columns, rows))
  return tables


def _group_tables(results: Results, kind: str, caption: str) -> list[Table]:
  tables = []
  for key, temperature in results_lib.TEMPERATURES:
    fields = results_lib.groups(results, kind, key)
    names = [
      name
      for name in results_lib.model_names(results)
      if any(name in models for models in fields.values())
    ]
    if not names:
      continue
    rows = [
      (
        results_lib.words(field),
        [cell(models.get(name), 1, 100) for name in names],
      )
      for field, models in fields.items()
    ]
    columns = [(results_lib.label(name), "") for name in names]
    tables.append(Table(f"{caption}, {temperature}", "", columns, rows))
  return tables


def _small_tables(results: Results) -> list[Table]:
  tables = []
  for caption, part in (
    ("Reward model", results.get("reward_model")),
    ("Alignment tax", results.get("tax")),
  ):
    rows = [(name, [cell(item, 3)]) for name, item in results_lib.flat(part)]
    if rows:
      tables.append(Table(caption, "", [("value", "")], rows))
  sources = _sources(results)
  if sources:
    names = ("weight", "share", "share of loss tokens", "passes")
    columns = [(name, "") for name in names]
    tables.append(Table("Weighted sources", "", columns, sources))
  seconds = _seconds(results)
  if seconds:
    rows = [(name, [(results_lib.duration(s), "")]) for name, s in seconds]
    tables.append(Table("Time of each stage", "", [("duration", "")], rows))
  return tables


def _samples(results: Results) -> list[dict[str, Any]]:
  """Returns the samples that have an answer, with prompts as models read them.

  The prompt that most models continued stands above the answers; an answer to
  another one, such as that of the prompted model, shows its own.
  """
  samples = []
  order = results_lib.model_names(results)
  for sample in sequence(results.get("samples")):
    sample = results_lib.mapping(sample)
    answers = results_lib.mapping(sample.get("answers"))
    scores = results_lib.mapping(sample.get("scores"))
    names = [name for name in order if name in answers]
    names += [name for name in answers if name not in names]
    if not names:
      continue
    palette = figures.colours(names)
    prompts = {
      name: str(text)
      for name, text in results_lib.mapping(sample.get("model_prompts")).items()
      if name in answers and text
    }
    counts = collections.Counter(prompts.values())
    shared = counts.most_common(1)[0][0] if counts else ""
    samples.append(
      {
        "prompt": shared or str(sample.get("prompt") or ""),
        "answers": [
          {
            "name": results_lib.label(name),
            "colour": palette[name],
            "prompt": "" if prompts.get(name) == shared else prompts.get(name),
            "text": str(answers[name] or "").strip("\n"),
            "score": _score(scores.get(name)),
          }
          for name in names
        ],
      }
    )
  return samples


def _joined(titles: Sequence[str]) -> str:
  """Joins titles as "Reward model, tax and time"."""
  *others, last = titles or [""]
  if not others:
    return last
  others = [others[0], *(title.lower() for title in others[1:])]
  return f"{', '.join(others)} and {last.lower()}"


def _score(value: Any) -> str:
  score = results_lib.leaf(value)
  return f"score {score.mean:.2f}" if score else ""


def _text_tables(
  results: Results,
  metrics: Sequence[Metric],
  key: str,
  temperature: str,
  width: int,
) -> Iterable[str]:
  names = [
    name
    for name in results_lib.model_names(results)
    if any(results_lib.value(results, name, m.name, key) for m in metrics)
  ]
  columns = []
  for metric in metrics:
    plain = metric.name in ("response_length", "ended")
    cells = []
    for name in names:
      leaf = results_lib.value(results, name, metric.name, key)
      if leaf is None:
        cells.append("-")
      elif plain:
        cells.append(f"{leaf.mean:.{metric.digits}f}")
      else:
        cells.append(leaf.narrow(metric.digits))
    columns.append((metric.short, cells))
  labels = [results_lib.label(name) for name in names]
  return _aligned(
    temperature.replace("temperature", "T ="), labels, columns, width
  )


def _text_groups(
  results: Results,
  fields: dict[str, dict[str, Leaf]],
  corner: str,
  width: int,
) -> Iterable[str]:
  columns = []
  for name in results_lib.model_names(results):
    if any(name in models for models in fields.values()):
      cells = [
        f"{100 * models[name].mean:.1f}" if name in models else "-"
        for models in fields.values()
      ]
      columns.append((results_lib.label(name), cells))
  labels = [results_lib.words(field) for field in fields]
  return _aligned(corner, labels, columns, width)


def _aligned(
  corner: str,
  labels: Sequence[str],
  columns: Sequence[tuple[str, Sequence[str]]],
  width: int,
) -> Iterable[str]:
  """Aligns tables; columns that do not fit go into a further table."""
  labels = [_shortened(text, 28) for text in labels]
  first = max(map(len, (corner, *labels)))
  sized = [
    (max(map(len, (head, *cells))), head, cells) for head, cells in columns
  ]
  while sized:
    used, taken = first, 0
    for size, _, _ in sized:
      if taken and used + 2 + size > width:
        break
      used, taken = used + 2 + size, taken + 1
    part, sized = sized[:taken], sized[taken:]
    lines = [
      corner.ljust(first) + "".join("  " + h.rjust(n) for n, h, _ in part),
      "-" * used,
    ]
    for row, text in enumerate(labels):
      texts = "".join("  " + cells[row].rjust(n) for n, _, cells in part)
      lines.append(text.ljust(first) + texts)
    yield "\n".join(lines)


def _shortened(text: str, width: int) -> str:
  text = printable(text)
  return text if len(text) <= width else text[: width - 1] + "…"
