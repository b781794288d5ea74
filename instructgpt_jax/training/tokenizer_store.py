"""Tokenizers in workdirs: saved and loaded."""

from __future__ import annotations

import pathlib
import shutil

from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.data.tokenizers import Tokenizer, exported_tokens
from instructgpt_jax.distributed import processes
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line

TOKENIZER = "tokenizer"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def read_tokenizer(path: str | pathlib.Path, data: configs.Data) -> Tokenizer:
  """Loads a tokenizer for a run with or without chat template."""
  tokenizer = tokenizer_lib.load_tokenizer(path)
  return tokenizer if data.chat_template else tokenizer.without_template()


def adapter_tokenizer(
  adapter: str, base: Tokenizer, data: configs.Data
) -> Tokenizer:
  """Returns the tokenizer of a base model with adapters of PEFT.

  Args:
    adapter: the PEFT directory. It may hold the tokenizer that the adapters
      were trained with, such as one with another chat template.
    base: the base model's tokenizer.
    data: settings of the run.
  """
  directory = pathlib.Path(adapter)
  if not any((directory / name).exists() for name in _TOKENIZER_FILES):
    return base
  other = read_tokenizer(directory, data)
  if exported_tokens.same_ids(base, other):
    return base
  log_line(f"{adapter}: its tokenizer differs from the base's, and is used")
  return other


def put_tokenizer(workdir: str | pathlib.Path, tokenizer: Tokenizer) -> None:
  """Saves a tokenizer in a workdir that has none, atomically."""
  directory = pathlib.Path(workdir) / TOKENIZER
  if directory.exists() or not processes.is_main_process():
    return
  files.make_directory(directory.parent)
  scratch = directory.with_name(TOKENIZER + ".next")
  with files.disk_errors_as_user_errors(directory):
    shutil.rmtree(scratch, ignore_errors=True)
    tokenizer.save(scratch)
    files.publish_directory(scratch, directory)
