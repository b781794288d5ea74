"""Samples answers of several stages to prompts, for people to label."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from instructgpt_jax.data.records import Prompt, Turn
from instructgpt_jax.errors import UserError


class Session(Protocol):
  """What is used of `chat.engine.ChatSession`."""

  max_prompt: int

  def encode(self, turns: Sequence[Turn]) -> Any:
    """Returns the token ids of a conversation."""
    ...

  def answer_batch(
    self, prompts: Sequence[Any], progress: Any, batch_size: int
  ) -> list[tuple[str, bool]]:
    """Answers many prompts."""
    ...


class Sampled(NamedTuple):
  """Records of `{"prompt", "completions", "sources"}`.

  Attributes:
    records: one for each prompt with two different answers.
    too_long: number of prompts that are too long for a model.
    equal: number of prompts whose answers are all equal or empty.
  """

  records: list[dict[str, Any]]
  too_long: int
  equal: int


def shares(completions: int, stages: int) -> list[int]:
  """Divides completions among stages, as evenly as possible.

  Raises:
    UserError: there are fewer completions than stages.
  """
  if completions < max(2, stages):
    raise UserError(
      f"{completions} completions are too few for {stages} stages",
      field="--completions",
      fix=f"use at least {max(2, stages)}",
      code="too_few_completions",
    )
  return [
    completions // stages + (i < completions % stages) for i in range(stages)
  ]


def sample_answers(
  prompts: Sequence[Prompt],
  stages: Sequence[str],
  load: Callable[[str], Session],
  *,
  completions: int,
  seed: int,
  batch_size: int = 32,
  progress: Any,
) -> Sampled:
  """Samples answers, without repetitions and in random order.

  Args:
    prompts: the prompts.
    stages: names of the models, for `load` and for `sources`.
    load: loads a model that samples with its own seed.
    completions: number of answers to each prompt, over all models.
    seed: seed of the order.
    batch_size: answers decoded together.
    progress: counts answers.

  Raises:
    UserError: there are too few completions, or all prompts are too long or
      have equal answers only.
  """
  counts = shares(completions, len(stages))
  pools: list[list[tuple[str, str]]] = [[] for _ in prompts]
  too_long: set[int] = set()
  for stage, count in zip(stages, counts, strict=True):
    session = load(stage)
    encoded = [session.encode(prompt.turns) for prompt in prompts]
    too_long |= {
      i for i, ids in enumerate(encoded) if len(ids) > session.max_prompt
    }
    short = [i for i in range(len(prompts)) if i not in too_long]
    rows = [i for i in short for _ in range(count)]
    answers = session.answer_batch(
      [encoded[i] for i in rows], progress, batch_size
    )
    for i, (text, _) in zip(rows, answers, strict=True):
      pools[i].append((text.strip(), stage))
  records, equal = [], 0
  for i, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
    if i in too_long:
      continue
    record = _record(prompt, pool, random.Random(f"answers {seed} {i}"))
    if record is None:
      equal += 1
    else:
      records.append(record)
  if not records:
    raise UserError(
      f"of {len(prompts)} prompts, {len(too_long)} are too long, and {equal}"
      " have equal or empty answers only",
      field="--prompts",
      fix="use other prompts, or a higher --temperature",
      code="no_items",
    )
  return Sampled(records, len(too_long), equal)


def _record(
  prompt: Prompt, pool: Sequence[tuple[str, str]], rng: random.Random
) -> dict[str, Any] | None:
  """Returns the record of a prompt; None without two different answers."""
  # Shuffled first, so that an answer of two models is either's by chance.
  order = rng.sample(pool, len(pool))
  first: dict[str, str] = {}
  for text, stage in order:
    if text:
      first.setdefault(text, stage)
  if len(first) < 2:
    return None
  record: dict[str, Any] = {
    "prompt": [{"role": t.role, "content": t.text} for t in prompt.turns],
    "completions": list(first),
    "sources": list(first.values()),
  }
  if prompt.user_id:
    record["user_id"] = prompt.user_id
  if prompt.split:
    record["split"] = prompt.split
  return record


def pair_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns a comparison of every two answers of different models."""
  pairs = []
  for record in records:
    answers = list(zip(record["completions"], record["sources"], strict=True))
    for i, first in enumerate(answers):
      for second in answers[i + 1 :]:
        if first[1] != second[1]:
          texts, sources = zip(first, second, strict=True)
          pairs.append(
            {**record, "completions": list(texts), "sources": list(sources)}
          )
  return pairs
