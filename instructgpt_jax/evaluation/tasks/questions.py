"""Questions about a text: SQuAD v2, DROP and QuAC.

As in the samples that OpenAI released, a question follows the earlier questions
about its passage with their answers.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax.evaluation import text_metrics
from instructgpt_jax.evaluation.tasks.records import Record, read_records
from instructgpt_jax.evaluation.tasks.task import (
  Answer,
  Item,
  Reference,
  Scores,
  Task,
)

NOT_IN_BACKGROUND = "Not in background."
DO_NOT_KNOW = "I don't know."
_CANNOT_ANSWER = "CANNOTANSWER"
_MAX_TOKENS = 48
_SQUAD = (
  "SQuAD's dev-v2.0.json, or a table with title, context, question and answers"
)
_DROP = "DROP's drop_dataset_dev.json, or a table with its passages"
_QUAC = "QuAC's val_v0.2.json"


def _score_squad(item: Item, answer: Answer) -> Scores:
  return {
    "f1": text_metrics.token_f1(answer.text, _texts(item)),
    "exact_match": text_metrics.exact_match(answer.text, _texts(item)),
  }


def _texts(item: Item) -> list[str]:
  return [text for text in item.references if isinstance(text, str)]


def _conversation(
  title: str, background: str, turns: Sequence[tuple[str, str]], question: str
) -> str:
  lines = [title, background]
  for earlier, answer in turns:
    lines += [f"Q: {earlier}", f"A: {answer}"]
  return "\n\n".join([*lines, f"Q: {question}", "A:"])


def _read_squad(path: str, unused: Counter[str]) -> Iterator[Item]:
  """Reads SQuAD v2, as published or as a table of questions."""
  del unused
  record, answerable = None, True
  turns: dict[str, list[tuple[str, str]]] = {}  # of each passage so far
  for record, answers in _squad_questions(path):
    is_marked = "is_impossible" in record.value
    answerable = answerable and bool(answers) and not is_marked
    references = tuple(dict.fromkeys(answers)) or (NOT_IN_BACKGROUND,)
    context, question = record.text("context"), record.text("question").strip()
    earlier = turns.setdefault(context, [])
    yield Item(
      str(record.get("id", default=record.place or record.line)),
      _conversation(
        f"Title: {record.text_or_blank('title')}",
        f"Background: {context.strip()}",
        earlier,
        question,
      ),
      answer=f" {references[0]}",
      references=references,
      group=context,
    )
    earlier.append((question, references[0]))
  if record is not None and answerable:
    raise record.error(
      "all questions have answers, as in SQuAD v1.1; v2.0 has others"
    )


def _squad_questions(path: str) -> Iterator[tuple[Record, list[str]]]:
  """Yields each question, with title and context, and its answers."""
  for record in read_records(path, _SQUAD):
    if "data" not in record.value:
      yield record, record.child("answers").texts("text")
      continue
    version = str(record.get("version", default="v2.0"))
    if not version.startswith("v2"):
      raise record.error(f"is version {version}, not v2.0", "version")
    for article in record.children("data"):
      for paragraph in article.children("paragraphs"):
        context = {"context": paragraph.text("context")}
        for question in paragraph.children("qas"):
          value = {**article.value, **question.value, **context}
          yield (
            dataclasses.replace(question, value=value),
            _squad_answers(question),
          )


def _squad_answers(question: Record) -> list[str]:
  if not isinstance(question.get("is_impossible", default=None), bool):
    raise question.error("is missing, so this is SQuAD v1.1", "is_impossible")
  answers = [answer.text("text") for answer in question.children("answers")]
  if not answers and not question.get("is_impossible"):
    raise question.error("is empty, but the question is answerable", "answers")
  return answers


def _read_drop(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record in read_records(path, _DROP):
    if "passage" in record.value and "question" in record.value:
      yield _drop_item(record, record.text("passage"), _drop_answers(record))
      continue
    for name in record.value:
      entry = record.child(name)
      passage = entry.text("passage")
      for question in entry.children("qa_pairs"):
        yield _drop_item(question, passage, _drop_answers(question))


def _drop_answers(question: Record) -> list[tuple[str, ...]]:
  """Returns the spans of each accepted answer."""
  if "answers_spans" in question.value:
    return [tuple(question.child("answers_spans").texts("spans"))]
  answers = [question.child("answer")]
  validated = question.get("validated_answers", default=[])
  if isinstance(validated, Mapping):  # A list for each field, as in tables.
    columns = list(validated.values())
    if not all(
      isinstance(column, list) and len(column) == len(columns[0])
      for column in columns
    ):
      raise question.error("has no lists of one length", "validated_answers")
    rows = [
      dict(zip(validated, row, strict=True))
      for row in zip(*columns, strict=True)
    ]
    question = dataclasses.replace(
      question, value={**question.value, "validated_answers": rows}
    )
  if validated:
    answers += question.children("validated_answers")
  return [_drop_spans(answer) for answer in answers]


def _drop_spans(answer: Record) -> tuple[str, ...]:
  """Returns the texts of an answer: a number, spans or a date."""
  number = str(answer.get("number", default="")).strip()
  if number:
    return (number,)
  spans = answer.get("spans", default=[])
  if spans:
    return tuple(answer.texts("spans"))
  if not answer.get("date", default={}):
    return ("",)
  date = answer.child("date")
  parts = [str(date.get(name, default="")) for name in ("day", "month", "year")]
  return (" ".join(part for part in parts if part.strip()),)


def _drop_item(
  record: Record, passage: str, answers: Sequence[tuple[str, ...]]
) -> Item:
  references = [spans for spans in answers if any(t.strip() for t in spans)]
  if not references:
    raise record.error("has no number, span or date", "answer")
  unique: tuple[Reference, ...] = tuple(dict.fromkeys(references))
  return Item(
    str(record.get("query_id", default=record.place or record.line)),
    f"Passage: {passage.strip()}\nQuestion: {record.text('question').strip()}"
    "\nAnswer:",
    answer=f" {', '.join(references[0])}",
    references=unique,
    group=passage,
  )


def _score_drop(item: Item, answer: Answer) -> Scores:
  # An answer that lists spans has commas where an example's has them.
  listed = [part.strip() for part in answer.text.split(", ")]
  forms: list[Any] = [answer.text]
  if any(len(r) > 1 for r in item.references if isinstance(r, tuple)):
    forms.append(listed)
  return {
    name: max(measure(form, item.references) for form in forms)
    for name, measure in (
      ("f1", text_metrics.drop_f1),
      ("exact_match", text_metrics.drop_exact_match),
    )
  }


def _score_quac(item: Item, answer: Answer) -> Scores:
  references = text_metrics.quac_references(_texts(item), DO_NOT_KNOW)
  return {
    "f1": text_metrics.leave_one_out_f1(answer.text, references),
    "exact_match": text_metrics.exact_match(answer.text, references),
  }


def _read_quac(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record in read_records(path, _QUAC):
    for article in record.children("data"):
      for paragraph in article.children("paragraphs"):
        yield from _quac_paragraph(article, paragraph)


def _quac_paragraph(article: Record, paragraph: Record) -> Iterator[Item]:
  context = paragraph.text("context").removesuffix(_CANNOT_ANSWER).strip()
  turns: list[tuple[str, str]] = []
  for question in paragraph.children("qas"):
    if "yesno" not in question.value:
      raise question.error("is missing, so this is not QuAC", "yesno")
    answers = [
      answer.text("text").replace(_CANNOT_ANSWER, DO_NOT_KNOW).strip()
      for answer in question.children("answers")
    ]
    first = question.child("orig_answer").text("text")
    first = first.replace(_CANNOT_ANSWER, DO_NOT_KNOW).strip()
    text = question.text("question").strip()
    prompt = _conversation(
      f"TITLE: {article.text_or_blank('title')}",
      f"PARAGRAPH: {context}",
      turns,
      text,
    )
    yield Item(
      question.text("id"),
      prompt,
      answer=f" {first}",
      references=tuple(answers) or (first,),
      group=context,
    )
    turns.append((text, first))


SQUAD_V2 = Task(
  "squad_v2",
  _score_squad,
  _SQUAD,
  _read_squad,
  instructions={
    "": "Answer each question using information in the preceding background"
    " paragraph.\nIf there is not enough information provided, answer with"
    f' "{NOT_IN_BACKGROUND}"\n\n'
  },
  paper_shots=4,
  max_tokens=_MAX_TOKENS,
)
DROP = Task(
  "drop",
  _score_drop,
  _DROP,
  _read_drop,
  instructions={
    "": "Answer each question using information in the preceding passage.\n\n"
  },
  paper_shots=4,
  max_tokens=_MAX_TOKENS,
)
QUAC = Task(
  "quac",
  _score_quac,
  _QUAC,
  _read_quac,
  instructions={
    "": "Answer each question using information in the preceding background"
    " paragraph.\nIf there is not enough information provided, answer with"
    f' "{DO_NOT_KNOW}"\n\n'
  },
  paper_shots=2,
  max_tokens=96,
)
