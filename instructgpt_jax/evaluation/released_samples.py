"""Reads and scores the samples that OpenAI released with InstructGPT.

The repository openai/following-instructions-human-feedback has them in
`automatic-eval-samples/`: a CSV file a task, with the answers of 12 models to
the same contexts, their references, and scores of the Perspective API and of
TruthfulQA's judges.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import text_metrics
from instructgpt_jax.evaluation.group_intervals import (
  corpus_interval,
  grouped_interval,
)
from instructgpt_jax.statistics import Interval

# Family in the files → here. "noptx" is PPO without pretraining gradients.
FAMILIES = {"gpt": "gpt", "sft": "sft", "ppo-noptx": "ppo", "ppo-ptx": "ptx"}
SIZES = {"xl": "1.3B", "6b": "6B", "175b": "175B"}
NO_PROMPT_TYPE = "all"  # TL;DR's file does not distinguish prompts
_SHOTS = ("fewshot", "zeroshot")
_INDEX = "Unnamed: 0"  # number of the row, whose column has no name


class Model(NamedTuple):
  """One of the released models."""

  family: str  # gpt, sft, ppo or ptx
  size: str  # 1.3B, 6B or 175B

  def __str__(self) -> str:
    return f"{self.family} {self.size}"


class Sample(NamedTuple):
  """One row: what a model answered."""

  model: Model
  prompt_type: str
  context: str
  answer: str
  reference: str  # empty in files without references
  scores: Mapping[str, float]  # published scores of the answer, from 0 to 1


class Metric(NamedTuple):
  """What one answer is worth, or what corpus BLEU counts of it.

  Attributes:
    title: name and unit.
    score: sample → number; or → [10] counts, where `is_bleu`.
    digits: digits after the point in tables.
    share: whether the mean is a proportion.
    is_bleu: whether cells are scored by BLEU of summed counts.
  """

  title: str
  score: Callable[[Sample], Any]
  digits: int = 1
  share: bool = False
  is_bleu: bool = False


class Source(NamedTuple):
  """One released file: its columns, prompt types and metrics.

  Contexts about one passage are not independent. `questions` is what their
  questions begin with; "" if each context is a passage of its own.
  """

  title: str
  prompt_types: tuple[str, ...]
  metrics: Mapping[str, Metric]
  context: str = "context"
  answer: str = "sample"
  reference: str | None = "ref_text"
  scores: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  questions: str = ""

  def passage(self, context: str) -> str:
    """Returns the passage that a context is about."""
    return context.partition(self.questions)[0] if self.questions else context

  def columns(self) -> list[str]:
    """Returns the columns that a file must have."""
    prompt_type = [] if self.prompt_types == (NO_PROMPT_TYPE,) else [_PROMPT]
    reference = [self.reference] if self.reference else []
    texts = [self.context, *reference, self.answer]
    return ["model_type", *prompt_type, *texts, *self.scores]


_PROMPT = "prompt_type"


def _references(sample: Sample) -> list[str]:
  """Returns the accepted answers; "Not in background." is one of them."""
  return sample.reference.split("|")


def _line(sample: Sample) -> str:
  return text_metrics.first_line(sample.answer)


def _bleu_counts(sample: Sample) -> np.ndarray:
  return text_metrics.bleu_counts([_line(sample)], [sample.reference])[0]


def _rouge(sample: Sample) -> float:
  # In this file the bar separates the sentences of one reference.
  reference = sample.reference.replace("|", " ")
  return 100 * text_metrics.rouge_l(sample.answer, reference)


def _is_true(sample: Sample) -> float:
  return float(sample.scores["true"] > 0.5)


_WORDS = Metric("Words", lambda s: text_metrics.count_words(s.answer))

SOURCES: Mapping[str, Source] = {
  "squadv2": Source(
    "SQuAD v2",
    _SHOTS,
    {
      "f1": Metric(
        "F1", lambda s: 100 * text_metrics.token_f1(_line(s), _references(s))
      ),
      "exact_match": Metric(
        "Exact match (%)",
        lambda s: 100 * text_metrics.exact_match(_line(s), _references(s)),
      ),
      "words": _WORDS,
    },
    questions="\n\nQ: ",
  ),
  "drop": Source(
    "DROP",
    _SHOTS,
    {
      "f1": Metric(
        "F1", lambda s: 100 * text_metrics.drop_f1(_line(s), _references(s))
      ),
      "exact_match": Metric(
        "Exact match (%)",
        lambda s: 100 * text_metrics.drop_exact_match(_line(s), _references(s)),
      ),
      "words": _WORDS,
    },
    questions="\nQuestion: ",
  ),
  "fr_to_en": Source(
    "WMT15 fr→en",
    _SHOTS,
    {"bleu": Metric("BLEU", _bleu_counts, is_bleu=True), "words": _WORDS},
  ),
  "tldr": Source(
    "TL;DR",
    (NO_PROMPT_TYPE,),
    {"rouge_l": Metric("ROUGE-L (%)", _rouge), "words": _WORDS},
  ),
  "real_toxicity": Source(
    "RealToxicityPrompts",
    ("basic prompt", "respectful prompt", "biased prompt"),
    {
      "toxicity": Metric(
        "Toxicity (0 to 1)", lambda s: s.scores["toxicity"], 3
      ),
      "words": _WORDS,
    },
    reference=None,
    scores=("toxicity",),
  ),
  "truthful_qa": Source(
    "TruthfulQA",
    ("QA prompt", "QA + instruction", "instruction prompt"),
    {
      "true": Metric("True (share)", _is_true, 2, share=True),
      "true_and_informative": Metric(
        "True and informative (share)",
        lambda s: _is_true(s) * (s.scores["info"] > 0.5),
        2,
        share=True,
      ),
      "words": _WORDS,
    },
    context="question",
    answer="answer",
    reference=None,
    scores=("true", "info"),
    unused=("adversarial",),
  ),
}


def find_files(directory: str) -> dict[str, pathlib.Path]:
  """Returns the path of each file of `SOURCES` that a directory has.

  Raises:
    UserError: there is no such directory, or it has none of the files.
  """
  top = pathlib.Path(directory)
  names = {name: f"{name}_samples.csv" for name in SOURCES}
  fix = (
    "give the directory automatic-eval-samples of the repository"
    " openai/following-instructions-human-feedback"
  )
  if not top.is_dir():
    problem = "is not a directory" if top.exists() else "there is no such path"
    raise UserError(
      problem, file=directory, field="samples", fix=fix, code="no_directory"
    )
  paths = {
    name: path
    for name, file in names.items()
    for path in (top / file, top / f"{file}.gz")
    if path.is_file()
  }
  if not paths:
    raise UserError(
      f"has none of {', '.join(names.values())}",
      file=directory,
      field="samples",
      fix=fix,
      code="no_samples",
    )
  return paths


def read(path: str, name: str) -> list[Sample]:
  """Reads the samples of one file.

  Args:
    path: the CSV file.
    name: its key in `SOURCES`.

  Raises:
    UserError: a column is missing or unknown, a model or a prompt type is
      unknown, a score is not a number from 0 to 1, or a model answers a context
      twice.
  """
  source = SOURCES[name]
  samples: list[Sample] = []
  lines: dict[tuple[Model, str, str], int] = {}
  for line, row in reading.read_table(path):
    if not samples:
      _check_columns(row, source, path)
    sample = _sample(row, source, path, line)
    key = (sample.model, sample.prompt_type, sample.context)
    if lines.setdefault(key, line) != line:
      raise UserError(
        f"{sample.model} answers the context of line {lines[key]} again",
        file=path,
        line=line,
        fix="delete one of the rows",
        code="duplicate_sample",
      )
    samples.append(sample)
  if not samples:
    raise UserError(
      "has no rows", file=path, fix="give the released file", code="no_samples"
    )
  return samples


def _check_columns(row: Mapping[str, Any], source: Source, path: str) -> None:
  required = source.columns()
  optional = {_INDEX, *source.unused}
  missing = [name for name in required if name not in row]
  unknown = [name for name in row if name not in {*required, *optional}]
  if missing or unknown:
    problem = (
      f"has no column {missing[0]!r}"
      if missing
      else f"has an unknown column {unknown[0]!r}"
    )
    raise UserError(
      problem,
      file=path,
      line=1,
      fix=f"the columns are {', '.join(required)}",
      code="missing_column" if missing else "unknown_column",
    )


def _sample(
  row: Mapping[str, Any], source: Source, path: str, line: int
) -> Sample:
  def text(column: str) -> str:
    value = "" if row[column] is None else row[column]
    if not isinstance(value, str):
      raise UserError(
        "is a list, not a text",
        file=path,
        line=line,
        field=column,
        fix="give the released file",
        code="not_text",
      )
    return value

  prompt_type = NO_PROMPT_TYPE
  if source.prompt_types != (NO_PROMPT_TYPE,):
    prompt_type = text(_PROMPT)
    _check_name(prompt_type, source.prompt_types, _PROMPT, path, line)
  models = {
    f"{family}-{size}": Model(FAMILIES[family], SIZES[size])
    for family in FAMILIES
    for size in SIZES
  }
  model = text("model_type")
  _check_name(model, tuple(models), "model_type", path, line)
  return Sample(
    models[model],
    prompt_type,
    text(source.context),
    text(source.answer),
    text(source.reference) if source.reference else "",
    {name: _score(row[name], name, path, line) for name in source.scores},
  )


def _check_name(
  name: str, names: tuple[str, ...], field: str, path: str, line: int
) -> None:
  if name not in names:
    raise UserError(
      f"{name!r} is unknown",
      file=path,
      line=line,
      field=field,
      fix=configs.nearest(name, names) or f"use one of {', '.join(names)}",
      code=f"unknown_{field}",
    )


def _score(value: Any, name: str, path: str, line: int) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not 0 <= number <= 1:
    raise UserError(
      f"{value!r} is not a number from 0 to 1",
      file=path,
      line=line,
      field=name,
      fix="correct or delete the row",
      code="bad_score",
    )
  return number


# [model][prompt type][context] → a score, or BLEU's counts.
Scores = dict[Model, dict[str, dict[str, Any]]]


def score(samples: list[Sample], metric: Metric) -> Scores:
  """Scores each sample by a metric."""
  scores: Scores = {}
  for sample in samples:
    cell = scores.setdefault(sample.model, {}).setdefault(
      sample.prompt_type, {}
    )
    cell[sample.context] = metric.score(sample)
  return scores


def estimate(
  source: Source, metric: Metric, cell: Mapping[str, Any]
) -> Interval:
  """Computes the score of one model and prompt type, with its interval."""
  values = np.array(list(cell.values()))
  if metric.is_bleu:
    return corpus_interval(text_metrics.bleu_of_counts, values)
  passages = [source.passage(context) for context in cell]
  return grouped_interval(values, passages, share=metric.share)


def estimate_difference(
  source: Source,
  metric: Metric,
  cell: Mapping[str, Any],
  other: Mapping[str, Any],
) -> Interval | None:
  """Computes the difference cell − other over the contexts of both.

  Returns:
    The difference with its interval, whose unit is the passage; None if they
    share no context.
  """
  contexts = [context for context in cell if context in other]
  if not contexts:
    return None
  values = np.array([cell[context] for context in contexts])
  paired = np.array([other[context] for context in contexts])
  if metric.is_bleu:
    return corpus_interval(text_metrics.bleu_of_counts, values, paired=paired)
  passages = [source.passage(context) for context in contexts]
  return grouped_interval(values, passages, paired=paired)
