"""Shows the samples of a run as a table on the terminal, and as a page."""

from __future__ import annotations

import pathlib

from instructgpt_jax.report import page, training_samples
from instructgpt_jax.report.training_samples import Rows
from instructgpt_jax.runs import files

HTML = "samples.html"
_TEXT_WIDTH = 24  # narrowest column of prompts and of responses


def terminal_table(rows: Rows, width: int) -> str:
  """Formats lines as a table of at most about `width` columns."""
  names = [n for n in training_samples.NUMBERS if n in rows[0]] + [
    "stop_reason"
  ]
  cells = [[training_samples.cell(row[name]) for name in names] for row in rows]
  widths = [
    max(len(name), *(len(line[i]) for line in cells))
    for i, name in enumerate(names)
  ]
  room = max(_TEXT_WIDTH, (width - sum(widths) - 2 * len(widths) - 2) // 2)
  heads = [name.rjust(size) for name, size in zip(names, widths, strict=True)]
  lines = ["  ".join([*heads, "prompt".ljust(room), "response"])]
  lines.append("-" * min(width, len(lines[0]) + room - len("response")))
  for row, line in zip(rows, cells, strict=True):
    numbers = [c.rjust(size) for c, size in zip(line, widths, strict=True)]
    # The end of a prompt says most: its beginning is the template's.
    prompt = _one_line(row["prompt"])
    if len(prompt) > room:
      prompt = "…" + prompt[1 - room :]
    response = _one_line(row["response"])
    if len(response) > room:
      response = response[: room - 1] + "…"
    lines.append("  ".join([*numbers, prompt.ljust(room), response]))
  return "\n".join(lines)


def write_page(directory: str | pathlib.Path) -> pathlib.Path:
  """Writes samples.html beside the samples; returns its path."""
  path = pathlib.Path(directory) / HTML
  stages = training_samples.to_page(training_samples.require_stages(directory))
  title = f"Samples of {path.resolve().parent.name}"
  text = page.template("samples.html.jinja").render(title=title, stages=stages)
  files.write_text_atomic(path, text)
  return path


def _one_line(text: str) -> str:
  return " ".join(page.printable(text).split())
