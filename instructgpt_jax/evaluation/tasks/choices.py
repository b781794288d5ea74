"""Multiple choice: HellaSwag, RTE, SST-2, and LAMBADA's last word.

The paper takes the choice with the best mean log-probability per token. The
evaluation harness takes the best sum (`acc`), or the best sum per character
(`acc_norm`). All three are measured.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from instructgpt_jax.data.reading import text_files
from instructgpt_jax.evaluation.tasks import records
from instructgpt_jax.evaluation.tasks.records import Record, read_records
from instructgpt_jax.evaluation.tasks.task import (
  Answer,
  CorpusMeasure,
  Item,
  Scores,
  Task,
)

_HELLASWAG = (
  'HellaSwag\'s hellaswag_val.jsonl: {"activity_label", "ctx_a", "ctx_b",'
  ' "endings", "label"}'
)
_SST2 = "SST-2's dev.tsv: a sentence, a tab, and 0 or 1"
_RTE = (
  "RTE's dev.tsv (GLUE: sentence1, sentence2, label) or val.jsonl (SuperGLUE:"
  " premise, hypothesis, label)"
)
_LAMBADA = 'LAMBADA\'s test set as JSON lines: {"text"}, or a passage a line'


def score_choices(item: Item, answer: Answer) -> Scores:
  """Scores the most likely choice, by three kinds of likelihood."""
  totals = [likelihood.total for likelihood in answer.likelihoods]
  tokens = [max(1, likelihood.tokens) for likelihood in answer.likelihoods]
  # The harness counts all but the blank that it puts ahead.
  characters = [max(1, len(c.removeprefix(" "))) for c in item.choices]

  def is_right(lengths: Sequence[int]) -> float:
    best = int(np.argmax(np.array(totals) / lengths))  # Ties: the first.
    return float(best in item.right)

  return {
    "accuracy": is_right(tokens),
    "accuracy_total": is_right([1] * len(totals)),
    "accuracy_per_character": is_right(characters),
  }


def one_of(
  name: str,
  prompt: str,
  choices: Sequence[str],
  right: int,
  *,
  group: str = "",
) -> Item:
  """Makes an item whose choices follow its prompt after a blank."""
  continuations = tuple(f" {choice}" for choice in choices)
  return Item(
    name,
    prompt,
    answer=continuations[right],
    choices=continuations,
    right=(right,),
    group=group,
  )


def _read_hellaswag(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record in read_records(path, _HELLASWAG):
    endings = record.texts("endings")
    label = record.label("label", {str(i): i for i in range(len(endings))})
    activity, start = record.text("activity_label"), record.text("ctx_a")
    rest = record.text_or_blank("ctx_b").capitalize()
    yield one_of(
      str(record.get("ind", default=record.line)),
      _without_brackets(f"{activity}: {start} {rest}"),
      [_without_brackets(ending) for ending in endings],
      label,
      group=str(record.get("source_id", default="")),
    )


def _without_brackets(text: str) -> str:
  """Replaces WikiHow's marks, as the harness does."""
  text = text.strip().replace(" [title]", ". ")
  return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def read_sentences(path: str) -> Iterator[tuple[Record, str, int]]:
  """Yields (record, sentence, 0 or 1) of SST-2; its TSV may lack a header."""
  if text_files.suffix(path) != ".tsv":
    for record in read_records(path, _SST2):
      yield (
        record,
        record.text("sentence"),
        record.label("label", {"0": 0, "1": 1}),
      )
    return
  for number, cells in records.tab_cells(path):
    record = Record({}, path, number, _SST2)
    if number == 1 and cells == ["sentence", "label"]:
      continue
    if len(cells) != 2 or not cells[0].strip() or cells[1] not in ("0", "1"):
      raise record.error("is not a sentence, a tab, and 0 or 1")
    yield record, cells[0], int(cells[1])


def _read_sst2(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record, sentence, label in read_sentences(path):
    yield one_of(
      str(record.line),
      f"Text: {sentence.strip()}\nLabel:",
      ("negative", "positive"),
      label,
    )


def read_sst2_harness(path: str, unused: Counter[str]) -> Iterator[Item]:
  """Reads SST-2 with the prompts of the evaluation harness."""
  del unused
  for record, sentence, label in read_sentences(path):
    yield one_of(
      str(record.line),
      f"{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
      ("negative", "positive"),
      label,
    )


def _entailments(path: str) -> Iterator[tuple[Record, str, str, bool]]:
  """Yields (record, premise, hypothesis, whether it follows) of RTE."""
  labels = {"entailment": 1, "not_entailment": 0, "0": 1, "1": 0}
  for record in read_records(path, _RTE):
    premise = record.text("sentence1", "premise").strip()
    hypothesis = record.text("sentence2", "hypothesis").strip()
    yield record, premise, hypothesis, bool(record.label("label", labels))


def _read_rte(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record, premise, hypothesis, follows in _entailments(path):
    yield one_of(
      str(record.line),
      f"Passage: {premise}\nQuestion: From this passage can one reasonably"
      f" conclude that {hypothesis.rstrip(' .')}?\nAnswer:",
      ("Yes", "No"),
      int(not follows),
      group=premise,
    )


def read_rte_harness(path: str, unused: Counter[str]) -> Iterator[Item]:
  """Reads RTE with the prompts of the evaluation harness."""
  del unused
  for record, premise, hypothesis, follows in _entailments(path):
    yield one_of(
      str(record.line),
      f"{premise}\nQuestion: {hypothesis} True or False?\nAnswer:",
      ("True", "False"),
      int(not follows),
      group=premise,
    )


def _read_lambada(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  if text_files.suffix(path) == ".txt":
    lines = text_files.read_text(path).split("\n")
    passages = [
      Record({"text": line}, path, number, _LAMBADA)
      for number, line in enumerate(lines, 1)
      if line.strip()
    ]
  else:
    passages = read_records(path, _LAMBADA)
  for record in passages:
    parts = record.text("text").strip().rsplit(" ", 1)
    if len(parts) != 2:
      raise record.error("has no word before its last one", "text")
    yield one_of(str(record.line), parts[0], [parts[1]], 0)


def _score_word(item: Item, answer: Answer) -> Scores:
  del item
  return {"accuracy": float(answer.likelihoods[0].is_greedy)}


PERPLEXITY = CorpusMeasure(
  counts=lambda _, answer: (-answer.likelihoods[0].total, 1),
  value=lambda counts: math.exp(counts[0] / counts[1]),
)

HELLASWAG = Task(
  "hellaswag",
  score_choices,
  _HELLASWAG,
  _read_hellaswag,
  instructions={
    "": "Complete each independent paragraph using common-sense reasoning.\n\n"
  },
  paper_shots=15,
)
SST2 = Task(
  "sst2",
  score_choices,
  _SST2,
  _read_sst2,
  instructions={
    "": "For each snippet of text, label the sentiment of the text as positive"
    " or negative.\n\n"
  },
  paper_shots=15,
)
RTE = Task("rte", score_choices, _RTE, _read_rte, paper_shots=15)
LAMBADA = Task(
  "lambada",
  _score_word,
  _LAMBADA,
  _read_lambada,
  corpus={"perplexity": PERPLEXITY},
)
