"""Runs a text classifier of a Hugging Face directory by transformers.

Encoders such as BERT and RoBERTa have no implementation here, so this needs the
packages torch and transformers (extra 'classifiers'). Only local safetensors
files are read, and no code of the directory is run.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

_BATCH = 32


class Classifier:
  """Probability of one label of a text-classification model.

  As in transformers' pipeline, probabilities are sigmoids if the model has one
  label or its `problem_type` is multi-label, and a softmax otherwise.

  Attributes:
    label: the label.
    cut: number of texts that were cut to the longest input of the model.
  """

  def __init__(self, path: str, label: str):
    """Loads the model and its tokenizer.

    Args:
      path: the directory.
      label: name of a label in config.json's `id2label`, in any case; "" is
        the only label.

    Raises:
      UserError: the directory is no classifier with safetensors files, it needs
        code of its own, it has no such label, or a package is not installed.
    """
    _check_directory(path)
    self._torch, transformers = _load("torch"), _load("transformers")
    options = {"local_files_only": True, "trust_remote_code": False}
    auto = transformers.AutoModelForSequenceClassification
    try:
      model, report = auto.from_pretrained(
        path, use_safetensors=True, output_loading_info=True, **options
      )
      self._tokenizer = transformers.AutoTokenizer.from_pretrained(
        path, **options
      )
    except Exception as error:  # of several libraries, without a common class
      reason = str(error).strip().split("\n")[0]
      raise UserError(
        f"transformers cannot load it: {reason}",
        file=path,
        fix="give a complete directory: config.json, safetensors and tokenizer",
        code="bad_classifier",
      ) from error
    if report["missing_keys"]:
      raise UserError(
        f"lacks the tensor {min(report['missing_keys'])}, which transformers"
        " would fill with random numbers",
        file=path,
        fix="give a model that was fine-tuned as a classifier",
        code="missing_tensor",
      )
    if self._tokenizer.pad_token is None:
      raise UserError(
        "its tokenizer has no padding token, so texts cannot be batched",
        file=path,
        field="pad_token",
        fix="name one in tokenizer_config.json, such as the end-of-text token",
        code="no_padding",
      )
    self._model = model.eval()
    loaded = self._model.config
    names = [loaded.id2label[i] for i in range(loaded.num_labels)]
    self._index = _find_label(label, names, path)
    self.label, self.cut = names[self._index], 0
    self._is_sigmoid = len(names) == 1 or (
      loaded.problem_type == "multi_label_classification"
    )
    limit = getattr(loaded, "max_position_embeddings", None)
    # RoBERTa's positions begin after that of its padding token.
    if limit and loaded.model_type in ("roberta", "xlm-roberta", "camembert"):
      limit -= loaded.pad_token_id + 1
    self._limit = min(self._tokenizer.model_max_length, limit or 10**9)

  def score(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the label's probability for each text, [texts] float64."""
    scores: list[float] = []
    for start in range(0, len(texts), _BATCH):
      batch = list(texts[start : start + _BATCH])
      lengths = [len(ids) for ids in self._tokenizer(batch)["input_ids"]]
      self.cut += sum(length > self._limit for length in lengths)
      inputs = self._tokenizer(
        batch,
        truncation=True,
        max_length=self._limit,
        padding=True,
        return_tensors="pt",
      )
      with self._torch.no_grad():
        logits = self._model(**inputs).logits.double()
      if self._is_sigmoid:
        probabilities = logits.sigmoid()
      else:
        probabilities = logits.softmax(dim=-1)
      scores += probabilities[:, self._index].tolist()
    return np.array(scores, np.float64)


def _check_directory(path: str) -> None:
  """Refuses what transformers would not load safely."""
  top = pathlib.Path(path)
  fix = "give the directory of a text classifier, with safetensors files"
  config = files.read_json(top / "config.json", fix=fix)
  if not isinstance(config, dict):
    raise UserError(
      "is no model's configuration",
      file=str(top / "config.json"),
      fix=fix,
      code="bad_classifier",
    )
  if "auto_map" in config:
    raise UserError(
      "needs code of its own directory, which is not run",
      file=str(top / "config.json"),
      field="auto_map",
      fix="give a model that transformers implements",
      code="remote_code",
    )
  if not any(top.glob("*.safetensors")):
    raise UserError(
      "has no safetensors file, and other formats may hold code",
      file=path,
      fix="convert it: load it in transformers and call save_pretrained",
      code="no_safetensors",
    )


def _find_label(label: str, names: Sequence[str], path: str) -> int:
  """Returns the index of a label."""
  if not label and len(names) == 1:
    return 0
  matches = [i for i, n in enumerate(names) if n.lower() == label.lower()]
  if len(matches) != 1:
    raise UserError(
      f"has no label {label!r}" if label else "has several labels",
      file=path,
      field="label",
      fix=f"name one of {', '.join(names)}",
      code="unknown_label",
    )
  return matches[0]


def _load(package: str) -> Any:
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise UserError(
      f"classifiers need the package {package}, which is not installed",
      fix="pip install torch transformers (extra 'classifiers')",
      code="missing_package",
    ) from error
