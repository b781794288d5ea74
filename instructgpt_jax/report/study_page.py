"""Writes the page of the studies: which of the paper's findings reproduce.

Everything on the page is computed from one dict, which `write` also saves as
results.json:

  title, size, command, machine   str
  where     str, optional: "in a world of 300 words"; ends the headline
  seconds   of all runs
  verdicts  {study: {title, reproduced, criterion, measured, paper, seeds,
            seconds, kind}}; reproduced is true, false or null; kind is
            "paper", or "ours" for a finding that the paper does not have
  studies   {study: the same and question, source, setup, command, runs,
            complete, missing, figures, tables, notes}; see `findings` for
            figures and tables

Parts that are missing or malformed are omitted from the page.
"""

from __future__ import annotations

import math
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.report import page, study_axes, study_figures
from instructgpt_jax.report import results as results_lib
from instructgpt_jax.report.findings import Table
from instructgpt_jax.report.results import Leaf, Results, mapping, number
from instructgpt_jax.report.study_figures import Drawing
from instructgpt_jax.runs import files

HTML = "index.html"
JSON = "results.json"
FIGURES = "figures"
TITLE = "InstructGPT's findings in miniature"
WIDTH = 100


class Mark(NamedTuple):
  """Outcome of a finding: a word, and the class of its symbol."""

  name: str
  word: str


YES = Mark("yes", "Reproduced")
NO = Mark("no", "Not reproduced")
OPEN = Mark("open", "Incomplete")
OURS = Mark("ours", "Our own")


class Verdict(NamedTuple):
  """One row of the front page."""

  study: str
  anchor: str
  title: str
  mark: Mark
  measured: str


def write(results: Results, directory: str | pathlib.Path) -> pathlib.Path:
  """Writes results.json, figures/<study>-<n>.svg and index.html.

  Args:
    results: see the module; missing parts are left out.
    directory: made when missing. Each file is written whole or not at all.

  Returns:
    The path of index.html.
  """
  directory = pathlib.Path(directory)
  results = results_lib.tidy(results)
  drawings = _draw(results)
  files.write_json_atomic(directory / JSON, results)
  for study, drawn in drawings.items():
    for at, drawing in enumerate(drawn, 1):
      path = directory / FIGURES / f"{_slug(study)}-{at}.svg"
      files.write_text_atomic(path, study_figures.standalone(drawing))
    # Those of an earlier page that had more of them.
    at = len(drawn) + 1
    while (directory / FIGURES / f"{_slug(study)}-{at}.svg").exists():
      (directory / FIGURES / f"{_slug(study)}-{at}.svg").unlink()
      at += 1
  files.write_text_atomic(directory / HTML, _render(results, drawings))
  return directory / HTML


def render(results: Results) -> str:
  """Renders the page as text."""
  results = results_lib.tidy(results)
  return _render(results, _draw(results))


def terminal_summary(results: Results, *, width: int = WIDTH) -> str:
  """Formats the headline and the verdicts as plain text.

  Args:
    results: see the module.
    width: columns; sentences are wrapped.

  Returns:
    Lines without a final newline.
  """
  results = results_lib.tidy(results)
  rows = verdicts(results)
  blocks = [textwrap.fill(headline(results), width)]
  widest = max((len(v.mark.word) for v in rows), default=0)
  for verdict in rows:
    first = f"{verdict.mark.word.ljust(widest)}  "
    indent = " " * len(first)
    lines = [textwrap.fill(verdict.title, width, initial_indent=first)]
    if verdict.measured:
      lines.append(
        textwrap.fill(
          verdict.measured,
          width,
          initial_indent=indent,
          subsequent_indent=indent,
        )
      )
    blocks.append("\n".join(lines))
  if facts := _facts(results):
    blocks.append(textwrap.fill(" · ".join(facts), width))
  return page.printable("\n\n".join(blocks))


def headline(results: Results) -> str:
  """Summarises the verdicts in one sentence."""
  marks = [v.mark for v in verdicts(results) if v.mark is not OURS]
  yes, no, pending = (marks.count(mark) for mark in (YES, NO, OPEN))
  where = str(results.get("where") or "in miniature").strip().rstrip(".")
  if not yes + no:
    return "No study of the paper's findings is complete yet."
  if pending:
    return (
      f"{yes} of the {yes + no} findings of the paper tried so far "
      f"{_verb(yes)} {where}; {pending} {'is' if pending == 1 else 'are'} "
      "not yet complete."
    )
  if yes == 1 == len(marks):
    return f"The finding of the paper that was tried reproduces {where}."
  if not no:
    return f"All {yes} findings of the paper reproduce {where}."
  return f"{yes or 'None'} of {yes + no} findings of the paper " + (
    f"{_verb(yes)} {where}."
  )


def verdicts(results: Results) -> list[Verdict]:
  """Lists one row a study, in the order of the verdicts."""
  results_by_study = mapping(results.get("verdicts"))
  studies = mapping(results.get("studies"))
  rows = []
  for name in dict.fromkeys((*results_by_study, *studies)):
    if study := _study(results, name):
      rows.append(
        Verdict(
          study=str(name),
          anchor=f"study-{_slug(name)}" if mapping(studies.get(name)) else "",
          title=str(study.get("title") or results_lib.words(name)),
          mark=_mark(study),
          measured=_unbroken(str(study.get("measured") or _missing(study))),
        )
      )
  return rows


def _study(results: Results, name: str) -> dict[str, Any]:
  """Merges a study with its verdict; the verdict's fields win."""
  study = mapping(mapping(results.get("studies")).get(name))
  return {**study, **mapping(mapping(results.get("verdicts")).get(name))}


def _unbroken(text: str) -> str:
  """Keeps each interval, as in '0.5 [0.4, 0.6]', on one line."""
  return re.sub(
    r" ?\[[^\]]{,24}\]", lambda m: m[0].replace(" ", "\u00a0"), text
  )


def _verb(count: int) -> str:
  return "reproduces" if count == 1 else "reproduce"


def _mark(study: Mapping[str, Any]) -> Mark:
  if study.get("kind") == "ours":
    return OPEN if study.get("complete") is False else OURS
  return {True: YES, False: NO}.get(_bool(study.get("reproduced")), OPEN)


def _bool(value: Any) -> bool | None:
  return value if isinstance(value, bool) else None


def _slug(name: Any) -> str:
  """Replaces the characters that a file name or a link cannot contain."""
  return re.sub(r"[^A-Za-z0-9_]+", "-", str(name))[:60]


def _draw(results: Results) -> dict[str, list[Drawing]]:
  studies = mapping(results.get("studies"))
  return {str(name): _drawings(mapping(studies[name])) for name in studies}


def _drawings(study: Mapping[str, Any]) -> list[Drawing]:
  drawings = map(study_figures.draw, page.sequence(study.get("figures")))
  return [drawing for drawing in drawings if drawing]


def _render(results: Results, drawings: Mapping[str, Sequence[Drawing]]) -> str:
  rows = verdicts(results)
  return page.template("studies.html.jinja").render(
    title=str(results.get("title") or TITLE),
    headline=headline(results),
    facts=_facts(results),
    verdicts=rows,
    studies=[
      _section(_study(results, row.study), row, drawings.get(row.study, ()))
      for row in rows
      if row.anchor
    ],
  )


def _facts(results: Results) -> list[str]:
  facts = []
  seconds = number(results.get("seconds"))
  if seconds is not None:
    facts.append(f"{results_lib.duration(seconds)}, all runs added up")
  for key, before in (("machine", ""), ("size", "size "), ("command", "")):
    if results.get(key):
      facts.append(f"{before}{results[key]}")
  return facts


def _section(
  study: Mapping[str, Any], row: Verdict, drawings: Sequence[Drawing]
) -> dict[str, Any]:
  """Returns the template's values for one study."""
  texts = ("question", "source", "criterion", "paper", "setup", "command")
  return {key: str(study.get(key) or "") for key in texts} | {
    "row": row,
    "figures": drawings,
    "tables": [
      _table(table)
      for table in map(Table.from_dict, page.sequence(study.get("tables")))
      if table.rows
    ],
    "notes": [str(n) for n in page.sequence(study.get("notes")) if n],
    "cost": _cost(study),
    "missing": _missing(study),
  }


def _cost(study: Mapping[str, Any]) -> str:
  parts = []
  runs, seconds = number(study.get("runs")), number(study.get("seconds"))
  seeds = page.sequence(study.get("seeds"))
  if runs:
    parts.append(f"{runs:.0f} run{'s' if runs != 1 else ''}")
  if seeds:
    named = ", ".join(map(str, seeds))
    parts.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {named}")
  if seconds is not None:
    parts.append(results_lib.duration(seconds))
  return " · ".join(parts)


def _missing(study: Mapping[str, Any]) -> str:
  if study.get("complete") is not False:
    return ""
  count = number(study.get("missing"))
  if not count:
    return "This study is not complete."
  runs = "1 run is" if count == 1 else f"{count:.0f} runs are"
  return f"This study is not complete: {runs} missing."


def _table(table: Table) -> page.Table:
  """Cells as text, each column with as many decimals as its intervals say."""
  width = max(len(table.columns), *(len(row) for row in table.rows))
  heads = [*table.columns, *[""] * (width - len(table.columns))]
  columns = [
    [row[at] if at < len(row) else None for row in table.rows]
    for at in range(1, width)
  ]
  shown = [_column(cells) for cells in columns]
  return page.Table(
    table.caption,
    heads[0],
    [(head, "") for head in heads[1:]],
    [
      (str(row[0]), [column[at] for column in shown])
      for at, row in enumerate(table.rows)
    ],
  )


def _column(cells: Sequence[Any]) -> list[tuple[str, str]]:
  halves = [
    (cell.high - cell.low) / 2
    for cell in cells
    if isinstance(cell, Leaf) and cell.low is not None and cell.high is not None
  ]
  digits = _digits(sorted(halves)[len(halves) // 2]) if halves else None
  return [_cell(cell, digits) for cell in cells]


def _digits(half: float) -> int:
  """Decimals that show an interval's half width by two figures, at most 4."""
  if half <= 0:
    return 3
  return min(4, max(0, 1 - math.floor(math.log10(half))))


def _cell(cell: Any, digits: int | None) -> tuple[str, str]:
  if cell is None:
    return "–", ""
  if isinstance(cell, str):
    return cell, ""
  if isinstance(cell, Leaf):
    mean, bounds = page.cell(cell, 3 if digits is None else digits)
    return mean, bounds or "–"
  if float(cell).is_integer():
    return f"{cell:.15g}".replace("-", "−"), ""
  if digits is None:
    return study_axes.tick(cell, 4), ""
  return f"{cell:.{digits}f}".replace("-", "−"), ""
