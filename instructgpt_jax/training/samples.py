"""Samples: answers to a fixed set of validation prompts during a training.

A line of `samples.jsonl` is one answer:

  step         number of updates done
  iteration    number of iterations done (PPO)
  index        number of the prompt, from 0
  prompt       the prompt as the model sees it
  response     the answer
  reward       score of the reward model, if there is one; judge likewise
  kl           log π − log π_ref of the answer (PPO)
  length       number of its tokens
  stop_reason  "end", or "limit" where it reached the longest response
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from instructgpt_jax.runs.metrics import MetricWriter
from instructgpt_jax.runs.step_lines import StepLines
from instructgpt_jax.training.held_out import Answers
from instructgpt_jax.types import PyTree

SAMPLES = "samples.jsonl"


class SampleLoop(NamedTuple):
  """Samples during a training."""

  answer: Callable[[PyTree], Answers]  # of the trained parameters
  every: int  # steps, or iterations, between two sets of answers

  def is_due(self, count: int, *, last: bool) -> bool:
    """Returns whether a set is due after `count` steps or iterations."""
    return last or count % self.every == 0


class SampleWriter:
  """Appends sets of answers to `samples.jsonl`, and shows them in trackers."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    loop: SampleLoop | None,
    tracker: MetricWriter,
    *,
    resume_step: int,
  ):
    """Opens the file, unless the run has no samples.

    Args:
      workdir: directory of the run.
      loop: the run's samples, if any.
      tracker: shows the answers in the run's trackers.
      resume_step: step that the run resumes from; later lines are deleted.
    """
    self._loop, self._tracker = loop, tracker
    self._lines: StepLines | None = None
    if loop is not None:
      path = pathlib.Path(workdir) / SAMPLES
      self._lines = StepLines(path, resume_step=resume_step)

  def write_if_due(
    self,
    step: int,
    params: PyTree,
    *,
    iteration: int | None = None,
    last: bool = False,
  ) -> bool:
    """Answers the prompts if a set is due, and writes a line for each.

    Args:
      step: number of updates done.
      params: trained parameters.
      iteration: number of iterations done, where the loop counts these.
      last: whether this is the end of the run, which has a set as well.

    Returns:
      Whether a set was due.
    """
    count = step if iteration is None else iteration
    if self._loop is None or not self._loop.is_due(count, last=last):
      return False
    assert self._lines is not None
    rows = to_rows(self._loop.answer(params), iteration)
    for row in rows:
      self._lines.write(step, row)
    self._tracker.write_text(step, "samples", to_markdown(rows))
    return True

  def close(self) -> None:
    """Closes the file."""
    if self._lines is not None:
      self._lines.close()

  def __enter__(self) -> SampleWriter:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def to_rows(
  answers: Answers, iteration: int | None = None
) -> list[dict[str, Any]]:
  """Returns the lines of a set of answers, without their step."""
  rows = []
  for index, (prompt, text) in enumerate(
    zip(answers.prompts, answers.texts, strict=True)
  ):
    row: dict[str, Any] = {} if iteration is None else {"iteration": iteration}
    row |= {"index": index, "prompt": prompt, "response": text}
    row |= {name: float(s[index]) for name, s in answers.scores.items()}
    if answers.kl is not None:
      row["kl"] = float(answers.kl[index])
    row["length"] = int(answers.lengths[index])
    row["stop_reason"] = "end" if answers.ended[index] else "limit"
    rows.append(row)
  return rows


def to_markdown(rows: list[dict[str, Any]]) -> str:
  """Returns a Markdown table of the lines of a set."""
  names = [n for n in rows[0] if n not in ("iteration", "index")]
  lines = ["|".join(names), "|".join("---" for _ in names)]
  for row in rows:
    lines.append("|".join(_markdown_cell(row[name]) for name in names))
  return "\n".join(f"|{line}|" for line in lines)


def _markdown_cell(value: Any) -> str:
  """Formats a value so that no character of it ends the cell or is markup."""
  if isinstance(value, float):
    return f"{value:.3g}"
  text = "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in str(value))
  return " ⏎ ".join(text.splitlines())
