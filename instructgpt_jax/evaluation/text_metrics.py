"""Compares answers with reference texts, as each benchmark's own script does.

SQuAD v2 and DROP are scored by code of this file, BLEU by sacrebleu and ROUGE
by rouge-score (extra "metrics"). All scores are from 0 to 1 except BLEU's,
which is from 0 to 100.
"""

from __future__ import annotations

import functools
import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax.errors import UserError

Spans = str | Sequence[str]  # DROP: one text, or the texts of several spans

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DROP_SEPARATORS = re.compile(r"[ -]")
_BLEU_ORDERS = 4  # BLEU counts n-grams of 1 to 4 tokens


def first_line(text: str) -> str:
  """Returns the text before the first newline, without blanks around it.

  The paper's automatic evaluations end an answer there (section D).
  """
  return text.split("\n", 1)[0].strip()


def count_words(text: str) -> int:
  """Returns the number of words, which are separated by whitespace."""
  return len(text.split())


def normalize(text: str) -> str:
  """Normalizes an answer as SQuAD's script does.

  Lower case; without the punctuation of ASCII and the words "a", "an", "the";
  single spaces. "1,000" becomes "1000".
  """
  plain = text.lower().translate(_NO_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
  """Returns 1.0 if the normalized answer equals a reference's, else 0.0.

  As in SQuAD v2, references without a word are dropped. A question without any
  other reference is unanswerable, and its answer is right if it is empty.
  """
  return float(normalize(answer) in _normalized_references(references))


def token_f1(answer: str, references: Sequence[str]) -> float:
  """Computes the F1 of tokens as SQuAD v2, the best over the references.

  Tokens are the words of the normalized texts, counted with repetitions.
  Unanswerable questions are scored as in `exact_match`.
  """
  tokens = normalize(answer).split()
  return max(
    _bag_f1(Counter(tokens), Counter(reference.split()))
    for reference in _normalized_references(references)
  )


def quac_references(references: Sequence[str], no_answer: str) -> list[str]:
  """Returns the references that QuAC's script compares an answer with.

  If at least half of them say that there is no answer, they are this one. Else
  those are left out.

  Args:
    references: an answer of each annotator.
    no_answer: the one that says that there is none.
  """
  answers = [text for text in references if text != no_answer]
  return answers if 2 * len(answers) > len(references) else [no_answer]


def leave_one_out_f1(answer: str, references: Sequence[str]) -> float:
  """Computes QuAC's F1: that of `token_f1`, with a reference left out in turn.

  People are measured against one annotator less than there are, so models are
  too. The script's other figure leaves out questions that annotators disagree
  on; this one is over all.
  """
  if len(references) == 1:
    return token_f1(answer, references)
  scores = [token_f1(answer, [text]) for text in references]
  others = [scores[:i] + scores[i + 1 :] for i in range(len(scores))]
  return sum(map(max, others)) / len(others)


def _normalized_references(references: Sequence[str]) -> list[str]:
  _check_list(references)
  return [text for text in map(normalize, references) if text] or [""]


def _check_list(references: Sequence[Any]) -> None:
  if isinstance(references, str):
    raise TypeError("references are a list of texts, not one text")


def _bag_f1(answer: Counter[str], reference: Counter[str]) -> float:
  """Computes the F1 of two bags; 1.0 if both are empty."""
  if not answer or not reference:
    return float(answer == reference)
  common = (answer & reference).total()
  return 2 * common / (answer.total() + reference.total())


def drop_exact_match(answer: Spans, references: Sequence[Spans]) -> float:
  """Returns 1.0 if the spans equal those of a reference, else 0.0.

  Spans are compared as a set of normalized texts; see `drop_f1`.
  """
  texts = _drop_texts(answer)
  return float(
    any(
      set(texts) == set(others) and len(texts) == len(others)
      for others in map(_drop_texts, _drop_references(references))
    )
  )


def drop_f1(answer: Spans, references: Sequence[Spans]) -> float:
  """Computes DROP's F1, the best over the references (arXiv:1903.00161).

  A span is a set of tokens, in which numbers are equal by value. Spans of
  answer and reference are paired one to one so that their F1s have the largest
  sum, which is divided by the larger number of spans. A pair scores 0 if the
  reference's span has numbers and the answer's has none of them. As DROP's
  script does, it rounds to two decimals, and drops references whose first span
  is blank.

  Args:
    answer: the answer as one span, or its spans.
    references: each accepted answer, as one span or as its spans.
  """
  bags = _drop_bags(answer)
  return max(
    (
      _aligned_f1(bags, _drop_bags(reference))
      for reference in _drop_references(references)
    ),
    default=0.0,
  )


def _drop_references(references: Sequence[Spans]) -> list[Spans]:
  _check_list(references)
  return [spans for spans in references if _as_spans(spans)[0].strip()]


def _as_spans(spans: Spans) -> Sequence[str]:
  return [spans] if isinstance(spans, str) else spans or [""]


def _drop_texts(spans: Spans) -> list[str]:
  return [_drop_normalize(span) for span in _as_spans(spans)]


def _drop_bags(spans: Spans) -> list[frozenset[str]]:
  return [frozenset(text.split()) for text in _drop_texts(spans)]


def _drop_normalize(text: str) -> str:
  """Normalizes a span token by token; hyphens separate tokens."""
  tokens = []
  for token in _DROP_SEPARATORS.split(text.lower()):
    if not _is_number(token):
      token = token.translate(_NO_PUNCTUATION)
    if _is_number(token):
      token = str(float(token))
    tokens += _ARTICLES.sub(" ", token).split()
  return " ".join(tokens)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _aligned_f1(
  bags: Sequence[frozenset[str]], references: Sequence[frozenset[str]]
) -> float:
  """Computes the mean F1 of the best one-to-one pairing, to two decimals."""
  import scipy.optimize

  scores = np.array(
    [[_span_f1(bag, reference) for bag in bags] for reference in references]
  )
  rows, columns = scipy.optimize.linear_sum_assignment(scores, maximize=True)
  return round(float(scores[rows, columns].sum() / max(scores.shape)), 2)


def _span_f1(bag: frozenset[str], reference: frozenset[str]) -> float:
  """Computes the F1 of two sets of tokens; 0 if they share no number."""
  numbers = set(filter(_is_number, reference))
  if numbers and not numbers & bag:
    return 0.0
  common = len(bag & reference)
  precision = common / len(bag) if bag else 1.0
  recall = common / len(reference) if reference else 1.0
  total = precision + recall
  return 2 * precision * recall / total if total else 0.0


def bleu(answers: Sequence[str], references: Sequence[Spans]) -> float:
  """Computes corpus BLEU by sacrebleu, from 0 to 100; see `bleu_signature`.

  Args:
    answers: [N] translations.
    references: [N], each one reference or several.

  Raises:
    UserError: sacrebleu is not installed.
    ValueError: there are no answers, or one has no reference.
  """
  return bleu_of_counts(bleu_counts(answers, references).sum(axis=0))


def bleu_counts(
  answers: Sequence[str], references: Sequence[Spans]
) -> np.ndarray:
  """Counts what corpus BLEU is computed from; the counts of texts add up.

  Args:
    answers: [N] translations.
    references: [N], each one reference or several.

  Returns:
    [N, 10] int64: the answer's tokens, the reference's tokens, matching
    n-grams of 1 to 4 tokens, all n-grams of 1 to 4 tokens.

  Raises:
    UserError: sacrebleu is not installed.
    ValueError: there are no answers, or one has no reference.
  """
  _check_list(references)
  if not answers:
    raise ValueError("no answers")
  metric = _bleu_metric()
  rows = []
  for answer, texts in zip(answers, references, strict=True):
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
      raise ValueError("an answer has no reference")
    score = metric.sentence_score(answer, texts)
    rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
  return np.array(rows, np.int64)


@functools.cache
def _bleu_metric() -> Any:
  # The counts do not depend on `effective_order`, which avoids a warning.
  return _load("sacrebleu", "sacrebleu.metrics").BLEU(effective_order=True)


def bleu_of_counts(counts: np.ndarray) -> float:
  """Computes BLEU from summed counts, [10]; see `bleu_counts`."""
  metrics = _load("sacrebleu", "sacrebleu.metrics")
  answer_tokens, reference_tokens, *rest = (int(count) for count in counts)
  return float(
    metrics.BLEU.compute_bleu(
      correct=rest[:_BLEU_ORDERS],
      total=rest[_BLEU_ORDERS:],
      sys_len=answer_tokens,
      ref_len=reference_tokens,
      smooth_method="exp",
    ).score
  )


def bleu_signature() -> str:
  """Returns sacrebleu's signature of `bleu`, to be published beside a score.

  The number of references is left out, because a corpus may mix several.
  """
  library = _load("sacrebleu", "sacrebleu")
  return f"case:mixed|eff:no|tok:13a|smooth:exp|version:{library.__version__}"


def rouge_l(answer: str, reference: str, *, stem: bool = False) -> float:
  """Computes ROUGE-L's F1 by rouge-score.

  rouge-score only counts the letters a to z and digits, so a text in another
  script scores 0.

  Args:
    answer: the text to score.
    reference: the reference text.
    stem: whether words are compared by Porter stems.

  Raises:
    UserError: rouge-score is not installed.
  """
  scores = _rouge_scorer(stem).score(reference, answer)
  return float(scores["rougeL"].fmeasure)


@functools.cache
def _rouge_scorer(stem: bool) -> Any:
  library = _load("rouge-score", "rouge_score.rouge_scorer")
  return library.RougeScorer(["rougeL"], use_stemmer=stem)


def _load(package: str, module: str) -> Any:
  """Imports a module of an optional package."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(
      f"this score needs the package {package}, which is not installed",
      fix=f"pip install {package} (extra 'metrics')",
      code="missing_package",
    ) from error
