"""Tasks of one's own in a file: the world's tasks.jsonl, or a table.

An item is {"kind", "prompt", "reference"}, answered greedily and compared with
the first sentence, or {"kind", "prompt", "choices", "answer"}. Each kind is a
task.
"""

from __future__ import annotations

from instructgpt_jax.evaluation.tasks import choices
from instructgpt_jax.evaluation.tasks.records import Record, read_records
from instructgpt_jax.evaluation.tasks.task import Answer, Item, Scores, Task
from instructgpt_jax.world import tasks as grading

_EXPECTED = (
  'items: {"kind", "prompt", "reference"} or {"kind", "prompt", "choices",'
  ' "answer"}, where answer is the index of the right choice, from 0'
)


def read_items(path: str) -> dict[str, list[Item]]:
  """Reads the items of a file; returns kind → its items.

  Raises:
    UserError: the file cannot be read, or an item is malformed.
  """
  items: dict[str, list[Item]] = {}
  for record in read_records(path, _EXPECTED):
    items.setdefault(record.text("kind"), []).append(_item(record))
  return items


def _item(record: Record) -> Item:
  prompt, name = record.text("prompt"), str(record.place or record.line)
  if record.get("choices", default=None) is None:
    reference = record.text("reference")
    return Item(name, prompt, answer=f" {reference}", references=(reference,))
  if not isinstance(record.get("choices"), list):
    raise record.error("is not a list", "choices")
  texts = [str(choice) for choice in record.get("choices")]
  answer = record.get("answer", default=None)
  if isinstance(answer, bool):
    raise record.error("is not the index of a choice", "answer")
  index = record.label("answer", {str(i): i for i in range(len(texts))})
  return choices.one_of(name, prompt, texts, index)


def make_task(kind: str, max_tokens: int) -> Task:
  """Makes the task of a kind.

  Args:
    kind: its name.
    max_tokens: longest generated answer.
  """
  return Task(kind, _score, max_tokens=max_tokens)


def _score(item: Item, answer: Answer) -> Scores:
  if item.choices:
    return choices.score_choices(item, answer)
  (reference,) = item.references
  return {"exact_match": grading.exact_match(answer.text, str(reference))}
