"""Answers to the prompts of a file."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from instructgpt_jax.data import reading
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress

if TYPE_CHECKING:
  from instructgpt_jax.chat.engine import ChatSession


def answer_file(
  prompts: str,
  output: str,
  load_session: Callable[[], ChatSession],
  *,
  system: str = "",
  overwrite: bool = False,
  batch_size: int = 32,
) -> tuple[int, int]:
  """Answers each prompt of a file; the output appears whole or not at all.

  Args:
    prompts: source of prompts: path, glob, directory or tfds name.
    output: jsonl file to write; "-" is stdout.
    load_session: loads the model; called after the files have been checked.
    system: system text before every prompt that has none.
    overwrite: whether an existing output may be replaced.
    batch_size: prompts decoded together.

  Returns:
    The numbers of answered and of skipped prompts.

  Raises:
    UserError: a file cannot be used, or all prompts are too long.
  """
  path = pathlib.Path("/dev/stdout" if output == "-" else output)
  files.check_output(path, field="--output", overwrite=overwrite)
  records, report = reading.read_prompts(prompts)
  if report.skipped or report.unused or report.notes:
    print(report, file=sys.stderr)
  _check_output_is_not_input(path, prompts, output)
  session = load_session()
  session.check_system_text(system)
  rows: list[dict[str, Any]] = []
  encoded: list[np.ndarray] = []
  longest_skipped = 0  # tokens
  for prompt in records:
    ids = _encode(session, prompt.turns, system, prompt.origin or prompts)
    row: dict[str, Any] = {
      "prompt": _prompt_value(prompt.turns),
      "completion": None,
      "ended": None,
    }
    if len(ids) > session.max_prompt:
      row["skipped"] = (
        f"{len(ids)} tokens; at most {session.max_prompt} leave room to answer"
      )
      longest_skipped = max(longest_skipped, len(ids))
    else:
      encoded.append(ids)
    rows.append(row)
  if longest_skipped and not encoded:
    raise UserError(
      f"all {len(rows)} prompts are over {session.max_prompt} tokens",
      file=prompts,
      fix=session.fix_for_length(longest_skipped),
      code="prompt_too_long",
    )
  size = min(batch_size, max(1, len(encoded)))
  with Progress(
    len(encoded), "answering", unit="prompt", compiles=True
  ) as progress:
    answers = iter(session.answer_batch(encoded, progress, size))
  for row in rows:
    if "skipped" not in row:
      row["completion"], row["ended"] = next(answers)
  files.write_jsonl_atomic(path, rows)
  return len(encoded), len(rows) - len(encoded)


def _check_output_is_not_input(
  path: pathlib.Path, prompts: str, output: str
) -> None:
  if (path.is_file() or path.is_fifo()) and any(
    pathlib.Path(p).exists() and path.samefile(p)
    for p in reading.expand(prompts)
  ):
    raise UserError(
      "is one of the files of prompts",
      file=output,
      field="--output",
      fix="name another file",
      code="output_is_input",
    )


def _encode(
  session: ChatSession, turns: Sequence[Turn], system: str, origin: str
) -> np.ndarray:
  """Returns the token ids of a prompt after the system text."""
  if system and turns[0].role != "system":
    turns = (Turn("system", system), *turns)
  try:
    return session.encode(turns)
  except UserError as error:
    if error.code != "template_refuses":
      raise
    raise UserError(
      error.problem,
      file=origin,
      fix="change its turns, or remove the record",
      code=error.code,
    ) from error


def _prompt_value(turns: Sequence[Turn]) -> str | list[dict[str, str]]:
  """Returns a prompt as its record states it: a text, or its messages."""
  if len(turns) == 1 and turns[0].role == "user":
    return turns[0].text
  return [{"role": turn.role, "content": turn.text} for turn in turns]
