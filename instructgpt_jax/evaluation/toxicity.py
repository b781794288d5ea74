"""Scores the toxicity of texts without a network.

  python -m instructgpt_jax.evaluation.toxicity \\
    --samples=automatic-eval-samples/real_toxicity_samples.csv \\
    --output=toxicity.npz

fits a small scorer to the Perspective scores of OpenAI's released samples, and
states its correlation with the scores of samples whose contexts it has not
seen. With --scorer=PATH instead of --output, the correlation of a scorer that
exists: such an npz file, or the directory of a Hugging Face text classifier
(--label names its label).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  group_intervals,
  ngram_scorer,
  released_samples,
)
from instructgpt_jax.evaluation.classifier import Classifier

_FIX = (
  "python -m instructgpt_jax.evaluation.toxicity --samples=FILE --output=FILE"
)
_STATISTICS = {
  "pearson": ngram_scorer.pearson,
  "spearman": ngram_scorer.spearman,
}


class TextScorer(Protocol):
  """Scores texts from 0 to 1."""

  def score(self, texts: Sequence[str]) -> np.ndarray: ...


class Judge:
  """Judge of tasks: (questions, answers) → the answers' toxicity."""

  def __init__(self, scorer: TextScorer):
    self.scorer = scorer

  def __call__(
    self, questions: Sequence[str], answers: Sequence[str]
  ) -> Mapping[str, Sequence[float]]:
    """Returns {"toxicity": [answers] from 0 to 1}; questions do not count."""
    del questions
    return {"toxicity": self.scorer.score(answers).tolist()}


def open_scorer(path: str, *, label: str = "") -> TextScorer:
  """Opens a scorer.

  Args:
    path: npz file of this program, or the directory of a classifier.
    label: the classifier's label of toxic texts, such as "toxic"; "" is the
      only label.

  Raises:
    UserError: it cannot be read, or a package is not installed.
  """
  if os.path.isdir(path):
    return Classifier(path, label)
  if label:
    raise UserError(
      "only classifiers of Hugging Face have labels",
      field="label",
      fix="leave --label out, or give a classifier's directory",
      code="no_label",
    )
  return ngram_scorer.load(path, fix=_FIX)


def fit(samples: str) -> ngram_scorer.Scorer:
  """Fits a scorer to released samples with Perspective scores.

  Args:
    samples: path of real_toxicity_samples.csv.

  Returns:
    The scorer, fitted to all samples. Its `facts` have the agreement of five
    other scorers, each measured on contexts that it has not seen.

  Raises:
    UserError: the file cannot be read, or has too few contexts.
  """
  texts, targets, contexts = _read(samples)
  held_out, _ = ngram_scorer.score_held_out(texts, targets, contexts)
  scorer = ngram_scorer.fit(texts, targets)
  scorer.facts = _agreement(held_out, targets, contexts)
  return scorer


def measure(scorer: TextScorer, samples: str) -> dict[str, Any]:
  """Compares a scorer with the Perspective scores of released samples."""
  texts, targets, contexts = _read(samples)
  return _agreement(scorer.score(texts), targets, contexts)


def _read(samples: str) -> tuple[list[str], np.ndarray, list[str]]:
  """Returns the texts, their scores and their contexts."""
  rows = released_samples.read(samples, "real_toxicity")
  contexts = [row.context for row in rows]
  if ngram_scorer.count_folds(contexts) < 2:
    raise UserError(
      f"has {len(set(contexts))} contexts, too few to hold some back",
      file=samples,
      fix="give the released file",
      code="few_contexts",
    )
  return (
    [row.answer for row in rows],
    np.array([row.scores["toxicity"] for row in rows]),
    contexts,
  )


def _agreement(
  scores: np.ndarray, targets: np.ndarray, contexts: Sequence[str]
) -> dict[str, Any]:
  return {
    "samples": len(targets),
    "contexts": len(set(contexts)),
    **{
      name: group_intervals.statistic_interval(
        statistic, scores, targets, contexts
      ).as_dict()
      for name, statistic in _STATISTICS.items()
    },
    "mean_score": float(scores.mean()),
    "mean_perspective": float(targets.mean()),
  }


def _print(facts: Mapping[str, Any], what: str) -> None:
  print(f"{facts['samples']} samples of {facts['contexts']} contexts, {what}:")
  for name in _STATISTICS:
    print(f"  {name}: {ngram_scorer.show(facts[name])}")
  print(
    f"  mean: {facts['mean_score']:.3f}, Perspective's"
    f" {facts['mean_perspective']:.3f}"
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status; 2 for a user error."""
  streams.accept_all_text()
  parser = CommandParser(
    prog="python -m instructgpt_jax.evaluation.toxicity", description=__doc__
  )
  parser.add_argument(
    "--samples", required=True, help="real_toxicity_samples.csv"
  )
  parser.add_argument("--output", default="", help="npz file to write")
  parser.add_argument("--scorer", default="", help="scorer to measure")
  parser.add_argument("--label", default="", help="a classifier's label")

  def run() -> None:
    arguments = parser.parse_args(argv)
    if bool(arguments.output) == bool(arguments.scorer):
      raise UserError(
        "needs either --output, to fit a scorer, or --scorer, to measure one",
        fix="give one of them",
        code="bad_flag",
      )
    if arguments.scorer:
      scorer = open_scorer(arguments.scorer, label=arguments.label)
      _print(measure(scorer, arguments.samples), "all of them")
      if isinstance(scorer, Classifier) and scorer.cut:
        print(f"  {scorer.cut} texts were longer than the model's input")
    else:
      fitted = fit(arguments.samples)
      fitted.save(arguments.output)
      _print(fitted.facts, "each scored without having seen its context")
      print(f"scorer: {arguments.output}")

  return launch.run_with_errors(run)


if __name__ == "__main__":
  sys.exit(main())
