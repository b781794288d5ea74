"""What a run takes over from the stage that it starts from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from instructgpt_jax import configs
from instructgpt_jax.configs.model import ARCHITECTURE
from instructgpt_jax.data import encoding
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.data.prepared import layout
from instructgpt_jax.data.prepared import records as prepared_records
from instructgpt_jax.data.tokenizers import Tokenizer, exported_tokens
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import pretrained_rates
from instructgpt_jax.training.stage_model import Stage, open_stage
from instructgpt_jax.training.tokenizer_store import (
  TOKENIZER,
  read_tokenizer,
)

_TAGS, _TEMPLATE = encoding.TAG_FIELDS, encoding.TEMPLATE_FIELDS
_PROMPTS = (*_TAGS, *_TEMPLATE)
LIMITS = ("max_prompt_tokens", "max_response_tokens")
INHERITED = (*_PROMPTS, *LIMITS)  # fields of `data`

E = TypeVar("E", bound=configs.Experiment)


def inherit_architecture(config: E, decided: Collection[str] = ()) -> E:
  """Completes a config with the network, prompts and limits of `init_from`.

  The network's architecture is the checkpoint's, whatever the preset says, and
  a flag of the user's that asks for another one is refused. The prompt format
  and the limits are the checkpoint's unless the user has set them. Each changed
  field is logged. Called before the config is written.

  Args:
    config: the experiment.
    decided: fields of `data` that keep their values, as if the user had set
      them.

  Raises:
    UserError: `other_architecture`, the user has set another network than the
      stage's; `other_prompts`, another prompt format than it was trained with.
  """
  if not config.init_from:
    return config
  stage = open_stage(config.init_from, field="init_from", run=config)
  if stage.origin is not None:
    pretrained_rates.check_rates(config, stage.model_config)
  architecture = {
    name: getattr(stage.model_config, name) for name in ARCHITECTURE
  }
  _check_architecture(config, stage)
  changed = {
    f"model.{name}": value
    for name, value in architecture.items()
    if name != "vocab_size" and getattr(config.model, name) != value
  }
  data = inherited_data(config.data, stage, decided)
  changed |= {
    f"data.{name}": getattr(data, name)
    for name in INHERITED
    if getattr(data, name) != getattr(config.data, name)
  }
  if changed:
    values = ", ".join(f"{name}={value}" for name, value in changed.items())
    log_line(f"from {config.init_from}: {values}")
  model = dataclasses.replace(config.model, **architecture)
  return dataclasses.replace(config, model=model, data=data)


def _check_architecture(config: configs.Experiment, stage: Stage) -> None:
  """Refuses flags that ask for another network than a stage has."""
  for name in ARCHITECTURE:
    flag = f"model.{name}"
    value = getattr(config.model, name)
    actual = getattr(stage.model_config, name)
    if value == actual or not config.is_explicit(flag):
      continue
    if name.endswith("_padding"):  # follows from the mesh
      continue
    if name == "vocab_size" and not value:  # the tokenizer's size
      continue
    raise UserError(
      f"is {_flag_text(value)}, but the model of --init_from has"
      f" {_flag_text(actual)}",
      file=stage.path,
      field=flag,
      fix=f"leave out --{flag}, or give --{flag}={_flag_text(actual)}",
      code="other_architecture",
    )


def without_architecture(data: configs.Data) -> configs.Data:
  """Returns the data section as if the user had set no flag of the network.

  They describe the network of the policy, not that of a stage which starts
  from another model.
  """
  flags = {f"model.{name}" for name in ARCHITECTURE}
  names = [name for name in data.explicit.split(",") if name not in flags]
  return dataclasses.replace(data, explicit=",".join(names))


def _flag_text(value: Any) -> str:
  is_word = value is None or isinstance(value, bool)
  return str(value).lower() if is_word else str(value)


def inherited_data(
  data: configs.Data, stage: Stage, decided: Collection[str] = ()
) -> configs.Data:
  """Takes the prompt format and the limits of a stage, unless they are set.

  Args:
    data: the data section of a run that starts from the stage.
    stage: a stage, or a Hugging Face directory, which has neither.
    decided: fields that keep their values.

  Raises:
    UserError: `other_prompts`, another prompt format is set than the stage was
      trained with.
  """
  if stage.source is not None:
    return data
  names = _PROMPTS
  # Pretraining does not use its limits, so they may not fit its context.
  if stage.has_prompts or _total(stage.data) <= stage.model_config.max_seq_len:
    names += LIMITS
  inherited = {
    name: getattr(stage.data, name)
    for name in names
    if not data.is_explicit(name) and name not in decided
  }
  data = dataclasses.replace(data, **inherited)
  check_same_prompts(stage, data, "init_from")
  differences = [
    f"data.{name}={getattr(data, name)} (the stage has"
    f" {getattr(stage.data, name)})"
    for name in LIMITS
    if stage.has_prompts and getattr(data, name) != getattr(stage.data, name)
  ]
  if differences:
    log_line(f"unlike {stage.path}: {', '.join(differences)}")
  return data


def _total(data: configs.Data) -> int:
  return data.max_prompt_tokens + data.max_response_tokens


def require_compatible(
  stage: Stage, tokenizer: Tokenizer, data: configs.Data, field: str
) -> None:
  """Refuses a second model that cannot read what the first one reads.

  Args:
    stage: the second model.
    tokenizer: tokenizer of the first model.
    data: the run's settings.
    field: the flag that names the second model.

  Raises:
    UserError: it has another tokenizer, another prompt format, or too short a
      context.
  """
  check_same_tokenizer(stage.tokenizer, tokenizer, stage.path, field)
  check_same_prompts(stage, data, field)
  max_seq_len = stage.model_config.max_seq_len
  if _total(data) > max_seq_len:
    raise UserError(
      f"has {max_seq_len} positions, and prompts of {data.max_prompt_tokens}"
      f" with responses of {data.max_response_tokens} tokens do not fit them",
      file=stage.path,
      field=field,
      fix="lower --data.max_prompt_tokens or --data.max_response_tokens",
      code="short_context",
    )


def check_same_tokenizer(
  a: Tokenizer, b: Tokenizer, file: str, field: str
) -> None:
  """Refuses two models whose token ids mean different things.

  Args:
    a: one model's tokenizer.
    b: the other's.
    file: path of one of the models, for the error.
    field: the flag that names it.

  Raises:
    UserError: `other_tokenizer`.
  """
  if not exported_tokens.same_ids(a, b):
    raise UserError(
      "was trained with another tokenizer",
      file=file,
      field=field,
      fix="give stages of one family, with the same tokenizer",
      code="other_tokenizer",
    )


def check_same_prompts(stage: Stage, data: configs.Data, field: str) -> None:
  """Refuses a stage whose prompts are written in another format.

  Args:
    stage: a model that reads prompts. A Hugging Face directory, and a stage
      that was trained on documents alone, have no format.
    data: the run's settings.
    field: the flag that names the stage.

  Raises:
    UserError: `other_prompts`.
  """
  if stage.source is not None or not stage.has_prompts:
    return
  old_format, new_format = (
    encoding.prompt_format(d, stage.tokenizer) for d in (stage.data, data)
  )
  for name in (*_TEMPLATE, *_TAGS):  # Without a template the tags count.
    if old_format.get(name) == new_format.get(name):
      continue
    old, new = (getattr(d, name) for d in (stage.data, data))
    raise UserError(
      f"was trained with data.{name}={old!r}, and this run has {new!r}",
      file=stage.path,
      field=field,
      fix=f"leave out --data.{name}, which then follows --init_from"
      if data.is_explicit(name)
      else "give a stage that was trained with the prompts of this run",
      code="other_prompts",
    )


def stage_tokenizer(
  workdir: str | pathlib.Path,
  config: configs.Experiment,
  texts: Callable[[], Iterable[str]],
) -> Tokenizer:
  """Returns the run's tokenizer; `put_tokenizer` saves it later.

  It is the tokenizer in the workdir, else that of `init_from`, else that of
  `tokenizer.path`, else that of prepared data, else one trained on
  `texts()`.
  """
  directory = pathlib.Path(workdir) / TOKENIZER
  if directory.exists():
    return read_tokenizer(directory, config.data)
  path = config.tokenizer.path
  tokenizer = read_tokenizer(path, config.data) if path else None
  if config.init_from:
    stage = open_stage(config.init_from, field="init_from", run=config)
    if tokenizer is not None:
      check_same_tokenizer(stage.tokenizer, tokenizer, path, "tokenizer.path")
    tokenizer = stage.tokenizer
    for note in stage.source.notes if stage.source else ():
      log_line(f"{config.init_from}: {note}")
  data = config.data
  for prepared in (data.pretraining, *prepared_records.directories(data)):
    if tokenizer is None and layout.is_prepared(prepared):
      directory = pathlib.Path(prepared).expanduser() / layout.TOKENIZER
      tokenizer = read_tokenizer(directory, data)
  if tokenizer is None:
    log_line("training a tokenizer")
    tokenizer = tokenizer_lib.train_tokenizer(texts(), config.tokenizer)
  for note in tokenizer.notes:
    log_line(f"tokenizer of {config.init_from or path}: {note}")
  return tokenizer


def model_config(
  config: configs.Experiment, tokenizer: Tokenizer, dropout: float = 0.0
) -> configs.Model:
  """Returns the model config with its vocabulary size and a stage's dropout.

  Raises:
    UserError: `short_vocabulary`, the model has fewer rows than the tokenizer
      has ids.
  """
  size = config.model.vocab_size or tokenizer.vocab_size
  rows = size + config.model.vocab_padding
  if rows < tokenizer.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}",
      field="model.vocab_size",
      fix="give 0, which takes the tokenizer's size",
      code="short_vocabulary",
    )
  return dataclasses.replace(config.model, vocab_size=size, dropout=dropout)
