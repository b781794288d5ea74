"""Scores the public tasks, which show the alignment tax.

As in the paper's automatic evaluations, answers are greedy and end with the
first sentence; multiple choice uses the mean log-probability per token. An item
with `next_word` is right if the greedy continuation begins with that word.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from instructgpt_jax.data import encoding, reading
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.runs import files
from instructgpt_jax.training import sampling, scoring
from instructgpt_jax.types import PyTree
from instructgpt_jax.world import tasks as grading

_WORD_TOKENS = 8  # the longest word that counts


def read_items(path: str) -> list[dict[str, Any]]:
  """Reads the items of a tasks.jsonl or of a table, see `world.tasks`."""
  items = []
  for number, item in _values(path):
    if isinstance(item, dict):
      item = {name: value for name, value in item.items() if value is not None}
    if not isinstance(item, dict) or not {"kind", "prompt"} <= set(item):
      raise UserError(
        "is not a task item",
        file=path,
        line=number,
        fix='use {"kind", "prompt", "reference"} or {…, "choices", "answer"}',
        code="bad_task_item",
      )
    if "choices" in item:
      item["answer"] = _read_answer(item, path, number)
    items.append(item)
  return items


def _values(path: str) -> Iterator[tuple[int, Any]]:
  """Yields (line or row, value) of JSON lines or of a table."""
  if reading.is_table(path):
    yield from reading.read_table(path)
    return
  for number, line in enumerate(files.read_text(path).splitlines(), 1):
    yield number, files.parse_json(line, path, number)


def _read_answer(item: Mapping[str, Any], path: str, number: int) -> int:
  """Returns the index of the right choice; a CSV file has it as text."""
  choices, answer = item["choices"], item.get("answer")
  if isinstance(answer, str) and answer.strip().isdecimal():
    answer = int(answer)
  if isinstance(answer, float) and answer.is_integer():
    answer = int(answer)
  if (
    not isinstance(choices, list)
    or isinstance(answer, bool)
    or not isinstance(answer, int)
    or not 0 <= answer < len(choices)
  ):
    raise UserError(
      f"{answer!r} is not the index of a choice",
      file=path,
      line=number,
      field="answer",
      fix="give a list of choices, and the index of the right one from 0",
      code="bad_task_item",
    )
  return answer


def score_tasks(
  model: LanguageModel,
  params: PyTree,
  items: Sequence[Mapping[str, Any]],
  *,
  tokenizer: Tokenizer,
  max_new_tokens: int,
  mesh: Mesh,
) -> dict[str, list[float]]:
  """Scores each item 0 or 1; returns kind → scores.

  Args:
    model: the language model.
    params: its parameters.
    items: see `read_items`.
    tokenizer: the model's tokenizer.
    max_new_tokens: maximum answer length.
    mesh: mesh that batches are put on.
  """
  closed = [i for i in items if "choices" in i]
  scores: dict[str, list[float]] = {}
  for field, limit, is_right in (
    ("reference", max_new_tokens, grading.exact_match),
    ("next_word", _WORD_TOKENS, _begins_with_word),
  ):
    open_ = [i for i in items if field in i]
    if not open_:
      continue
    rollout = sampling.respond(
      model,
      params,
      encoding.encode_documents([i["prompt"] for i in open_], tokenizer),
      jax.random.key(0),
      sampling=sampling.sampling_params(
        tokenizer, max_new_tokens=limit, temperature=0.0
      ),
      mesh=mesh,
    )
    for item, answer in zip(
      open_, sampling.texts(rollout, tokenizer), strict=True
    ):
      scores.setdefault(item["kind"], []).append(is_right(answer, item[field]))
  if closed:
    means = _mean_choice_logps(model, params, closed, tokenizer, mesh)
    for item, logps in zip(closed, means, strict=True):
      scores.setdefault(item["kind"], []).append(
        grading.choice_accuracy(logps, item["answer"])
      )
  return scores


def _begins_with_word(answer: str, word: str) -> float:
  """Returns 1.0 if the first word is the given one, punctuation aside."""
  words = answer.split()
  return float(
    bool(words)
    and words[0].strip(string.punctuation) == word.strip(string.punctuation)
  )


def _mean_choice_logps(
  model: LanguageModel,
  params: PyTree,
  items: Sequence[Mapping[str, Any]],
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> list[list[float]]:
  """Returns each choice's mean log-probability per token, for each item."""
  questions = [i["prompt"] for i in items for _ in i["choices"]]
  prompts = encoding.encode_documents(questions, tokenizer)
  choices = encoding.encode_continuations(
    [" " + c for i in items for c in i["choices"]], questions, tokenizer
  )
  examples = [
    scoring.Example(
      *encoding.with_loss_weights(prompt, choice, mask_prompt=True)
    )
    for prompt, choice in zip(prompts, choices, strict=True)
  ]
  totals = scoring.log_likelihood(model, params, examples, mesh)
  means = totals / [len(choice) for choice in choices]
  result, start = [], 0
  for item in items:
    stop = start + len(item["choices"])
    result.append([float(x) for x in means[start:stop]])
    start = stop
  return result
