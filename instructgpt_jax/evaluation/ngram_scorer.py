"""Fits a small scorer of texts: logistic regression over hashed n-grams.

It learns from scores from 0 to 1, in seconds and without a network. Fitting is
deterministic. A fitted scorer is an npz file of arrays, read without pickle.
"""

from __future__ import annotations

import functools
import io
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.statistics import Interval

FORMAT = "instructgpt_jax n-gram scorer 1"
FOLDS = 5
_BUCKETS = 2**16
_CHARACTERS = (3, 4, 5)  # lengths of n-grams within words
_L2 = 1e-5
_ITERATIONS = 200
_WORDS = re.compile(r"\w+|[^\w\s]")


class Scorer:
  """Logistic regression over n-grams of words and of characters in words.

  Attributes:
    weights: [2¹⁶] float32, one for each hash of an n-gram.
    idf: [2¹⁶] float32, inverse document frequencies of the training texts.
    bias: logit of a text without known n-grams.
    facts: what the scorer was fitted on and how well it agrees.
  """

  def __init__(
    self,
    weights: np.ndarray,
    idf: np.ndarray,
    bias: float,
    facts: Mapping[str, Any] | None = None,
  ):
    self.weights, self.idf, self.bias = weights, idf, bias
    self.facts = dict(facts or {})

  def score(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the score of each text, [texts] float64 from 0 to 1."""
    logits = _weighted(count_ngrams(texts), self.idf) @ self.weights
    return _sigmoid(logits + self.bias)

  def save(self, path: str) -> None:
    """Writes the scorer as an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(
      buffer,
      format=np.array(FORMAT),
      weights=self.weights,
      idf=self.idf,
      bias=np.array(self.bias),
      facts=np.array(json.dumps(files.to_json_values(self.facts))),
    )
    files.write_chunks_atomic(path, (buffer.getvalue(),))


def load(path: str, *, fix: str) -> Scorer:
  """Reads a scorer that `Scorer.save` wrote.

  Args:
    path: the npz file.
    fix: fix for the errors: how such a file is made.

  Raises:
    UserError: the file is missing, or is no such scorer.
  """
  try:
    content = io.BytesIO(pathlib.Path(path).read_bytes())
    with np.load(content, allow_pickle=False) as arrays:
      if str(arrays["format"]) != FORMAT:
        raise ValueError(f"its format is {arrays['format']}")
      weights, idf = arrays["weights"], arrays["idf"]
      bias, facts = float(arrays["bias"]), json.loads(str(arrays["facts"]))
      if not weights.shape == idf.shape == (_BUCKETS,):
        raise ValueError(f"its weights have the shape {weights.shape}")
      if not (np.isfinite(weights).all() and np.isfinite(idf).all()):
        raise ValueError("its weights are not finite")
  except FileNotFoundError as error:
    raise UserError(
      "there is no such file", file=path, fix=fix, code="no_file"
    ) from error
  except (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise UserError(
      f"is no scorer of this program ({error})",
      file=path,
      fix=fix,
      code="bad_scorer",
    ) from error
  return Scorer(weights, idf, bias, facts)


def fit(texts: Sequence[str], targets: np.ndarray) -> Scorer:
  """Fits a scorer to targets from 0 to 1 by their cross-entropy."""
  return _fit_counts(count_ngrams(texts), np.asarray(targets, np.float64))


def score_held_out(
  texts: Sequence[str],
  targets: np.ndarray,
  groups: Sequence[str],
  others: Sequence[tuple[str, str]] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """Scores each text by a scorer that has not seen its group.

  Args:
    texts: training texts.
    targets: [texts] from 0 to 1.
    groups: group of each text, such as its prompt; a group is in one fold.
    others: (group, text) of further texts, which are never trained on.

  Returns:
    Scores of the texts and of the others.
  """
  counts = count_ngrams(texts)
  other_counts = count_ngrams([text for _, text in others])
  folds = np.array([_fold(group) for group in groups])
  other_folds = np.array([_fold(group) for group, _ in others], int)
  scores, other_scores = np.empty(len(texts)), np.empty(len(others))
  for fold in np.unique(np.concatenate([folds, other_folds])):
    train, test, other = folds != fold, folds == fold, other_folds == fold
    if not train.any():
      raise ValueError("all texts are of one fold")
    scorer = _fit_counts(counts[train], targets[train])
    for result, rows, these in (
      (scores, counts, test),
      (other_scores, other_counts, other),
    ):
      logits = _weighted(rows[these], scorer.idf) @ scorer.weights
      result[these] = _sigmoid(logits + scorer.bias)
  return scores, other_scores


def count_folds(groups: Sequence[str]) -> int:
  """Returns how many folds have a group; `score_held_out` needs two."""
  return len({_fold(group) for group in groups})


def show(interval: Mapping[str, Any]) -> str:
  """Returns an interval's text from `Interval.as_dict`."""
  bounds = [
    np.nan if interval[bound] is None else interval[bound]
    for bound in ("low", "high")
  ]
  return str(Interval(interval["mean"], *bounds))


def pearson(scores: np.ndarray, targets: np.ndarray) -> float:
  """Computes Pearson's correlation; NaN if one of them is constant."""
  x, y = scores - scores.mean(), targets - targets.mean()
  scale = np.sqrt(np.square(x).sum() * np.square(y).sum())
  return float((x * y).sum() / scale) if scale > 0 else float("nan")


def spearman(scores: np.ndarray, targets: np.ndarray) -> float:
  """Computes Spearman's rank correlation; ties share their mean rank."""
  return pearson(_ranks(scores), _ranks(targets))


def area_under_curve(scores: np.ndarray, targets: np.ndarray) -> float:
  """Computes the share of pairs in which the target above 0.5 scores higher.

  Ties count ½. It is NaN if all targets are on one side.
  """
  positive = targets > 0.5
  count, others = int(positive.sum()), int((~positive).sum())
  if not count or not others:
    return float("nan")
  total = _ranks(scores)[positive].sum() - count * (count + 1) / 2
  return float(total / (count * others))


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
  """Computes the share of texts with score and target on one side of 0.5."""
  return float(((scores > 0.5) == (targets > 0.5)).mean())


def _ranks(values: np.ndarray) -> np.ndarray:
  _, index, count = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count - 1) / 2)[index]


def count_ngrams(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
  """Returns log(1 + count) of each hash, [texts, 2¹⁶]."""
  starts, columns = [0], []
  for text in texts:
    words = _WORDS.findall(text.lower())
    for word in words:
      columns += _hashes(word)
    columns += [
      _hash(f"2 {one} {two}")
      for one, two in zip(words[:-1], words[1:], strict=True)
    ]
    starts.append(len(columns))
  counts = scipy.sparse.csr_matrix(
    (np.ones(len(columns)), columns, starts), shape=(len(texts), _BUCKETS)
  )
  counts.sum_duplicates()
  counts.data = np.log1p(counts.data)
  return counts


@functools.lru_cache(maxsize=200_000)
def _hashes(word: str) -> list[int]:
  """Returns hashes of a word and of the n-grams of its characters."""
  padded = f"<{word}>"
  return [_hash(f"1 {word}")] + [
    _hash(f"c {padded[i : i + n]}")
    for n in _CHARACTERS
    for i in range(len(padded) - n + 1)
  ]


def _hash(gram: str) -> int:
  return zlib.crc32(gram.encode("utf-8", "surrogatepass")) % _BUCKETS


def _fold(group: str) -> int:
  return zlib.crc32(group.encode("utf-8", "surrogatepass")) % FOLDS


def _weighted(
  counts: scipy.sparse.csr_matrix, idf: np.ndarray
) -> scipy.sparse.csr_matrix:
  """Multiplies by inverse document frequencies, with rows of length 1."""
  rows = counts.multiply(idf).tocsr()
  norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
  return scipy.sparse.diags(1 / np.maximum(norms, 1e-12)) @ rows


def _sigmoid(logits: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


def _fit_counts(counts: scipy.sparse.csr_matrix, targets: np.ndarray) -> Scorer:
  total = len(targets)
  documents = np.bincount(counts.indices, minlength=_BUCKETS)
  idf = np.log((1 + total) / (1 + documents)) + 1
  used = np.flatnonzero(documents)
  rows = _weighted(counts, idf)[:, used]
  columns = rows.T.tocsr()

  def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
    weights, bias = parameters[:-1], parameters[-1]
    logits = rows @ weights + bias
    value = np.mean(np.logaddexp(0, logits) - targets * logits)
    residuals = (_sigmoid(logits) - targets) / total
    gradient = np.append(columns @ residuals + _L2 * weights, residuals.sum())
    return float(value + 0.5 * _L2 * weights @ weights), gradient

  result = scipy.optimize.minimize(
    loss,
    np.zeros(len(used) + 1),
    jac=True,
    method="L-BFGS-B",
    options={"maxiter": _ITERATIONS},
  )
  weights = np.zeros(_BUCKETS, np.float32)
  weights[used] = result.x[:-1]
  return Scorer(weights, idf.astype(np.float32), float(result.x[-1]))
