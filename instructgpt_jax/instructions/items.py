"""Sets of instructions, and files of them."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.instructions import kinds
from instructgpt_jax.runs import files

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Item:
  """An instruction.

  Attributes:
    prompt: its text.
    kind: name in `kinds.KINDS`.
    argument: what the check of the kind needs.
  """

  prompt: str
  kind: str
  argument: kinds.Argument

  def is_fulfilled(self, answer: str) -> bool:
    """Returns whether an answer does what was asked."""
    return kinds.KINDS[self.kind].is_fulfilled(answer, self.argument)


def make_items(split: Split, per_kind: int, seed: int = 0) -> list[Item]:
  """Makes different instructions of every kind, in random order.

  Args:
    split: "train" or "test"; they share no topic.
    per_kind: instructions of each kind.
    seed: seed of the choice and of the order.

  Raises:
    UserError: `too_many_items`, a kind has fewer.
  """
  rng = random.Random(f"{split} {seed}")
  topics = kinds.TRAIN_TOPICS if split == "train" else kinds.TEST_TOPICS
  items = []
  for kind in kinds.KINDS.values():
    every = [
      Item(text.format(topic=topic, argument=words), kind.name, value)
      for topic in topics
      for text in kind.texts
      for words, value in kind.arguments.items()
    ]
    if per_kind > len(every):
      raise UserError(
        f"there are {len(every)} {split} instructions of kind {kind.name}",
        field="--per_kind",
        fix=f"give at most {len(every)}",
        code="too_many_items",
      )
    items += rng.sample(every, per_kind)
  rng.shuffle(items)
  return items


def write_items(path: str | os.PathLike[str], items: Sequence[Item]) -> None:
  """Writes a JSONL file of prompts, which also say how they are checked."""
  rows = (
    {"prompt": i.prompt, "kind": i.kind, "argument": i.argument} for i in items
  )
  files.write_jsonl_atomic(path, rows)


def read_items(path: str) -> list[Item]:
  """Reads a file of `write_items`.

  Raises:
    UserError: it cannot be read, or a line is no instruction.
  """
  items = []
  for number, record in _records(path):
    kind = kinds.KINDS.get(_text(record, "kind", path, number))
    if kind is None:
      raise UserError(
        f"there is no kind {record['kind']!r}",
        file=path,
        line=number,
        field="kind",
        fix=configs.nearest(record["kind"], kinds.KINDS)
        or f"kinds are {', '.join(kinds.KINDS)}",
        code="unknown_kind",
      )
    argument = record.get("argument")
    if argument not in kind.arguments.values() or isinstance(argument, bool):
      values = ", ".join(repr(v) for v in kind.arguments.values())
      raise UserError(
        f"{argument!r} is no argument of {kind.name}",
        file=path,
        line=number,
        field="argument",
        fix=f"arguments are {values}",
        code="bad_argument",
      )
    prompt = _text(record, "prompt", path, number)
    items.append(Item(prompt, kind.name, argument))
  return items


def read_answers(path: str, prompts: Iterable[str]) -> dict[str, list[str]]:
  """Reads the answers that `instructgpt_jax.chat --prompts` has written.

  Args:
    path: a JSONL file with `prompt` and `completion`.
    prompts: the prompts that must be answered.

  Returns:
    Prompt → its answers, for each of `prompts`. A prompt that was too long for
    the model has the answer "".

  Raises:
    UserError: it cannot be read, or lacks an answer to a prompt
      (`unanswered`).
  """
  answers: dict[str, list[str]] = {prompt: [] for prompt in prompts}
  others = 0
  for number, record in _records(path):
    prompt = _text(record, "prompt", path, number)
    completion = record.get("completion")
    if completion is None and "skipped" in record:
      completion = ""
    if not isinstance(completion, str):
      raise UserError(
        "has no text",
        file=path,
        line=number,
        field="completion",
        fix="give a file that instructgpt_jax.chat has written",
        code="no_completion",
      )
    if prompt in answers:
      answers[prompt].append(completion)
    else:
      others += 1
  unanswered = [prompt for prompt, texts in answers.items() if not texts]
  if unanswered:
    raise UserError(
      f"has no answer to {len(unanswered)} of {len(answers)} instructions, such"
      f" as {unanswered[0]!r}, and {others} answers to other prompts",
      file=path,
      fix="answer the prompts of the file that --items names",
      code="unanswered",
    )
  return answers


def _records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the number and the object of each line that is not blank."""
  for number, line in enumerate(files.read_text(path).split("\n"), 1):
    if not line.strip():
      continue
    record = files.parse_json(line, path, number)
    if not isinstance(record, dict):
      raise UserError(
        "is not a JSON object",
        file=path,
        line=number,
        fix="give a file with one JSON object a line",
        code="not_an_object",
      )
    yield number, record


def _text(record: dict[str, Any], name: str, path: str, line: int) -> str:
  value = record.get(name)
  if isinstance(value, str):
    return value
  raise UserError(
    "is missing" if value is None else "is not a text",
    file=path,
    line=line,
    field=name,
    fix="give a file that this command or instructgpt_jax.chat has written",
    code="bad_field",
  )
