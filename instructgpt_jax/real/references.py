"""Rankings of a model's answers below the answers that people wrote.

People's rankings compare fluent answers, so that a reward model trained on
them alone does not know what a small model writes when it errs. PPO then finds
text that is no language and has a high reward.
"""

from __future__ import annotations

import os
import pathlib
import random
from collections.abc import Sequence

from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

# As long as the answers that are sampled, so that length tells nothing.
MAX_CHARACTERS = 240


def draw(spec: str, path: str | os.PathLike[str], count: int) -> None:
  """Writes prompts of demonstrations, each with its reference.

  Args:
    spec: source of demonstrations.
    path: JSONL file to write.
    count: number of different prompts; fewer if there are not as many.

  Raises:
    UserError: `no_references`, no demonstration is short enough; and errors of
      reading.
  """
  demonstrations, _ = reading.read_demonstrations(spec)
  short = {
    d.turns: d.completion
    for d in demonstrations
    if len(d.completion) <= MAX_CHARACTERS
  }
  if not short:
    raise UserError(
      f"no demonstration has at most {MAX_CHARACTERS} characters",
      field="demonstrations",
      fix="give demonstrations with short answers as well",
      code="no_references",
    )
  drawn = random.Random(0).sample([*short], min(count, len(short)))
  files.write_jsonl_atomic(
    path,
    (
      {
        "prompt": [{"role": t.role, "content": t.text} for t in turns],
        "reference": short[turns],
      }
      for turns in drawn
    ),
  )


def rank(
  prompts: str | os.PathLike[str],
  answers: Sequence[str | os.PathLike[str]],
  path: str | os.PathLike[str],
) -> None:
  """Writes rankings with the reference first and all answers tied behind it.

  Args:
    prompts: file of `draw`.
    answers: files that `instructgpt_jax.chat` has written for it.
    path: JSONL file to write.
  """
  records = _read(prompts)
  columns = [[row["completion"] for row in _read(a)] for a in answers]
  rankings = []
  for record, *texts in zip(records, *columns, strict=True):
    reference = record["reference"]
    others = dict.fromkeys(t for t in texts if t and t.strip())
    others.pop(reference, None)
    if others:
      rankings.append(
        {
          "prompt": record["prompt"],
          "completions": [reference, *others],
          "ranks": [1, *(2 for _ in others)],
        }
      )
  files.write_jsonl_atomic(path, rankings)


def _read(path: str | os.PathLike[str]) -> list[dict]:
  lines = files.read_text(pathlib.Path(path)).splitlines()
  return [files.parse_json(line, path, i) for i, line in enumerate(lines, 1)]
