"""Hugging Face directories and GGUF files as the start of a run."""

from __future__ import annotations

import dataclasses

from instructgpt_jax import configs
from instructgpt_jax.configs.model import FREE_FIELDS
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub


def padded_model_config(
  source: hub.HubCheckpoint,
  tokenizer: Tokenizer,
  run: configs.Experiment | None,
) -> configs.Model:
  """Returns a Hugging Face model's config, padded for a run's mesh.

  Vocabulary rows are added for a padding token that the tokenizer lacks, and
  until the mesh divides them. They are never predicted. Heads are added until
  the mesh divides them. Their weights are zero and stay zero, since their
  gradients are zero.

  Args:
    source: the directory or file.
    tokenizer: its tokenizer.
    run: the run that starts from it; None for one device and its own settings.
  """
  config = source.config
  if run is not None:
    config = with_context_of(run, config)
  requested = configs.Model() if run is None else run.model
  shards = 1 if run is None else run.mesh.tensor
  rows = -(-max(tokenizer.vocab_size, config.vocab_size) // shards) * shards
  return dataclasses.replace(
    config,
    vocab_padding=rows - config.vocab_size,
    head_padding=-config.kv_heads % shards,
    scan_layers=requested.scan_layers,
    **{name: getattr(requested, name) for name in FREE_FIELDS},
  )


def check_tokenizer_fits(
  tokenizer: Tokenizer, config: configs.Model, path: str, field: str | None
) -> None:
  """Refuses a tokenizer with ids that the model has no vocabulary rows for.

  Args:
    tokenizer: the directory's tokenizer.
    config: the directory's model.
    path: the directory.
    field: the flag that names it.

  Raises:
    UserError: `tokenizer_beyond_model`; or `no_end_of_text`, where the
      tokenizer has no end-of-text token that the model knows.
  """
  if max(tokenizer.base_size, tokenizer.eos_id + 1) <= config.vocab_size:
    return
  has_end = tokenizer.eos_id < tokenizer.base_size
  what = "ids" if has_end else "no end-of-text"
  raise UserError(
    f"its tokenizer has {what} ({tokenizer.vocab_size}), its model"
    f" {config.vocab_size} rows",
    file=path,
    field=field,
    fix="give a directory with the model's own tokenizer"
    if has_end
    else "name eos_token in its tokenizer_config.json",
    code="tokenizer_beyond_model" if has_end else "no_end_of_text",
  )


def with_context_of(
  run: configs.Experiment, model: configs.Model
) -> configs.Model:
  """Returns a pretrained model with the context of a run, if it is shorter.

  With learned positions the context stays, since their number depends on it.
  """
  if model.pos_emb != "rope":
    return model
  max_seq_len = min(model.max_seq_len, run.model.max_seq_len)
  return dataclasses.replace(model, max_seq_len=max_seq_len)
