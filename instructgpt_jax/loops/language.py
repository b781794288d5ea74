"""Language modelling: pretraining, SFT and policy initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import checks, statistics
from instructgpt_jax import config as config_lib
from instructgpt_jax.data import pipelines, transforms
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.loops import (
  inputs,
  networks,
  sampling,
  scoring,
  supervised,
  workdir,
)
from instructgpt_jax.models import lora
from instructgpt_jax.models.transformer import LanguageModel
from instructgpt_jax.runtime import files
from instructgpt_jax.runtime import mesh as mesh_lib
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import PyTree

VALID_ROWS = 1024  # most rows that a validation loss is measured on
_token_logp = mesh_lib.jitted(language_step.token_logp, static_argnames="model")


def pretrain(config: config_lib.PretrainExperiment, directory: str) -> None:
  """Trains a base model on documents.

  Args:
    config: the experiment.
    directory: its workdir.
  """
  if workdir.completed(directory):
    return
  section = config.pretrain
  checks.divides(section.microbatch, section.batch_size, "pretrain.microbatch")
  length = checks.row_length(
    section.sequence, config.model.context, "pretrain.sequence"
  )
  documents = inputs.documents(config.data)
  tokenizer = workdir.stage_tokenizer(
    directory, config, lambda: (d.text for d in documents.train)
  )
  model = LanguageModel(
    workdir.model_config(config, tokenizer, section.dropout)
  )
  rows, valid = (
    inputs.document_rows(part, tokenizer, length)
    for part in (documents.train, documents.valid)
  )
  mesh = mesh_lib.make_mesh(config.mesh)
  batches = pipelines.language_batches(
    rows,
    batch_size=section.batch_size,
    seed=config.seed,
    pad_id=tokenizer.pad_id,
    **mesh_lib.shard(section.batch_size, mesh),
  )
  _train(
    config,
    directory,
    "pretrain",
    model,
    tokenizer,
    batches,
    mesh,
    total_steps=section.steps,
    microbatch=section.microbatch,
    valid=valid,
    eval_every=section.eval_every,
    select="last",
  )


def sft(
  config: config_lib.SftExperiment, directory: str, *, name: str = "sft"
) -> None:
  """Fine-tunes on demonstrations; also the policy's initialisation.

  A step has about `batch_size` demonstrations: packed rows hold several, and
  the number of rows a step follows from how many on average.

  Args:
    config: the experiment.
    directory: its workdir.
    name: "sft" or "policy_init".
  """
  if workdir.completed(directory):
    return
  section = config.sft
  checks.fits(config.data, config.model.context)
  tokenizer = workdir.stage_tokenizer(
    directory, config, lambda: inputs.training_texts(config.data)
  )
  model = LanguageModel(
    workdir.model_config(config, tokenizer, section.dropout)
  )
  records = inputs.demonstrations(config.data, tokenizer)
  length = config.model.context
  rows, valid = (
    inputs.demonstration_rows(
      part,
      tokenizer,
      config.data,
      length,
      mask_prompt=section.mask_prompt,
      pack=section.pack,
    )
    for part in (records.train, records.valid)
  )
  count = len(rows["tokens"])
  per_step = round(section.batch_size * count / len(records.train))
  per_step = max(1, min(count, per_step))
  fraction = section.pretraining_fraction
  mesh = mesh_lib.make_mesh(config.mesh)
  batch_size = step_rows(section, per_step, mesh)
  others = None
  if fraction:
    texts = inputs.documents(config.data).train
    others = inputs.document_rows(texts, tokenizer, length)
  extra = pipelines.mixed_rows(batch_size, fraction)
  steps_per_epoch = math.ceil(count / (batch_size - extra))
  arguments: dict[str, Any] = dict(
    batch_size=batch_size,
    seed=config.seed,
    pad_id=tokenizer.pad_id,
    **mesh_lib.shard(batch_size, mesh),
  )
  if others is None:
    batches = pipelines.language_batches(rows, **arguments)
  else:
    batches = pipelines.mixed_language_batches(
      rows, others, fraction, **arguments
    )
  by_reward = _reward_measure(config, directory, tokenizer, records, mesh)
  select = section.select_by
  if select == "auto":
    select = "reward" if by_reward else "loss"
  if select == "reward" and by_reward is None:
    raise UserError(
      "is 'reward', but no reward model is given",
      field="sft.select_by",
      fix="give --sft.reward_model=DIR, or --sft.select_by=loss",
    )
  if select == "loss" and not len(valid["tokens"]):
    select = "last"
  _train(
    config,
    directory,
    name,
    model,
    tokenizer,
    batches,
    mesh,
    total_steps=section.epochs * steps_per_epoch,
    microbatch=section.microbatch,
    valid=valid,
    eval_every=steps_per_epoch,
    select=select,
    measure=by_reward,
  )


def step_rows(
  section: config_lib.Sft, demonstrations: int, mesh: mesh_lib.AnyMesh
) -> int:
  """Rows of an SFT step: documents come on top, and it splits evenly.

  Args:
    section: the SFT settings.
    demonstrations: rows of them.
    mesh: what the rows, and those of whole microbatches, are split over.
  """
  rows = demonstrations
  if section.pretraining_fraction:
    rows = max(rows + 1, round(rows / (1 - section.pretraining_fraction)))
  unit = mesh_lib.batch_shards(mesh)
  if 0 < section.microbatch < mesh_lib.fill(rows, mesh):
    unit = math.lcm(section.microbatch, unit)
  return -(-rows // unit) * unit


def _reward_measure(
  config: config_lib.SftExperiment,
  directory: str,
  tokenizer: Tokenizer,
  records: inputs.Splits,
  mesh: Mesh,
) -> Callable[[LanguageModel, PyTree], dict[str, float]] | None:
  """Mean RM score of sampled answers to validation prompts (C.1)."""
  section = config.sft
  if not section.reward_model:
    return None
  stage = workdir.open_stage(
    section.reward_model,
    kind=workdir.SCALAR,
    field="sft.reward_model",
    run=config,
  )
  workdir.same_tokenizer(
    stage.tokenizer, tokenizer, section.reward_model, "sft.reward_model"
  )
  records_held = records.valid[: section.select_prompts]
  if not records_held:
    raise UserError(
      "there is no validation prompt to choose a checkpoint on",
      field="data.demonstrations",
      fix="give more demonstrations, or --sft.select_by=loss",
    )
  prompts = transforms.encode_prompts(
    [d.turns for d in records_held], tokenizer, config.data
  )
  params = networks.load(stage, mesh)

  def measure(model: LanguageModel, policy: PyTree) -> dict[str, float]:
    rollout = sampling.respond(
      model,
      policy,
      prompts,
      jax.random.key(config.seed),
      tokenizer=tokenizer,
      max_new_tokens=config.data.max_response_tokens,
      mesh=mesh,
      samples=section.select_samples,
    )
    scores = scoring.score(
      stage.network, params, scoring.answers(rollout), mesh
    )
    return {"valid_rm_score": float(scores.mean())}

  return measure


def _train(
  config: config_lib.PretrainExperiment | config_lib.SftExperiment,
  directory: str,
  name: str,
  model: LanguageModel,
  tokenizer: Tokenizer,
  batches: grain.DatasetIterator,
  mesh: Mesh,
  *,
  total_steps: int,
  microbatch: int,
  valid: transforms.Rows,
  eval_every: int,
  select: str,
  measure: Callable[[LanguageModel, PyTree], dict[str, float]] | None = None,
) -> None:
  optimizer = state_lib.make_optimizer(config.optimizer, total_steps)
  stage = None
  if config.init_from:
    stage = workdir.open_stage(
      config.init_from, kind=workdir.LANGUAGE, field="init_from", run=config
    )
  frozen, params, adapts = networks.start(
    model, stage, jax.random.key(config.seed), mesh
  )
  state = networks.train_state(model, params, optimizer, mesh)
  step_fn = supervised.step_program(
    language_step.train_step,
    model,
    optimizer,
    state,
    mesh,
    seed=config.seed,
    microbatch=microbatch,
  )

  def evaluate(params: PyTree, step: int) -> dict[str, float]:
    del step
    params = lora.union(frozen, params)
    found = {}
    if len(valid["tokens"]):
      some = {k: v[:VALID_ROWS] for k, v in valid.items()}
      nll, weight = row_losses(model, params, some, mesh)
      found["valid_loss"] = float(nll.sum() / max(weight.sum(), 1))
    return found | (measure(model, params) if measure else {})

  def save(params: PyTree, step: int) -> None:
    workdir.save_stage_model(
      directory,
      params,
      kind=workdir.LANGUAGE,
      model=model.config,
      data=config.data,
      adapts=adapts,
      stage=name,
      step=step,
    )

  metric = {"loss": ("valid_loss", -1.0), "reward": ("valid_rm_score", 1.0)}
  evaluation = supervised.Evaluation(
    evaluate, eval_every, metric.get(select), save
  )
  workdir.put_tokenizer(directory, tokenizer)
  fitted = supervised.fit(
    state,
    lambda state, batch: step_fn(state, batch, frozen),
    batches,
    workdir=directory,
    name=name,
    run=config.run,
    total_steps=total_steps,
    mesh=mesh,
    learning_rate=state_lib.schedule(config.optimizer, total_steps),
    evaluation=evaluation,
  )
  if select not in metric:
    save(fitted.state.params, total_steps)
  files.mark_complete(directory, fitted.summary)


def row_losses(
  model: LanguageModel,
  params: PyTree,
  rows: transforms.Rows,
  mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
  """Σ weight · −log p and Σ weight of each row.

  Args:
    model: the language model; its dropout stays off.
    params: its parameters.
    rows: R rows.
    mesh: where batches are put.

  Returns:
    [R] float64 and [R] float64.
  """
  count = len(rows["tokens"])
  size = mesh_lib.fill(min(64, count), mesh)
  found = [
    mesh_lib.fetch(
      _token_logp(mesh)(params, mesh_lib.put_whole(batch, mesh), model=model)
    )
    for batch in pipelines.language_batches(
      rows, batch_size=size, epochs=1, shuffle=False
    )
  ]
  logp = np.concatenate(found)[:count].astype(np.float64)
  weights = rows["weights"].astype(np.float64)
  weights[:, 0] = 0  # nothing stands before a row's first token
  return -(weights * logp).sum(axis=1), weights.sum(axis=1)


def loss_interval(
  model: LanguageModel,
  params: PyTree,
  rows: transforms.Rows,
  mesh: Mesh,
  *,
  resamples: int,
) -> statistics.Interval:
  """Mean loss a token, in nats, with an interval over rows."""
  nll, weight = row_losses(model, params, rows, mesh)
  return statistics.ratio_interval(nll, weight, resamples=resamples)
