"""Asks a model the items of a task, and scores its answers."""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks.registry import Questions, column
from instructgpt_jax.evaluation.tasks.task import (
  Answer,
  Item,
  Judge,
  Model,
  Task,
  write_prompt,
)


@dataclasses.dataclass(frozen=True)
class Row:
  """An answered item.

  Attributes:
    variant: key of the task's instructions.
    prompt: the whole prompt, with instruction, examples and chat template.
    item: the item.
    answer: what the model made of it.
    scores: measure → score.
    counts: measure of the corpus → this item's summands.
    is_cut: whether the prompt's beginning was cut to fit the model's context.
  """

  variant: str
  prompt: str
  item: Item
  answer: Answer
  scores: Mapping[str, float]
  counts: Mapping[str, Sequence[float]]
  is_cut: bool = False

  @property
  def main_score(self) -> float:
    """The score of the task's main measure."""
    return next(iter(self.scores.values()))

  def to_json(self) -> dict[str, Any]:
    """Returns everything that the score was made of."""
    item = self.item
    value: dict[str, Any] = {
      "id": item.id, "variant": self.variant, "prompt": self.prompt,
    }  # fmt: skip
    if item.group:  # a checksum: the text is in the prompt
      value["group"] = f"{zlib.crc32(item.group.encode()):08x}"
    if item.choices:
      value["choices"] = list(item.choices)
      value["right"] = list(item.right)
      value["log_likelihoods"] = [
        {
          "total": choice.total,
          "tokens": choice.tokens,
          "is_greedy": choice.is_greedy,
        }
        for choice in self.answer.likelihoods
      ]
    if item.references:
      value["references"] = list(item.references)
    if self.answer.text or not item.choices:
      value["answer"] = self.answer.text
    if self.is_cut:
      value["is_cut"] = True
    if self.answer.is_long:
      value["is_long"] = True
    value["scores"] = dict(self.scores)
    value["counts"] = {name: list(c) for name, c in self.counts.items()}
    return value


def is_generated(item: Item) -> bool:
  """Returns whether an item is answered by generation, perhaps among others."""
  return bool(item.references) or not item.choices


def shots_of(task: Task, shots: int) -> int:
  """Returns how many examples a task shows; 0 if the paper shows none."""
  return shots if task.paper_shots else 0


def draw_examples(
  item: Item, pool: Sequence[Item], shots: int, seed: int, name: str
) -> list[Item]:
  """Draws an item's solved examples.

  The draw depends on the seed, the task and the item alone. Items of the same
  group, the item itself, and items without an answer are left out.

  Args:
    item: the item.
    pool: items that may be examples.
    shots: number of examples.
    seed: seed of the draw.
    name: name of the task.

  Raises:
    UserError: `few_examples`, the pool has fewer.
  """
  if not shots:
    return []
  generator = random.Random(f"{name} {item.id} {seed}")
  count = 0
  for size in (min(4 * shots + 32, len(pool)), len(pool)):
    others = [
      pool[i]
      for i in generator.sample(range(len(pool)), size)
      if pool[i].answer
      and pool[i].prompt != item.prompt
      and not (item.group and pool[i].group == item.group)
    ]
    count = len(others)
    if count >= shots:
      return others[:shots]
  raise UserError(
    f"{name} has {count} items that can be examples of item {item.id}",
    field="--shots",
    fix="use fewer examples, or draw them from a larger file",
    code="few_examples",
  )


def measure(
  model: Model,
  questions: Questions,
  *,
  shots: int = 0,
  seed: int = 0,
  judges: Mapping[str, Judge] | None = None,
  chat: bool = False,
) -> list[Row]:
  """Asks a model all items in every variant, and scores the answers.

  Args:
    model: the model.
    questions: the task and its items.
    shots: examples before an item, see `shots_of`.
    seed: seed of the examples.
    judges: name → judge; a task whose judge is not among them lacks its
      measures.
    chat: whether a prompt is the user's turn of a chat, which the answer or a
      choice replies to. An empty prompt is none.

  Returns:
    A row for each variant and item, by variant.

  Raises:
    UserError: `short_context`, the model has no room for an answer; or the
      model has no chat template.
  """
  task = questions.task
  shots = shots_of(task, shots)
  asked = []
  for variant, instruction in task.instructions.items():
    for item in questions.items:
      examples = draw_examples(item, questions.pool, shots, seed, task.name)
      prompt = write_prompt(instruction, examples, item)
      is_turn = chat and bool(prompt.strip())
      if is_turn:
        content = prompt.removesuffix(task.cue).strip()
        prompt = model.chat([{"role": "user", "content": content}])
      asked.append(_Asked(variant, prompt, item, is_turn))
  answers = _ask(model, task, asked)
  rows = [
    Row(
      variant,
      prompt,
      item,
      answer,
      task.score(item, answer),
      {
        name: [float(x) for x in corpus.counts(item, answer)]
        for name, corpus in task.corpus.items()
      },
      _is_cut(model, task, prompt, item),
    )
    for (variant, prompt, item, _), answer in zip(asked, answers, strict=True)
  ]
  judge = (judges or {}).get(task.judge)
  return _judged(rows, judge) if judge is not None else rows


def answer_tasks(
  model: Model, tasks: Sequence[Questions]
) -> dict[str, list[Row]]:
  """Asks a model the items of tasks, without examples.

  Args:
    model: the model.
    tasks: the tasks with their items.

  Returns:
    `registry.column` of a task's variant → its answered items.
  """
  rows: dict[str, list[Row]] = {}
  for questions in tasks:
    if questions.task.judge:  # Without it, generated answers have no measure.
      task = dataclasses.replace(questions.task, max_tokens=0)
      questions = dataclasses.replace(questions, task=task)
    for row in measure(model, questions):
      rows.setdefault(column(questions.task, row.variant), []).append(row)
  return rows


class _Asked(NamedTuple):
  """What a model is asked."""

  variant: str
  prompt: str
  item: Item
  is_turn: bool  # whether the prompt is the user's turn of a chat


def _ask(model: Model, task: Task, asked: Sequence[_Asked]) -> list[Answer]:
  """Returns an answer to each prompt."""
  answers = [Answer()] * len(asked)
  generated = [
    i
    for i, row in enumerate(asked)
    if task.max_tokens and is_generated(row.item)
  ]
  if generated and task.max_tokens >= model.context:
    raise UserError(
      f"{task.name} has answers of up to {task.max_tokens} tokens, and the"
      f" model reads {model.context} with its prompt",
      fix=f"leave {task.name} out, or give a model of a longer context",
      code="short_context",
    )
  if generated:
    # A blank belongs to the first token of the answer, not to the prompt.
    replies = model.generate(
      [asked[i].prompt.rstrip(" ") for i in generated],
      stop=task.stop,
      max_tokens=task.max_tokens,
    )
    most = len(model.encode("")) + task.max_tokens
    for i, reply in zip(generated, replies, strict=True):
      is_long = len(model.encode(reply)) >= most
      answers[i] = Answer(reply.strip(), is_long=is_long)
  pairs = [_split(row, choice) for row in asked for choice in row.item.choices]
  likelihoods = iter(model.log_likelihoods(pairs) if pairs else ())
  return [
    answer._replace(
      likelihoods=tuple(next(likelihoods) for _ in row.item.choices)
    )
    for answer, row in zip(answers, asked, strict=True)
  ]


def _is_cut(model: Model, task: Task, prompt: str, item: Item) -> bool:
  """Returns whether a prompt and its answer are too long for the model."""
  longest = max((len(choice) for choice in item.choices), default=0)
  if len(prompt.encode()) + 4 * longest + task.max_tokens < model.context:
    return False  # A token has at least one byte.
  if task.max_tokens and is_generated(item):
    if len(model.encode(prompt)) > model.context - task.max_tokens:
      return True
  # The last token of a choice is predicted and not read.
  return any(
    len(model.encode(prompt + choice)) > model.context + 1
    for choice in item.choices
  )


def _split(asked: _Asked, choice: str) -> tuple[str, str]:
  """Moves the blanks at a prompt's end to the choice.

  A reply has a blank ahead unless the chat template ends with one.
  """
  prompt = asked.prompt
  if asked.is_turn:
    return prompt, ("" if prompt[-1:].isspace() else " ") + choice.strip()
  context = prompt.rstrip(" ")
  return context, prompt[len(context) :] + choice


def _judged(rows: Sequence[Row], judge: Judge) -> list[Row]:
  """Adds a judge's measures to the scores."""
  measures = judge(
    [row.item.extra["question"] for row in rows],
    [row.answer.text for row in rows],
  )
  return [
    dataclasses.replace(
      row,
      # A judge's measures come first: they are the paper's.
      scores={
        **{name: float(scores[i]) for name, scores in measures.items()},
        **row.scores,
      },
    )
    for i, row in enumerate(rows)
  ]
