"""Small native models as Hugging Face directories, without torch."""

from __future__ import annotations

import pathlib
from typing import Any

import tokenizers

from instructgpt_jax import configs
from instructgpt_jax.interop import directory
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from tests.models import twin

IDS = dict(pad_token_id=0, eos_token_id=1)


def make(path: pathlib.Path, *, scalar: bool = False, **changes: Any) -> Any:
  """Writes a model to a directory; returns (network, parameters)."""
  network = ScalarModel if scalar else LanguageModel
  model = network(configs.Model(**{**twin.SMALL, **changes}))
  params = twin.make_params(model)
  directory.save(
    path, directory.flatten_leaves(params), model.config, {}, ids=IDS
  )
  return model, params


def tokenizer_files() -> dict[str, bytes]:
  """Returns a tokenizer of a few words, for vocabularies of 13 or more."""
  words = {"<pad>": 0, "</s>": 1, "a": 2, "b": 3}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
  return {"tokenizer.json": tokenizer.to_str().encode()}
