"""Language modelling: pretraining, SFT and policy initialisation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding, statistics
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching, encoding, packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  networks,
  sampling,
  scoring,
  stage_model,
  step_layout,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.types import PyTree

VALID_ROWS = 1024  # most rows that a validation loss is measured on
_token_logp = mesh_lib.jit_per_mesh(
  language_step.token_logp, static_argnames="model"
)


def pretrain(config: configs.PretrainExperiment, directory: str) -> None:
  """Trains a base model on documents.

  Args:
    config: the experiment.
    directory: its workdir.
  """
  if stage_model.is_complete(directory):
    return
  section = config.pretrain
  checks.check_divides(
    section.microbatch, section.batch_size, "pretrain.microbatch"
  )
  length = checks.row_length(
    section.sequence, config.model.max_seq_len, "pretrain.sequence"
  )
  documents = inputs.documents(config.data)
  tokenizer = inheritance.stage_tokenizer(
    directory, config, lambda: (d.text for d in documents.train)
  )
  model = LanguageModel(
    inheritance.model_config(config, tokenizer, section.dropout)
  )
  rows, valid = (
    inputs.document_rows(part, tokenizer, length)
    for part in (documents.train, documents.valid)
  )
  mesh = mesh_lib.make_mesh(config.mesh)
  batches = batching.language_batches(
    rows,
    batching.BatchSpec(
      batch_size=section.batch_size,
      seed=config.seed,
      **transfer.get_process_shard(section.batch_size, mesh),
    ),
    pad_id=tokenizer.pad_id,
  )
  course = _Course(
    "pretrain",
    batches,
    valid,
    total_steps=section.steps,
    microbatch=section.microbatch or 0,
    eval_every=section.eval_every,
    select="last",
    fingerprint=fingerprint.Fingerprint(
      {"rows": section.batch_size, "steps": section.steps},
      {
        "data.pretraining": _documents_fingerprint(
          config.data, documents, [rows, valid]
        )
      },
    ),
  )
  _train(config, directory, model, tokenizer, course, mesh)


def sft(
  config: configs.SftExperiment, directory: str, *, name: str = "sft"
) -> None:
  """Fine-tunes on demonstrations; also the policy's initialisation.

  A step has about `batch_size` demonstrations: packed rows hold several, and
  the number of rows in a step follows from the average. The mesh changes only
  how many rows of padding are added.

  Args:
    config: the experiment.
    directory: its workdir.
    name: "sft" or "policy_init".
  """
  if stage_model.is_complete(directory):
    return
  section = config.sft
  checks.check_lengths(config.data, config.model.max_seq_len)
  tokenizer = inheritance.stage_tokenizer(
    directory, config, lambda: inputs.training_texts(config.data)
  )
  model = LanguageModel(
    inheritance.model_config(config, tokenizer, section.dropout)
  )
  records = inputs.demonstrations(config.data, tokenizer)
  mesh = mesh_lib.make_mesh(config.mesh)
  by_reward = _reward_measure(config, directory, tokenizer, records, mesh)
  select = selection(section, name, by_reward is not None, len(records.valid))
  rows, valid = (
    inputs.demonstration_rows(
      part,
      tokenizer,
      config.data,
      config.model.max_seq_len,
      mask_prompt=section.mask_prompt,
      pack=section.pack,
    )
    for part in (records.train, records.valid)
  )
  layout = step_layout.step_layout(
    section, len(rows["tokens"]), len(records.train)
  )
  source = fingerprint.fingerprint_source(
    config.data.demonstrations,
    [rows, valid],
    train=len(records.train),
    valid=len(records.valid),
  )
  demonstrations = _DemonstrationRows(rows, valid, source)
  course = dataclasses.replace(
    _sft_course(config, name, tokenizer, demonstrations, layout, mesh),
    select=select,
    measure=by_reward,
  )
  _train(config, directory, model, tokenizer, course, mesh)


class _DemonstrationRows(NamedTuple):
  """Packed demonstrations, and the fingerprint of their source."""

  train: packing.Rows
  valid: packing.Rows
  source: fingerprint.Source


def _sft_course(
  config: configs.SftExperiment,
  name: str,
  tokenizer: Tokenizer,
  demonstrations: _DemonstrationRows,
  layout: step_layout.StepLayout,
  mesh: Mesh,
) -> _Course:
  """Makes batches of demonstrations, with their share of pretraining rows.

  Args:
    config: the experiment.
    name: name of the stage.
    tokenizer: the run's tokenizer.
    demonstrations: packed demonstrations.
    layout: number of rows of a step.
    mesh: the mesh that the batches are padded for.
  """
  section, rows = config.sft, demonstrations.train
  steps_per_epoch = math.ceil(len(rows["tokens"]) / layout.demonstration_rows)
  total_steps = section.epochs * steps_per_epoch
  sources = {"data.demonstrations": demonstrations.source}
  document_rows, log = None, _no_metrics
  if section.reward_model:  # It selects the parameters.
    model_source = fingerprint.fingerprint_model(section.reward_model)
    sources["sft.reward_model"] = model_source
  if section.pretraining_fraction:
    documents = inputs.documents(config.data)
    document_rows = inputs.document_rows(
      documents.train, tokenizer, config.model.max_seq_len
    )
    sources["data.pretraining"] = _documents_fingerprint(
      config.data, documents, [document_rows]
    )
    log = _share_metrics(config, name, rows, document_rows, layout, total_steps)
  padded = _padded(layout, name, mesh)
  batches = batching.mixed_language_batches(
    rows,
    document_rows,
    section.pretraining_fraction,
    batching.BatchSpec(
      batch_size=layout.demonstration_rows,
      seed=config.seed,
      **transfer.get_process_shard(padded.rows, mesh),
    ),
    padded_size=padded.rows,
    pad_id=tokenizer.pad_id,
  )
  rows_per_step, fraction = (
    layout.demonstration_rows,
    section.pretraining_fraction,
  )
  counts = dict(
    rows=rows_per_step, pretraining_fraction=fraction, steps=total_steps
  )
  return _Course(
    name,
    batches,
    demonstrations.valid,
    total_steps=total_steps,
    microbatch=padded.microbatch,
    eval_every=steps_per_epoch,
    select="last",
    fingerprint=fingerprint.Fingerprint(counts, sources, counted=False),
    log=log,
  )


def _padded(
  layout: step_layout.StepLayout, name: str, mesh: Mesh
) -> step_layout.Padded:
  """Pads a step's rows for a mesh; logs a line if most of them are padding."""
  padded = layout.padded(mesh)
  if padded.rows >= 2 * layout.rows:
    log_line(
      f"{name}: a step has {layout.rows} rows and {padded.rows - layout.rows}"
      f" of padding, for {sharding.batch_shards(mesh)} devices"
    )
  return padded


def _no_metrics(step: int) -> dict[str, float]:
  del step
  return {}


def _documents_fingerprint(
  data: configs.Data, documents: inputs.Splits, rows: list[packing.Rows]
) -> fingerprint.Source:
  return fingerprint.fingerprint_source(
    data.pretraining,
    rows,
    train=len(documents.train),
    valid=len(documents.valid),
  )


def _share_metrics(
  config: configs.SftExperiment,
  name: str,
  rows: packing.Rows,
  others: packing.Rows,
  layout: step_layout.StepLayout,
  total_steps: int,
) -> Callable[[int], dict[str, float]]:
  """Logs the share of pretraining data; returns the shares up to a step."""
  shares = batching.mixed_shares(
    rows,
    others,
    layout.fraction,
    batch_size=layout.demonstration_rows,
    seed=config.seed,
    steps=total_steps,
  )
  log_line(
    f"{name}: {shares[-1, 0]:.1%} of the rows and {shares[-1, 1]:.1%} of the"
    " tokens that carry loss are pretraining data"
  )
  keys = ("pretraining_row_share", "pretraining_token_share")

  def metrics(step: int) -> dict[str, float]:
    return dict(zip(keys, shares[step - 1].tolist(), strict=True))

  return metrics


def selection(
  section: configs.Sft, name: str, by_reward: bool, valid: int
) -> str:
  """Returns what chooses the parameters: "reward", "loss" or "last".

  Args:
    section: the settings.
    name: of the stage, for what is shown.
    by_reward: whether there is a reward model.
    valid: number of validation records.

  Raises:
    UserError: `no_reward_model` or `no_validation`, the user has asked for what
      cannot be measured.
  """
  select = section.select_by
  if select == "reward" and not by_reward:
    raise UserError(
      "is 'reward', but no reward model is given",
      field="sft.select_by",
      fix="give --sft.reward_model=DIR, or --sft.select_by=loss",
      code="no_reward_model",
    )
  if select in ("loss", "reward") and not valid:
    raise UserError(
      f"is {select!r}, but there are no validation records to measure it on",
      field="sft.select_by",
      fix="raise --data.valid_fraction, give demonstrations with a validation"
      " split, or --sft.select_by=last",
      code="no_validation",
    )
  if select != "auto":
    return select
  if by_reward:
    return "reward"
  if valid:
    return "loss"
  log_line(f"{name}: no validation records: the last step is kept")
  return "last"


def _reward_measure(
  config: configs.SftExperiment,
  directory: str,
  tokenizer: Tokenizer,
  records: inputs.Splits,
  mesh: Mesh,
) -> Callable[[LanguageModel, PyTree], dict[str, float]] | None:
  """Makes the mean RM score of responses to validation prompts (C.1)."""
  section = config.sft
  if not section.reward_model:
    return None
  stage = stage_model.open_stage(
    section.reward_model,
    kind=stage_model.SCALAR,
    field="sft.reward_model",
    run=config,
  )
  inheritance.require_compatible(
    stage, tokenizer, config.data, "sft.reward_model"
  )
  records_held = records.valid[: section.select_prompts]
  if not records_held:
    raise UserError(
      "there is no validation prompt to choose a checkpoint on",
      field="data.demonstrations",
      fix="raise --data.valid_fraction, or leave out --sft.reward_model",
      code="no_validation",
    )
  prompts = encoding.encode_prompts(
    [d.turns for d in records_held], tokenizer, config.data
  )
  params = networks.load_params(stage, mesh)

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


@dataclasses.dataclass(frozen=True)
class _Course:
  """Batches of a training run, and how they are used.

  Attributes:
    name: name of the stage.
    batches: batches of this process.
    valid: validation rows.
    total_steps: number of updates.
    microbatch: rows of a microbatch; 0 is all.
    eval_every: steps between two evaluations.
    select: what chooses the parameters: "reward", "loss" or "last".
    fingerprint: fingerprint of the data and the batches.
    measure: (model, parameters) → further metrics of an evaluation.
    log: step → further metrics of a step.
  """

  name: str
  batches: grain.DatasetIterator
  valid: packing.Rows
  total_steps: int
  microbatch: int
  eval_every: int
  select: str
  fingerprint: fingerprint.Fingerprint
  measure: Callable[[LanguageModel, PyTree], dict[str, float]] | None = None
  log: Callable[[int], dict[str, float]] = _no_metrics


_SELECTED_BY = {"loss": ("valid_loss", -1.0), "reward": ("valid_rm_score", 1.0)}


def _train(
  config: configs.PretrainExperiment | configs.SftExperiment,
  directory: str,
  model: LanguageModel,
  tokenizer: Tokenizer,
  course: _Course,
  mesh: Mesh,
) -> None:
  """Trains, and saves the parameters that `course.select` chooses."""
  stage = None
  if config.init_from:
    stage = stage_model.open_stage(
      config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
    )
  measures = ["valid_loss"] * (len(course.valid["tokens"]) > 0)
  measures += ["valid_rm_score"] * (course.measure is not None)
  supervised.require_measure(config.run, measures)
  start = supervised.start_training(
    config,
    model,
    language_step.train_step,
    stage,
    mesh,
    total_steps=course.total_steps,
    microbatch=course.microbatch,
  )

  def evaluate(params: PyTree, step: int) -> dict[str, float]:
    del step
    params = lora.merge_trees(start.params.frozen, params)
    return _evaluate(model, params, course, mesh)

  save = functools.partial(
    _save, directory, config, model, start=start, name=course.name
  )
  tokenizer_store.put_tokenizer(directory, tokenizer)
  run = supervised.SupervisedRun(
    directory=directory,
    name=course.name,
    settings=config.run,
    mesh=mesh,
    batches=course.batches,
    total_steps=course.total_steps,
    learning_rate=optimizer_lib.make_schedule(
      config.optimizer, course.total_steps
    ),
    fingerprint=course.fingerprint.with_base(start.base_checksum),
    evaluation=supervised.EvaluationLoop(
      evaluate, course.eval_every, _SELECTED_BY.get(course.select), save
    ),
    log=course.log,
  )
  result = supervised.fit(run, start.state, start.step)
  if course.select not in _SELECTED_BY:
    save(result.state.params, course.total_steps)
  files.mark_complete(directory, result.summary)


def _evaluate(
  model: LanguageModel, params: PyTree, course: _Course, mesh: Mesh
) -> dict[str, float]:
  """Computes the validation loss and further metrics of an evaluation."""
  metrics = {}
  if len(course.valid["tokens"]):
    rows = {k: v[:VALID_ROWS] for k, v in course.valid.items()}
    nll, weight = row_losses(model, params, rows, mesh)
    metrics["valid_loss"] = float(nll.sum() / max(weight.sum(), 1))
  return metrics | (course.measure(model, params) if course.measure else {})


def _save(
  directory: str,
  config: configs.Experiment,
  model: LanguageModel,
  params: PyTree,
  step: int,
  *,
  start: supervised.Start,
  name: str,
) -> None:
  """Writes the trained model as a stage."""
  stage_model.save_stage_model(
    directory,
    params,
    kind=stage_model.LANGUAGE,
    model=model.config,
    data=config.data,
    adapts=start.params.adapts,
    starts_from=start.stage,
    stage=name,
    step=step,
  )


def row_losses(
  model: LanguageModel,
  params: PyTree,
  rows: packing.Rows,
  mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
  """Computes Σ weight · −log p and Σ weight of each row.

  Args:
    model: the language model; its dropout stays off.
    params: its parameters.
    rows: R rows.
    mesh: where batches are put.

  Returns:
    [R] float64 and [R] float64.
  """
  count = len(rows["tokens"])
  size = mesh_lib.round_up_to_shards(min(64, count), mesh)
  logp = [
    transfer.allgather(
      _token_logp(mesh)(
        params, transfer.put_replicated_batch(batch, mesh), model=model
      )
    )
    for batch in batching.language_batches(
      rows, batching.BatchSpec(batch_size=size, epochs=1, shuffle=False)
    )
  ]
  token_logp = np.concatenate(logp)[:count].astype(np.float64)
  weights = rows["weights"].astype(np.float64)
  weights[:, 0] = 0  # nothing predicts a row's first token
  return -(weights * token_logp).sum(axis=1), weights.sum(axis=1)


def loss_interval(
  model: LanguageModel,
  params: PyTree,
  rows: packing.Rows,
  mesh: Mesh,
  *,
  resamples: int,
) -> statistics.Interval:
  """Computes the mean loss of a token, in nats, with an interval over rows."""
  nll, weight = row_losses(model, params, rows, mesh)
  return statistics.ratio_interval(nll, weight, resamples=resamples)
